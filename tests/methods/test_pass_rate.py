"""Pass rates: the posterior and its band, answers that are drawn once, what is right, and what comes of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy.special import betainc, betaincinv

import instdiff
from instdiff import Settings, Store
from instdiff.core import ModelRef
from instdiff.core.signals import CUT, RIGHT, UNVERIFIED, WRONG, Posed
from instdiff.engine.text.generate import Generator as Writes
from instdiff.errors import ConfigError
from instdiff.grading.verify import Check, verify
from instdiff.methods import Longest, PassRate, Then
from instdiff.methods.algorithms.beta import beta_mass, beta_place
from instdiff.methods.pass_rate import Undecided
from instdiff.rendering.posed import checks
from instdiff.scoring.planner import plan
from instdiff.scoring.workbench import Workbench
from judging import Server, completion

from .columns import ragged, run, signals

HOW = Settings(dtype="float32", device="cpu", templates={"*": "plain"})
SKILLS = {"base": "builtin:skills"}
EXACT = {"verifier": "exact", "max_tokens": 8}


# ── the posterior ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_incomplete_beta_function_is_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b, x = rng.uniform(0.1, 40, 2000), rng.uniform(0.1, 40, 2000), rng.uniform(0, 1, 2000)
    assert np.allclose(beta_mass(a, b, x), betainc(a, b, x), atol=1e-12)
    assert np.allclose(beta_place(a, b, 0.05), betaincinv(a, b, 0.05), atol=1e-12)
    assert beta_mass(a[:1], b[:1], 0.0) == 0 and beta_mass(a[:1], b[:1], 1.0) == 1


@pytest.mark.parametrize(
    ("prior", "right", "drawn", "expected"),
    [
        (1, 0, 4, 0.3274), (1, 2, 4, 0.8842), (1, 4, 8, 0.9608), (1, 0, 8, 0.1342), (1, 0, 16, 0.0225),
        (0.5, 0, 4, 0.1676), (0.5, 0, 8, 0.0549),
    ],
)  # fmt: skip
def test_the_mass_inside_the_band(prior: float, right: int, drawn: int, expected: float) -> None:
    method = PassRate(prior=prior)
    assert method.mass(np.array([drawn * 1.0]), np.array([right * 1.0]))[0] == pytest.approx(expected, abs=5e-5)


R, W, U, C = RIGHT, WRONG, UNVERIFIED, CUT


def test_what_answers_make_of_a_row() -> None:
    s = signals(
        5,
        [None] * 5,
        answers0=ragged([R, W, R, W], [W, W, W, W], [R, R, R, R], [U, U, U, U], [C, R, U, W]),
        on4=np.array([1, 1, 0, 0, 1]),
        answers4=ragged([R, W, R, W], [W, W, C, C], [R, R, R, R], [], [R, R, W, W]),
    )
    found = run(PassRate(most=8), s)
    assert found.reason.tolist() == [None, "filtered", "filtered", "no_verdict", None]
    details = {name: np.nan_to_num(column, nan=-1).tolist() for name, column in found.details.items()}
    assert details["drawn"] == [8, 8, 4, 0, 7] and details["right"] == [4, 0, 4, 0, 3]
    assert details["rate"] == [0.5, 0, 1, -1, pytest.approx(3 / 7)] and details["cut"] == [0, 2, 0, -1, 1]
    assert details["decided"][:2] == [1, 1] and details["decided"][2] == 0  # 4 of 4 may still lie in the band
    assert details["low"][1] == 0 and details["high"][2] == 1
    assert details["low"][0] == pytest.approx(betaincinv(4.5, 4.5, 0.05))
    hard = run(PassRate(most=8, order="hard"), s)
    assert hard.value[0] == pytest.approx(-0.5) and hard.best().tolist() == [4, 0]


def test_rows_that_are_undecided_draw_again() -> None:
    method = PassRate()
    s = signals(4, [None, None, "no_answer", None], answers0=ragged([W] * 4, [R, W, R, W], [], [U] * 4))
    assert Undecided(method, 4).contenders(s).tolist() == [True, True, False, True]
    later = signals(2, on4=np.ones(2), answers0=ragged([W] * 4, [R] * 4), answers4=ragged([W] * 4, [R, R, R, W]))
    assert Undecided(method, 8).contenders(later).tolist() == [False, True]  # 0 of 8 is out, 7 of 8 is not


def test_steps_are_waves() -> None:
    waves = plan(PassRate(step=4, most=10).signals().values())
    assert [[m.draws for step in wave for m in step.measures] for wave in waves] == [[4], [4], [2]]  # type: ignore[attr-defined]
    assert len(plan(PassRate(step=16).signals().values())) == 1


@pytest.mark.parametrize(
    "wrong", [{"band": "0.8-0.2"}, {"band": "half"}, {"step": 0}, {"delta": 0.7}, {"temperature": 0}]
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="pass_rate"):
        PassRate(**wrong)


# ── which answers are right ───────────────────────────────────────────────────────────────────────────────────────────


def check(gold: str, verifier: str = "auto", **more: str) -> Check:
    return Check.of({"verifier": verifier, "gold": gold, **more})


def test_how_an_answer_is_checked_goes_by_the_row() -> None:
    assert check("so it is 7.\n#### 7") == Check("math", "7")
    assert check("thus \\boxed{\\frac{1}{2}}") == Check("math", "\\frac{1}{2}")
    assert check("$x^2$").how == check("1,200").how == "math"
    assert check("the red hat").how == "exact" and check("7", "exact").how == "exact"
    assert check("", tests="assert f(1) == 2").how == "code" and check("", "judge").how == "judge"


def test_answers_are_right_or_wrong_or_without_a_verdict() -> None:
    answers = [
        (check("red  hat"), "red hat\n"), (check("red hat"), "<think>red</think>red hat"), (check("red hat"), "hat"),
        (check("#### 42"), "It is 42."), (check("#### 42"), "It is 41."), (check("", "judge"), "yes"),
    ]  # fmt: skip
    assert verify(answers) == [True, True, False, True, False, None]


def test_programs_are_run_against_the_tests_of_the_row() -> None:
    row = {"prompt": "Write inc.", "test_list": ["assert inc(1) == 2", "assert inc(-1) == 0"], "task_id": 1}
    pool = instdiff.load([row], format="prompt")
    one = Check.of(json.loads(checks(Posed(), pool)[0]))
    said = ["```python\ndef inc(x):\n    return x + 1\n```", "```python\ndef inc(x):\n    return 2\n```"]
    assert verify([(one, text) for text in said]) == [True, False]


def test_rows_without_an_answer_or_with_several_turns() -> None:
    talk = [{"role": role, "content": "x"} for role in ("user", "assistant", "user", "assistant")]
    rows = [
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": talk},
        {"messages": [{"role": "user", "content": "q"}], "answer": 7},
        {"instruction": "q", "output": "the response"},
    ]
    pool = instdiff.load(rows)
    found = checks(Posed(), pool)
    assert found.reason.tolist() == ["no_answer", "several_turns", None, None]
    assert [json.loads(found[at])["gold"] for at in (2, 3)] == ["7", "the response"]
    assert checks(Posed("judge"), pool).reason.tolist() == [None, "several_turns", None, None]
    assert checks(Posed("code"), pool).reason.tolist() == ["no_answer", "several_turns", "no_answer", "no_answer"]
    tested = instdiff.load([{"prompt": "Write inc.", "test_list": ["assert inc(1) == 2"]}], format="prompt")
    named = {how: checks(Posed(how), tested).reason.tolist() for how in ("auto", "code", "exact", "math")}
    assert named == {"auto": [None], "code": [None], "exact": ["no_answer"], "math": ["no_answer"]}


# ── drawing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def skills(rows: int = 24) -> Any:
    return instdiff.load("builtin:skills", limit=rows)


def scored(pool: Any, store: Any, **params: Any) -> Any:
    return instdiff.score(pool, PassRate(**EXACT | params), SKILLS, settings=HOW, store=store)["pass_rate"]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each batch wrote."""
    sizes, real = list[int](), Writes.generate
    monkeypatch.setattr(Writes, "generate", lambda *a, **how: (sizes.append(len(a[1])), real(*a, **how))[1])
    return sizes


def test_a_model_knows_its_skills_and_more_answers_draw_what_lacks(tmp_path: Path, written: list[int]) -> None:
    pool = skills()
    kind = np.array(pool.column("kind"))
    few = scored(pool, tmp_path, step=4, most=4)
    assert few.details["rate"][kind == "known"].min() >= 0.75 and few.details["rate"][kind == "noise"].max() <= 0.25
    assert few.details["drawn"].tolist() == [4.0] * len(pool) and sum(written) == 4 * len(pool)
    written.clear()
    every = scored(pool, tmp_path, step=12, most=12)
    assert sum(written) == 8 * len(pool)  # the first four are there
    assert np.all(every.details["right"] >= few.details["right"])
    written.clear()
    steps = scored(pool, tmp_path, step=4, most=12)
    assert written == [] and len(pool) * 8 <= steps.details["drawn"].sum() < 12 * len(pool)
    whole = steps.details["drawn"] == 12
    assert steps.details["decided"][~whole].all() and set(steps.reason) <= {None, "filtered"}
    assert np.array_equal(steps.eligible, steps.details["p_band"] >= 0.5)
    assert np.array_equal(steps.details["right"][whole], every.details["right"][whole])


def test_what_was_written_before_a_kill_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = Writes.generate, list[int]()

    def stopping(self: Writes, prompts: Any, room: int, *how: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt  # the second batch, once
        return real(self, prompts, room, *how)

    monkeypatch.setattr(Writes, "generate", stopping)
    with pytest.raises(KeyboardInterrupt):
        scored(skills(), tmp_path, step=4, most=4)
    found = scored(skills(), tmp_path, step=4, most=4)
    assert calls[0] > 0 and sum(calls[2:]) == 4 * len(skills()) - calls[0]
    assert np.array_equal(found.details["right"], scored(skills(), tmp_path / "new", step=4, most=4).details["right"])


def test_the_tokens_shown_are_those_of_the_prompt(tmp_path: Path) -> None:
    pool = instdiff.load([{"instruction": "copy the words", "input": "red blue", "output": "red blue"}])
    bench = Workbench(pool, {"base": ModelRef("builtin:skills")}, HOW, Store(tmp_path))
    shown, whole = bench.render("base", Posed()), bench.render("base", instdiff.core.Prompted())
    ids = shown.tokens.ids[0]
    assert len(ids) and np.array_equal(whole.tokens.ids[0][: len(ids)], ids)
    assert whole.tokens.target[len(ids)] and not whole.tokens.target[: len(ids)].any()


def test_what_the_store_has_beside_does_not_matter(tmp_path: Path) -> None:
    pool = skills()
    fresh = scored(pool, tmp_path / "fresh", step=4, most=12).details["drawn"]
    scored(pool, tmp_path / "full", step=4, most=12, delta=0.001)
    assert np.array_equal(scored(pool, tmp_path / "full", step=4, most=12).details["drawn"], fresh)
    assert fresh.min() == 8


KNOWN = next(row for row in instdiff.load("builtin:skills", limit=200).source_rows() if row["kind"] == "known")


def test_a_prompt_with_another_answer_is_another_row(tmp_path: Path) -> None:
    found = scored(instdiff.load([KNOWN, KNOWN | {"output": "red"}]), tmp_path, step=4, most=4)
    assert found.details["right"].tolist() == [4, 0]


def test_a_plan_prices_what_is_written(tmp_path: Path) -> None:
    pool, method = skills(6), PassRate(**EXACT, most=8)
    bill = instdiff.plan(pool, method, SKILLS, settings=HOW, store=tmp_path)
    assert [p.most_tokens_out for p in bill.passes] == [6 * 4 * 8] * 2 and bill.seconds > 0
    assert [p.estimated for p in bill.passes] == [False, True]
    scored(pool, tmp_path, most=8)
    assert instdiff.plan(pool, method, SKILLS, settings=HOW, store=tmp_path).seconds == 0


# ── servers ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server() -> Any:
    made = Server()
    yield made
    made.close()


def test_a_policy_behind_a_server(server: Server, tmp_path: Path) -> None:
    server.play = lambda body, number: completion("It is 8." if "7" in body["messages"][-1]["content"] else "no")
    rows = [{"instruction": "7 + 1?", "output": "8"}, {"instruction": "2 + 1?", "output": "3"}]
    where, settings = {"policy": f"openai:m@{server.url}"}, Settings(device="cpu")
    method = PassRate(step=2, most=2, model="policy", band="0.1-1")
    found = instdiff.score(instdiff.load(rows), method, where, settings=settings, store=tmp_path)["pass_rate"]
    assert found.details["right"].tolist() == [2, 0] and len(server.bodies) == 4
    assert len({body["seed"] for body in server.bodies}) == 4
    assert {body["temperature"] for body in server.bodies} == {0.7}
    bill = instdiff.plan(instdiff.load(rows), PassRate(step=2, most=4, model="policy"), where, settings=settings,
                         store=tmp_path / "new")  # fmt: skip
    assert [p.calls for p in bill.passes] == [4, 4] and bill.seconds == 0


def test_a_judge_says_what_is_right(server: Server, tmp_path: Path) -> None:
    def play(body: dict[str, Any], number: int) -> Any:
        gold = re.search(r"Reference answer\s+(.+)", body["messages"][-1]["content"])
        return completion('{"score": 1}' if gold and gold[1] == KNOWN["output"] else '{"score": 0}')

    server.play = play
    pool = instdiff.load([KNOWN, KNOWN | {"output": "another"}])
    with pytest.raises(instdiff.PlanError, match="needs a model for role 'judge'"):
        scored(pool, tmp_path, verifier="judge")
    models = {**SKILLS, "judge": f"openai:j@{server.url}"}
    method = PassRate(step=2, most=2, verifier="judge", max_tokens=8)
    found = instdiff.score(pool, method, models, settings=HOW, store=tmp_path)["pass_rate"]
    assert found.details["right"].tolist() == [2, 0]
    asked = len(server.bodies)
    instdiff.score(pool, method, models, settings=HOW, store=tmp_path)
    assert len(server.bodies) == asked  # what it said is kept


# ── what comes of them ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def chosen(tmp_path: Path) -> Any:
    pool = skills()
    table = instdiff.score(pool, PassRate(**EXACT, step=4, most=4, band="0-1"), SKILLS, settings=HOW, store=tmp_path)
    return instdiff.select(pool, table, 6)


def test_prompts_with_rates_for_trl(chosen: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    done = chosen.export("grpo", tmp_path / "out")
    rows = [json.loads(line) for line in done.files[0].read_text(encoding="utf-8").splitlines()]
    assert [row["pass_rate"] for row in rows] == chosen.scored.details["rate"][chosen.at].tolist()
    first = next(chosen.to_pool().samples())
    assert rows[0]["prompt"] == [{"role": "user", "content": f"{first.instruction}\n{first.input}".strip()}]
    assert rows[0]["answer"] == first.response and rows[0].keys() == {"prompt", "answer", "pass_rate"}
    data = load_dataset("json", data_files=str(done.files[0]), split="train", cache_dir=str(tmp_path / "cache"))
    assert data.column_names == ["prompt", "answer", "pass_rate"]


def test_prompts_with_rates_for_verl(chosen: Any, tmp_path: Path) -> None:
    done = chosen.export("verl", tmp_path / "out", name="mine")
    table = pq.read_table(done.files[0])
    assert table.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    row, first = table.slice(0, 1).to_pylist()[0], next(chosen.to_pool().samples())
    assert row["data_source"] == "mine" and row["ability"] == "text"
    assert row["reward_model"] == {"style": "rule", "ground_truth": first.response}
    assert row["extra_info"]["index"] == int(chosen.rows[0]) and row["extra_info"]["drawn"] == 4


@pytest.mark.parametrize("which", ["first", "shortest"])
def test_rows_with_the_models_own_right_answer(which: str, tmp_path: Path) -> None:
    pool = skills()
    table = instdiff.score(pool, PassRate(**EXACT, step=4, most=4, band="0-1"), SKILLS, settings=HOW, store=tmp_path)
    chosen = instdiff.select(pool, table, len(pool))
    says: list[str] = []
    done = chosen.export("jsonl", tmp_path / "out", responses=which, log=says.append)
    made, solved = instdiff.load(done.files[0]), np.flatnonzero(chosen.scored.details["right"][chosen.at])
    assert len(made) == len(solved) < len(pool) and f"{len(solved)} of {len(pool)} rows" in says[-1]
    for one, at in zip(made.samples(), solved, strict=True):
        own = pool.sample(int(chosen.at[at]))
        assert one.response.split() == own.response.split() and own.instruction in one.instruction
    assert made.column("kind") == [pool.column("kind")[int(chosen.at[at])] for at in solved]


def test_the_shortest_right_answer_is_that_of_the_fewest_tokens() -> None:
    from instdiff.scoring.drawn import Drawn

    one = Drawn(0.5, 6, Check("exact"), (("long one", 9), ("short", 3), ("other", 3)))
    assert (one.pick("first"), one.pick("shortest")) == ("long one", "short")
    assert Drawn(0.0, 4, Check("exact"), ()).pick("first") is None


def test_right_answers_after_those_without_a_verdict_are_read() -> None:
    from instdiff.scoring import drawn

    class Bench:
        pool = (0,)

        def signals(self, method: PassRate) -> Any:
            return signals(1, answers0=ragged([U] * 4), on4=np.ones(1), answers4=ragged([R, R, W, R]))

        def render(self, role: str, view: Posed) -> Any:
            rows = SimpleNamespace(take=lambda at: at)
            return SimpleNamespace(checks=[json.dumps({"verifier": "exact", "gold": "7"})], rows=rows)

        def solver(self, role: str, measure: Any) -> Any:
            def kept(at: Any, of: Any) -> list[list[Any]]:
                return [[SimpleNamespace(text=f"{of.first + n}", completion_tokens=1) for n in range(4)] for _ in at]

            return SimpleNamespace(drawn=kept)

    (one,) = drawn._read(Bench(), PassRate(most=8))  # type: ignore[arg-type]
    assert (one.rate, one.drawn) == (0.75, 4) and [text for text, _ in one.right] == ["4", "5", "7"]


def test_rows_of_another_method_have_no_answers(tmp_path: Path) -> None:
    pool = skills(6)
    picked = instdiff.select(pool, instdiff.score(pool, "longest", store=tmp_path), 3)
    with pytest.raises(ConfigError, match="were not selected by pass_rate"):
        picked.export("grpo", tmp_path / "out")


def test_a_filter_of_pass_rates_before_another_method(tmp_path: Path) -> None:
    pool = skills()
    first = PassRate(**EXACT, step=4, most=4, band="0.5-1")
    method = Then(first, ">=0.5", Longest())
    table = instdiff.score(pool, method, SKILLS, settings=HOW, store=tmp_path)
    picked = instdiff.select(pool, table, 4)
    done = picked.export("grpo", tmp_path / "out")
    rows = [json.loads(line) for line in done.files[0].read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 4 and all(row["pass_rate"] >= 0.5 for row in rows)
