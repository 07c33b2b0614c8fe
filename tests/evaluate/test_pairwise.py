"""The suite ``general``: what is asked, what comes of it, and that nothing is paid for twice."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.errors import ConfigError, DataError, EngineError
from instdiff.evaluation.llm_judge.items import read_items
from instdiff.evaluation.llm_judge.judge import PAIR, JudgeRequest, LLMJudge, Waits
from instdiff.evaluation.llm_judge.suite import TASKS, GeneralSuite, general_suite
from instdiff.evaluation.subject import Subject
from instdiff.store import Store
from judging import Reply, Server, completion, refusal

FAST = Waits(concurrency=2, timeout=5.0, tries=3, pause=0.005)
SECRET = "sk-very-secret-0123456789"


class Author:
    """Writes what a function says."""

    name = "author"

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say, self.asked = say, list[str]()

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        self.asked += [prompt.text for prompt in prompts]
        return [[self.say(prompt.text)] * sampling.n for prompt in prompts]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def subject(tmp_path: Path, lines: list[str]) -> Subject:
    author = Author(lambda text: f"ours to {text}")
    store = Store(tmp_path / "store")
    return Subject("mine", ModelRef("mine"), Settings(), store, tmp_path / "answers", author, lines.append, Quiet())


def rows_in(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def suite(server: Server | str, files: dict[str, Path], **options: Any) -> GeneralSuite:
    url = server if isinstance(server, str) else server.url
    return GeneralSuite(f"openai:gpt-x@{url}", files, waits=FAST, **options)


def questions(folder: Path, count: int, outputs: bool = True) -> Path:
    told = [{"instruction": f"q{i}", "dataset": "d", "generator": "other"} for i in range(count)]
    return rows_in(
        folder / "q.jsonl", [{**row, "output": f"theirs {i}"} if outputs else row for i, row in enumerate(told)]
    )


def outputs_of(subject: Subject) -> Path:
    (folder,) = (subject.folder / "outputs").iterdir()
    return folder


def ours_first(body: dict[str, Any]) -> bool:
    said = str(body["messages"][-1]["content"])
    return said.index("ours to") < said.index("theirs")


def likes_ours(good: str, bad: str) -> Callable[[dict[str, Any], int], Reply]:
    return lambda body, number: completion(good if ours_first(body) else bad)


# ── what comes of it ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_comparison_in_both_orders(server: Server, subject: Subject, tmp_path: Path, lines: list[str]) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        said, first = body["messages"][-1]["content"], ours_first(body)
        if "q0" in said:  # better in both
            return completion("9 7\nwhy" if first else "6 8")
        if "q1" in said:  # the first place wins
            return completion("9 7")
        if "q2" in said:  # better in one, tied in the other
            return completion("7 7" if first else "5 6")
        return completion("3 9" if first else "9 2")

    server.play = play
    (found,) = suite(server, {"koala": questions(tmp_path, 4)}).run(subject)
    assert (found.name, found.metric, found.ids) == ("koala", "win_rate", ["0", "1", "2", "3"])
    assert found.score.tolist() == [1, 0.5, 1, 0] and found.value == 0.625
    told = found.details
    assert (told["win"], told["tie"], told["lose"], told["win_score"]) == (2, 1, 1, 1.25)
    assert (told["judge"], told["reference"]) == ("gpt-x", "other")
    assert (told["mean_length"], told["reference_mean_length"]) == (10, 8)
    assert told["mean_score"] == (9 + 8 + 9 + 7 + 7 + 6 + 3 + 2) / 8
    body = server.bodies[0]
    assert len(server.bodies) == 8 and body["temperature"] == 0 and body["max_tokens"] == 1024
    assert "response_format" not in body and "logprobs" not in body
    assert body["messages"][0]["content"].startswith("You are a helpful and precise assistant for checking")
    said = body["messages"][1]["content"]
    assert said.startswith("[Question]\nq") and "[The Start of Assistant 1's Answer]\n" in said
    assert subject.cost == {"judge_calls": 8, "judge_prompt_tokens": 80, "judge_completion_tokens": 16}
    assert lines == [
        f"answers in the formats of alpaca_eval and Arena-Hard: {outputs_of(subject)}",
        f"gpt-x@{server.url}: questions: 8, calls under way: 2",
        "koala: judge gpt-x was asked 8 questions, 0 of them without a usable verdict",
    ]
    assert json.dumps(found.record())


def test_preferences_by_probabilities(server: Server, subject: Subject, tmp_path: Path) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        likely = 0.9 if ours_first(body) else 0.3
        return completion("m", [("m", {"m": likely, "M": 1 - likely})])

    server.play = play
    (found,) = suite(server, {"alpaca_eval": questions(tmp_path, 3)}).run(subject)
    assert found.score == pytest.approx(np.full(3, (0.9 + 0.7) / 2))
    assert found.details["win"] == 3 and found.details["length_controlled_win_rate"] == pytest.approx(0.8)
    body = server.bodies[0]
    assert body["logprobs"] is True and body["top_logprobs"] == 5 and body["max_tokens"] == 8
    outputs = json.loads((outputs_of(subject) / "alpaca_eval" / "model_outputs.json").read_text(encoding="utf-8"))
    assert outputs[1] == {"dataset": "d", "instruction": "q1", "output": "ours to q1", "generator": "mine"}
    # Kept with the probabilities.
    paid = dict(subject.cost)
    (again,) = suite(server, {"alpaca_eval": questions(tmp_path, 3)}).run(subject)
    assert len(server.bodies) == 6 and again.score.tolist() == found.score.tolist()
    # The bill is of what was used: an interruption does not change it.
    assert subject.cost == {name: 2 * amount for name, amount in paid.items()}


def test_a_server_that_gives_no_probabilities(server: Server, subject: Subject, tmp_path: Path) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        if "logprobs" in body:
            return refusal(400, "logprobs are not supported by this model")
        return completion("tie" if "q1" in body["messages"][-1]["content"] else "m" if ours_first(body) else "M")

    server.play = play
    (found,) = suite(server, {"alpaca_eval": questions(tmp_path, 2)}).run(subject)
    assert found.score.tolist() == [1, 0.5] and found.details["tie"] == 1


def test_five_verdicts(server: Server, subject: Subject, tmp_path: Path) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        if "q0" in body["messages"][-1]["content"]:
            return completion("[[A>>B]]" if ours_first(body) else "[[B>A]]")
        return completion("[[B>A]]" if ours_first(body) else "[[A=B]]")

    server.play = play
    (found,) = suite(server, {"arena_hard": questions(tmp_path, 2)}).run(subject)
    assert found.score.tolist() == [1, 0.25] and found.weights.tolist() == [4, 2]
    assert found.value == pytest.approx(4.5 / 6)
    assert found.interval().low == 0.25 and found.interval().high == 1
    assert found.details["verdicts_as_a"] == {"A>>B": 1, "B>A": 1}
    assert (found.details["win"], found.details["lose"]) == (1, 1)
    answers = (outputs_of(subject) / "arena_hard" / "model_answers.jsonl").read_text(encoding="utf-8").splitlines()
    first = json.loads(answers[0])
    assert first["choices"] == [{"index": 0, "turns": [{"content": "ours to q0"}]}]
    assert (first["question_id"], first["model_id"]) == ("0", "mine")


def test_ratings_of_two_turns(server: Server, subject: Subject, tmp_path: Path) -> None:
    data = rows_in(
        tmp_path / "q.jsonl",
        [{"question_id": 81, "turns": ["one", "two"]}, {"question_id": 82, "turns": ["three", "four"]}],
    )
    guides = rows_in(tmp_path / "r.jsonl", [{"question_id": 82, "choices": [{"turns": ["right 3", "right 4"]}]}])
    server.play = lambda body, number: completion(
        "[[4]]" if "last answer" in body["messages"][-1]["content"] else "[[8]]"
    )
    (found,) = suite(server, {"mt_bench": data}, usual={"mt_bench": guides}).run(subject)
    assert found.ids == ["81/1", "81/2", "82/1", "82/2"] and found.score.tolist() == [0.8, 0.4, 0.8, 0.4]
    assert (found.details["rating"], found.details["first_turn"], found.details["second_turn"]) == (6, 8, 4)
    assert isinstance(subject.generator, Author)
    assert subject.generator.asked[2] == "User: one\n\nAssistant: ours to one\n\nUser: two"
    asked = sorted(str(body["messages"][-1]["content"]) for body in server.bodies)
    assert sum("right 3" in said for said in asked) == 1 and sum("right 4" in said for said in asked) == 1
    assert sum("<reference>" in said for said in asked) == 2


# ── references ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_references_from_files_and_other_runs(server: Server, subject: Subject, tmp_path: Path) -> None:
    data = {"koala": questions(tmp_path, 3, outputs=False)}
    with pytest.raises(ConfigError, match="task 'koala' compares with other answers; give reference="):
        suite(server, data).run(subject)
    refs = tmp_path / "refs.json"
    refs.write_text(json.dumps([{"instruction": " q1", "output": 12, "generator": "b"}]), encoding="utf-8")
    server.play = lambda body, number: completion("5 5")
    (found,) = suite(server, data, reference=str(refs)).run(subject)
    assert len(server.bodies) == 2 and "\n12\n" in server.asked(0)  # digits are a text
    assert found.reason == ["no_reference", None, "no_reference"] and found.score.tolist()[1] == 0.5
    assert found.details["reference"] == "b" and found.record()["not_scored"] == {"no_reference": 2}
    with pytest.raises(ConfigError, match=r"gone.json' is not there"):
        suite(server, data, reference=str(tmp_path / "gone.json")).run(subject)
    rows_in(refs.with_suffix(".jsonl"), [{"instruction": "x", "output": "y"}])
    with pytest.raises(DataError, match="has no answer to any of the 3 prompts of task 'koala'"):
        suite(server, data, reference=str(refs.with_suffix(".jsonl"))).run(subject)
    # A folder of another run, and answers in the format of Arena-Hard.
    run = outputs_of(subject)
    server.play = lambda body, number: completion("5 5")
    (same,) = suite(server, data, reference=str(run)).run(subject)
    assert same.details["reference"] == "mine" and same.score.tolist() == [0.5] * 3
    (same,) = suite(server, data, reference=str(run / "koala" / "model_answers.jsonl")).run(subject)
    assert same.details["reference"] == "mine" and same.details["tie"] == 3


def test_a_second_model_writes_the_reference(server: Server, subject: Subject, tmp_path: Path) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        if body["model"] == "writer":
            return completion("theirs")
        return completion("9 1" if ours_first(body) else "1 9")

    server.play = play
    data = {"lima": questions(tmp_path, 2, outputs=False)}
    for _ in range(2):
        (found,) = suite(server, data, reference=f"openai:writer@{server.url}").run(subject)
        assert found.score.tolist() == [1, 1] and found.details["reference"].startswith("writer")
    assert Counter(body["model"] for body in server.bodies) == {"writer": 2, "gpt-x": 4}
    assert subject.cost["reference_answers"] == 4


# ── servers that do not do as they are told ───────────────────────────────────────────────────────────────────────────


def test_trouble_in_between_costs_nothing(server: Server, subject: Subject, tmp_path: Path) -> None:
    """A limit, a fault, a time-out and a closed connection: each question is answered once."""
    answered: Counter[str] = Counter()

    def play(body: dict[str, Any], number: int) -> Reply:
        if number == 1:
            return refusal(429, "slow down", Retry_After="0.01")
        if number == 3:
            return None
        if number == 5:
            server.released.wait(0.6)
            return completion("too late")
        if number in (7, 8):
            return refusal(503, "restarting")
        answered[str(body["messages"][-1]["content"])] += 1
        return completion("9 1" if ours_first(body) else "1 9")

    server.play = play
    waits = Waits(concurrency=2, timeout=0.3, tries=4, pause=0.005)
    general = GeneralSuite(f"openai:gpt-x@{server.url}", {"koala": questions(tmp_path, 8)}, waits=waits)
    (found,) = general.run(subject)
    assert found.value == 1 and len(answered) == 16 and set(answered.values()) == {1}
    assert len(server.bodies) == 16 + 5


def test_a_restart_in_the_middle_is_resumed_without_paying_twice(subject: Subject, tmp_path: Path) -> None:
    """The first server goes away after some answers; the next one, elsewhere, is asked for the rest alone."""
    data, answered = {"koala": questions(tmp_path, 6)}, Counter[str]()

    def play(limit: int) -> Callable[[dict[str, Any], int], Reply]:
        def playing(body: dict[str, Any], number: int) -> Reply:
            if number >= limit:
                return refusal(503, "going down")
            answered[str(body["messages"][-1]["content"])] += 1
            return completion("9 1" if ours_first(body) else "1 9")

        return playing

    first, second = Server(), Server()
    try:
        first.play, second.play = play(5), play(99)
        with pytest.raises(EngineError, match=r"503 \(going down\).*what it answered is kept"):
            suite(first, data).run(subject)
        (kept,) = subject.folder.glob("judgements-*.jsonl")
        before = kept.read_text(encoding="utf-8").splitlines()
        assert len(before) == 5 and SECRET not in kept.read_text(encoding="utf-8")
        with open(kept, "a", encoding="utf-8") as file:
            file.write('{"key": "torn')  # as a kill leaves it
        (found,) = suite(second, data).run(subject)
        assert found.value == 1 and len(second.bodies) == 7
        assert len(answered) == 12 and set(answered.values()) == {1}
        (again,) = suite(second, data).run(subject)
        assert again.score.tolist() == found.score.tolist() and len(second.bodies) == 7
    finally:
        first.close()
        second.close()


def test_a_server_that_is_restarted_while_it_is_asked(subject: Subject, tmp_path: Path) -> None:
    """For a while nothing listens there; the run waits, and no question is answered twice."""
    first, again, answered = Server(), list[Server](), Counter[str]()
    port = int(first.http.server_address[1])

    def answer(body: dict[str, Any], number: int) -> Reply:
        answered[str(body["messages"][-1]["content"])] += 1
        return completion("9 1" if ours_first(body) else "1 9")

    def restart() -> None:
        first.close()
        again.append(Server(port))
        again[0].play = answer

    restarting = threading.Thread(target=restart)

    def play(body: dict[str, Any], number: int) -> Reply:
        if number < 5:
            return answer(body, number)
        if number == 5:
            restarting.start()
        return None

    first.play = play
    waits = Waits(concurrency=2, timeout=5.0, tries=9, pause=0.01)
    try:
        where = f"openai:gpt-x@{first.url}"
        (found,) = GeneralSuite(where, {"koala": questions(tmp_path, 6)}, waits=waits).run(subject)
        assert found.value == 1 and len(answered) == 12 and set(answered.values()) == {1}
        assert len(again[0].bodies) == 7
    finally:
        restarting.join()
        for server in again:
            server.close()


def test_malformed_answers_are_asked_again_and_then_null(
    server: Server, subject: Subject, tmp_path: Path, lines: list[str]
) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        said = str(body["messages"][-1]["content"])
        if "q0" in said and ours_first(body):
            return completion("I cannot say.")
        if "q1" in said and "The first line must hold" not in said:
            return completion("Assistant 1: 7")
        return completion("9 1" if ours_first(body) else "1 9")

    server.play = play
    data = {"koala": questions(tmp_path, 3)}
    (found,) = suite(server, data).run(subject)
    assert np.isnan(found.score[0]) and found.score.tolist()[1:] == [1, 1]
    assert found.reason == ["unparsable", None, None] and found.details["win"] == 2
    assert lines[1] == f"gpt-x@{server.url}: questions: 6, calls under way: 2"
    assert lines[2:] == ["koala: judge gpt-x was asked 6 questions, 1 of them without a usable verdict"]
    assert len(server.bodies) == 6 + 2 + 2  # twice more for the one, once more for both of the other
    assert sorted({body["temperature"] for body in server.bodies}) == [0, 0.7]
    suite(server, data).run(subject)
    assert len(server.bodies) == 10


def test_the_length_of_a_verdict_can_be_set(server: Server, subject: Subject) -> None:
    """And a verdict of another length is asked for anew."""
    server.play = lambda body, number: completion("9 1")
    for length in (None, 20, 20, 1024):
        judge = LLMJudge(f"openai:gpt-x@{server.url}", subject, FAST, length)
        assert judge.ask(PAIR, [JudgeRequest("compare")], "t")[0].value == [9.0, 1.0]
    assert [body["max_tokens"] for body in server.bodies] == [1024, 20]


def test_tries_count_over_all_runs(server: Server, subject: Subject) -> None:
    """An answer that could not be read was paid for, too."""
    server.play = lambda body, number: completion("what?") if number == 0 else refusal(401, "no")
    where = f"openai:gpt-x@{server.url}"
    with pytest.raises(EngineError, match="401"):
        LLMJudge(where, subject, FAST).ask(PAIR, [JudgeRequest("compare")], "t")
    server.play = lambda body, number: completion("still?")
    (found,) = LLMJudge(where, subject, FAST).ask(PAIR, [JudgeRequest("compare")], "t")
    assert (found.value, found.reason) == (None, "unparsable")
    assert [server.asked(i) == "compare" for i in range(4)] == [True, False, False, False]
    assert len(server.bodies) == 4  # of which one was refused


def test_a_question_that_is_refused_is_asked_by_the_next_run(
    server: Server, subject: Subject, tmp_path: Path, lines: list[str]
) -> None:
    server.play = lambda body, number: (
        refusal(400, "context length exceeded")
        if "q1" in body["messages"][-1]["content"]
        else completion("9 1" if ours_first(body) else "1 9")
    )
    data = {"koala": questions(tmp_path, 2)}
    (found,) = suite(server, data).run(subject)
    assert found.reason == [None, "no_answer"] and found.value == 1
    assert "did not answer 2 questions (first: 400 (context length exceeded))" in lines[-1]
    server.play = likes_ours("1 9", "9 1")
    (found,) = suite(server, data).run(subject)
    assert found.score.tolist() == [1, 0]


def test_keys_are_of_content_and_order(server: Server, subject: Subject) -> None:
    server.play = lambda body, number: completion("5 5\u2028odd line ends")
    where = f"openai:gpt-x@{server.url}"
    asked = [JudgeRequest("a", 0), JudgeRequest("a", 1), JudgeRequest("a", 0), JudgeRequest("b", 0)]
    found = LLMJudge(where, subject, FAST).ask(PAIR, asked, "t")
    assert [one.value for one in found] == [None] * 4 and len(server.bodies) == 9
    (kept,) = subject.folder.glob("judgements-*.jsonl")
    assert kept.read_text(encoding="utf-8").count("\n") == 9
    LLMJudge(where, subject, FAST).ask(PAIR, asked, "t")
    assert len(server.bodies) == 9
    LLMJudge(where.replace("gpt-x", "gpt-y"), subject, FAST).ask(PAIR, asked[:1], "t")
    assert len(server.bodies) == 12


def test_a_model_of_this_machine_as_judge(
    subject: Subject, tmp_path: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny models write nonsense; it is kept, and the model is not even loaded again."""
    from instdiff.engine import models as load

    where = str(models["llama"])
    referee = LLMJudge(where, subject)
    (found,) = referee.ask(PAIR, [JudgeRequest("compare a and b")], "t")
    assert found.reason == "unparsable" and len(referee.answers.path.read_text(encoding="utf-8").splitlines()) == 2
    assert subject.cost["judge_calls"] == 2 and subject.cost["judge_completion_tokens"] <= 2 * 64
    monkeypatch.setattr(load.Resident, "use", lambda *_: pytest.fail("loaded again"))
    assert LLMJudge(where, subject).ask(PAIR, [JudgeRequest("compare a and b")], "t") == [found]


# ── data and configuration ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.shared_data
def test_the_published_prompt_files(shared: Path) -> None:
    config = EvalConfig(judge="openai:m@http://h/v1", data_dir=str(shared / "data"), limit=None, max_new_tokens=7)
    general = general_suite(config)
    found = {task: read_items(path) for task, path in general.files.items()}
    counts = {task: len(items) for task, items in found.items()}
    assert counts == {
        **{"vicuna": 80, "koala": 180, "wizardlm": 218, "self_instruct": 252, "lima": 300},
        **{"alpaca_eval": 805, "arena_hard": 500, "mt_bench": 80},
    }
    assert list(counts) == list(TASKS) and general.sampling == Sampling(max_new_tokens=7)
    assert found["koala"][1].id == "koala_1" and found["wizardlm"][0].question.startswith("If a car travels 120 miles")
    assert found["self_instruct"][0].question.count("\n") == 1 and found["self_instruct"][0].output
    assert all(len(item.turns) == 2 for item in found["mt_bench"])
    assert set(general.usual) == {"alpaca_eval", "mt_bench"}


@pytest.mark.shared_data
def test_the_usual_reference_of_alpaca_eval(shared: Path, server: Server, subject: Subject) -> None:
    server.play = lambda body, number: completion("M")
    config = EvalConfig(judge=f"openai:m@{server.url}", data_dir=str(shared / "data"), task=["alpaca_eval"], limit=2)
    (found,) = general_suite(config).run(subject)
    assert found.details["reference"] == "gpt4_1106_preview" and found.score.tolist() == [0.5, 0.5]
    asked = [str(body["messages"][-1]["content"]) for body in server.bodies]
    assert sum("Several famous actors started their careers on Broadway" in said for said in asked) == 2


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="suite 'general' needs a judge"):
        general_suite(EvalConfig())
    with pytest.raises(ConfigError, match="must be written openai:MODEL@"):
        general_suite(EvalConfig(judge="openai:m"))
    judge = "openai:m@http://h/v1"
    with pytest.raises(ConfigError, match=r"no task 'vicunas'; did you mean 'vicuna'\?"):
        general_suite(EvalConfig(judge=judge, task=["vicunas"]))
    with pytest.raises(ConfigError, match="task 'koala' needs its prompts; give data_dir=FOLDER"):
        general_suite(EvalConfig(judge=judge, task=["koala"]))
    with pytest.raises(ConfigError, match=r"has none of koala_test_set.jsonl, .* for task 'koala'; give data.koala="):
        general_suite(EvalConfig(judge=judge, task=["koala"], data_dir=str(tmp_path)))
    bad = rows_in(tmp_path / "koala.jsonl", [{"prompt": "a"}, {"words": "b"}])
    with pytest.raises(DataError, match=r"koala.jsonl:2: no prompt; a row needs one of turns, instruction"):
        read_items(bad)
    rows_in(bad, [{"id": 1, "prompt": "a"}, {"id": 1, "prompt": "b"}])
    with pytest.raises(DataError, match="has the id '1' 2 times"):
        read_items(bad)
    assert read_items(bad, limit=1)[0].question == "a"
