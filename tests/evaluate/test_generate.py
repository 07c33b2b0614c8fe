"""Answers: what is written, by whom, and that nothing is written twice."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from helpers import ALPACA, by_hand
from instdiff.core import ModelRef, Settings
from instdiff.core.progress import Quiet
from instdiff.engine.generation.backend import GenerationRequest, Prompt, Sampling, cut_at_stop
from instdiff.engine.generation.generator import Generator, answers_in
from instdiff.engine.generation.server_backend import Server as Served
from instdiff.engine.generation.transformers_backend import Local, nucleus
from instdiff.engine.text.generate import Generator as Writes
from instdiff.engine.text.generate import rows_at_once
from instdiff.engine.text.judge import Answer, JudgeRef
from instdiff.errors import ConfigError, EngineError, PlanError
from instdiff.evaluation.subject import Subject, make_generator
from instdiff.store import Store
from instdiff.store.answers import AnswerCache
from judging import Reply, Server, completion, refusal

WARM = Sampling(n=3, temperature=1.0, top_p=0.9, max_new_tokens=8, seed=7)
PROMPTS = [Prompt(text) for text in ("why", "explain the blue sky and the green grass", "list 7 things", "7 and 12")]


class Bill(dict[str, float]):
    """What was spent."""

    def __call__(self, what: str, amount: float) -> None:
        self[what] = self.get(what, 0.0) + amount


def local(folder: Path, tmp_path: Path, log: Any = lambda line: None, **settings: Any) -> Local:
    how = Settings(**{"dtype": "float32", "device": "cpu", "templates": {"*": "alpaca"}, **settings})
    return Local(ModelRef(str(folder)), how, tmp_path / "memo", log)


def generator(backend: Any, folder: Path, bill: Bill | None = None, log: Any = lambda line: None) -> Generator:
    return Generator(backend, folder, bill if bill is not None else Bill(), log, Quiet())


# ── a model of this machine ───────────────────────────────────────────────────────────────────────────────────────────


def test_greedy_answers_are_those_of_a_loop_without_a_batch(lab: Any, models: dict[str, Path], tmp_path: Path) -> None:
    model, hf = lab.reference("llama"), lab.tokenizer("llama")
    expected = []
    for prompt in PROMPTS:
        told = by_hand(hf, {"instruction": prompt.text, "output": "x"}, 250)["given"]
        assert told is not None
        ids, written = told[0][:-1], []
        while len(written) < 6 and hf.eos_token_id not in written:
            with torch.no_grad():
                written.append(int(model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
        expected.append([hf.decode([i for i in written if i != hf.eos_token_id], skip_special_tokens=True)])
    got = generator(local(models["llama"], tmp_path), tmp_path).write(PROMPTS, Sampling(max_new_tokens=6))
    assert got == expected
    assert len({text for (text,) in got}) > 1


def test_memory_says_how_many_are_written_at_once(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smollm2 = SimpleNamespace(num_key_value_heads=3, head_dim=64, num_hidden_layers=30)
    asked = [("cpu", torch.float32, 300), ("cpu", torch.float32, 2048), ("cpu", torch.bfloat16, 2048)]
    assert [rows_at_once(smollm2, *how) for how in asked] == [64, 11, 22]
    assert rows_at_once(smollm2, "cpu", torch.float32, 100_000) == 4
    assert rows_at_once(smollm2, "cuda", torch.float32, 2048) == 64
    batches: list[int] = []
    write = Writes.generate

    def told(self: Writes, rows: Sequence[list[int]], *given: Any, **how: Any) -> list[list[int]]:
        batches.append(len(rows))
        return write(self, rows, *given, **how)

    monkeypatch.setattr(Writes, "generate", told)
    prompts = [Prompt(f"what is {number}") for number in range(70)]
    generator(local(models["llama"], tmp_path), tmp_path).write(prompts, Sampling(max_new_tokens=2))
    assert batches == [64, 6]


def test_draws_depend_on_prompt_seed_and_number_alone(models: dict[str, Path], tmp_path: Path) -> None:
    together = generator(local(models["llama"], tmp_path), tmp_path / "a").write(PROMPTS, WARM)
    backwards = generator(local(models["llama"], tmp_path, batch_tokens=1), tmp_path / "b").write(PROMPTS[::-1], WARM)
    assert backwards[::-1] == together
    alone = generator(local(models["llama"], tmp_path), tmp_path / "c").write([PROMPTS[2]], replace(WARM, n=2))
    assert alone == [together[2][:2]]
    assert all(len(set(answers)) == 3 for answers in together)
    other = generator(local(models["llama"], tmp_path), tmp_path / "d").write(PROMPTS, replace(WARM, seed=8))
    assert all(a != b for a, b in zip(together, other, strict=True))


def test_draws_follow_the_shares() -> None:
    """An even grid of numbers takes each token as often as its share says."""
    share = torch.tensor([[0.1, 0.5, 0.15, 0.25]], dtype=torch.float64).expand(1000, 4)
    grid = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    counts = np.bincount(nucleus(share, grid, 1.0)[:, 0].numpy(), minlength=4)
    assert counts.tolist() == [100, 500, 150, 250]
    # 0.5 + 0.25 reach 0.7: the two of them share all draws.
    counts = np.bincount(nucleus(share, grid, 0.7)[:, 0].numpy(), minlength=4)
    assert abs(counts - np.array([0, 1000 * 2 / 3, 0, 1000 / 3])).max() < 1
    assert nucleus(share[:1], torch.tensor([[1.0]], dtype=torch.float64), 1.0).item() == 3
    assert nucleus(share[:1], torch.tensor([[1.0]], dtype=torch.float64), 0.01).item() == 1


def test_a_text_that_ends_an_answer_is_no_part_of_it(models: dict[str, Path], tmp_path: Path) -> None:
    plain = generator(local(models["llama"], tmp_path), tmp_path / "a")
    full = plain.write(PROMPTS, Sampling(max_new_tokens=12))
    stop = full[1][0][3:5]
    assert stop.strip()
    bill = Bill()
    cut = generator(local(models["llama"], tmp_path), tmp_path / "b", bill).write(
        PROMPTS, Sampling(max_new_tokens=12, stop=(stop,))
    )
    assert cut == [[cut_at_stop(text, (stop,))] for (text,) in full]
    assert bill["generated_tokens"] < 12 * len(PROMPTS)
    assert cut_at_stop("a b c", ("c", "b")) == "a " and cut_at_stop("abc", ()) == "abc"


def test_answers_end_where_the_context_does(models: dict[str, Path], tmp_path: Path) -> None:
    lines: list[str] = []
    bill = Bill()
    backend = local(models["llama"], tmp_path)
    start = len(backend._side.rows([GenerationRequest("", Prompt("x", raw=True), "x", 0)])[0][1]) - 1
    some = [Prompt("7" * (256 - start - left), raw=True) for left in (0, 3, 5)] + [Prompt("7", raw=True)]
    got = generator(backend, tmp_path, bill, lines.append).write(some, Sampling(max_new_tokens=5))
    assert got[0] == [""] and "too long for a model of 256 tokens" in lines[0]
    assert bill["unanswered"] == 1 and bill["generated_tokens"] <= 3 + 5 + 5
    assert bill["prompt_tokens"] == 253 + 251 + start + 1


def test_what_does_not_fit_into_memory_is_halved(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generator(local(models["llama"], tmp_path), tmp_path / "a").write(PROMPTS, WARM)
    sizes: list[int] = []
    real = Writes.generate

    def small(self: Writes, prompts: list[list[int]], room: int, *how: Any) -> Any:
        if len(prompts) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(prompts))
        return real(self, prompts, room, *how)

    monkeypatch.setattr(Writes, "generate", small)
    lines: list[str] = []
    got = generator(local(models["llama"], tmp_path, lines.append), tmp_path / "b").write(PROMPTS, WARM)
    assert got == expected and sizes == [3] * 4
    assert [line for line in lines if "out of memory" in line] == [
        f"out of memory: '{models['llama']}' goes on with {rows} answers at once" for rows in (6, 3)
    ]

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Writes, "generate", full)
    with pytest.raises(EngineError, match="one prompt does not fit into memory"):
        generator(local(models["llama"], tmp_path), tmp_path / "c").write(PROMPTS, WARM)


def test_prompts_are_shown_as_training_shows_them(models: dict[str, Path], tmp_path: Path) -> None:
    backend = local(models["llama"], tmp_path)
    assert backend.prompt_text(Prompt("why")) == ALPACA.replace("{instruction}", "why")
    assert backend.prompt_text(Prompt("why", system="Be brief.")).startswith("Be brief.\n\nBelow is")
    assert backend.prompt_text(Prompt("{why}", raw=True)) == "{why}"
    chat = local(models["llama"], tmp_path, templates={"*": "chat"})
    said = "<|im_start|>system\nBrief.<|im_end|>\n<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"
    assert chat.prompt_text(Prompt("why", system="Brief.")) == said
    ((_, ids),) = chat._side.rows([GenerationRequest("", Prompt("why"), chat.prompt_text(Prompt("why")), 0)])
    assert ids[0] == chat._side.tokenizer.hf.convert_tokens_to_ids("<|im_start|>")
    ((_, ids),) = backend._side.rows([GenerationRequest("", Prompt("why"), backend.prompt_text(Prompt("why")), 0)])
    assert ids[0] == chat._side.tokenizer.bos


# ── what is kept ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Echo:
    """Writes what it was shown, two at a time, and counts."""

    name, fingerprint = "echo", "m1"

    def __init__(self, ends_after: int = 10**6) -> None:
        self.asked: list[str] = []
        self.left = ends_after

    def prompt_text(self, prompt: Prompt) -> str:
        return prompt.text

    def write(
        self, asked: Sequence[GenerationRequest], sampling: Sampling
    ) -> Iterator[list[tuple[GenerationRequest, Answer]]]:
        for start in range(0, len(asked), 2):
            some = asked[start : start + 2]
            if self.left < len(some):
                raise KeyboardInterrupt
            self.left -= len(some)
            self.asked += [one.prompt_text for one in some]
            yield [(one, Answer(f"{one.prompt_text} {one.seed % 1000}", "", 3, 2, 0.5)) for one in some]


def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    whole, bill = Echo(), Bill()
    expected = generator(whole, tmp_path / "whole", bill).write(PROMPTS, WARM)
    assert len(whole.asked) == 12
    with pytest.raises(KeyboardInterrupt):
        generator(Echo(ends_after=5), tmp_path / "torn").write(PROMPTS, WARM)
    (file,) = (tmp_path / "torn").iterdir()
    file.write_bytes(file.read_bytes()[:-9])  # and its last line is torn
    again, resumed = Echo(), Bill()
    assert generator(again, tmp_path / "torn", resumed).write(PROMPTS, WARM) == expected
    assert len(again.asked) == 12 - 3
    assert resumed == bill == {"answers": 12, "prompt_tokens": 36, "generated_tokens": 24, "seconds": 6.0}
    last = Echo()
    assert generator(last, tmp_path / "torn").write(PROMPTS, WARM) == expected and not last.asked


def test_an_answer_is_kept_by_all_that_it_depends_on(tmp_path: Path) -> None:
    def written(sampling: Sampling, mark: str = "m1") -> int:
        backend = Echo()
        backend.fingerprint = mark
        generator(backend, tmp_path).write(PROMPTS[:1], sampling)
        return len(backend.asked)

    assert written(WARM) == 3 and written(WARM) == 0
    assert written(replace(WARM, n=5)) == 2
    changes: list[dict[str, Any]] = [
        {"seed": 1}, {"temperature": 0.5}, {"top_p": 0.5}, {"stop": ("x",)}, {"max_new_tokens": 9}
    ]  # fmt: skip
    assert [written(replace(WARM, **change)) for change in changes] == [3] * 5
    assert written(WARM, "m2") == 3
    # The likeliest tokens have no seed and no second answer.
    assert written(replace(WARM, temperature=0.0)) == 1
    assert written(replace(WARM, temperature=0.0, seed=1, top_p=0.1)) == 0


def test_equal_prompts_are_written_once(tmp_path: Path) -> None:
    backend = Echo()
    first, second = generator(backend, tmp_path).write([PROMPTS[0], PROMPTS[0]], WARM)
    assert first == second and len(backend.asked) == 3


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = ["", "a\nb\r\u2028\x85", "é😀", '"}{"', "\udc80"]

    class Fixed(Echo):
        def write(self, asked: Sequence[GenerationRequest], sampling: Sampling) -> Any:
            yield [(one, Answer(dict(zip(given, texts, strict=True))[one.prompt_text], "", 1, 2, 3.0)) for one in asked]

    given = [str(at) for at in range(len(texts))]
    assert generator(Fixed(), tmp_path).write([Prompt(one) for one in given], Sampling()) == [[text] for text in texts]
    with (tmp_path / "answers-m1.jsonl").open("a") as file:
        file.write('[]\nnull\n{"key": 1}\n')
    again = Echo()
    assert generator(again, tmp_path).write([Prompt(one) for one in given], Sampling()) == [[text] for text in texts]
    assert not again.asked
    cache = answers_in(tmp_path, "m1")
    assert "1" not in cache and cache["1"] == []


def test_answers_that_another_process_appends_are_seen_once(tmp_path: Path) -> None:
    path, told = tmp_path / "kept.jsonl", [{"key": "a", "text": f"{i}\ud800"} for i in range(4)]
    ours, theirs = (AnswerCache(path, lambda line: str(line["text"])) for _ in range(2))
    ours.keep(told[:1])
    theirs.keep(told[1:2])
    assert len(ours["a"]) == 1
    ours.refresh()
    ours.refresh()
    assert ours["a"] == theirs["a"] == [one["text"] for one in told[:2]]
    whole = path.read_bytes()
    theirs.keep(told[2:3])
    written = path.read_bytes()
    path.write_bytes(written[:-9])  # as it is while another process writes
    ours.refresh()
    assert len(ours["a"]) == 2
    path.write_bytes(written)
    ours.keep(told[3:])
    assert ours["a"] == [one["text"] for one in told] and path.read_bytes().startswith(whole)


def test_an_answer_that_did_not_come_is_not_kept(tmp_path: Path) -> None:
    class Lost(Echo):
        def write(self, asked: Sequence[GenerationRequest], sampling: Sampling) -> Any:
            yield [(one, Answer(None, "away")) for one in asked]

    assert generator(Lost(), tmp_path).write(PROMPTS[:1], Sampling()) == [[""]]
    echo = Echo()
    generator(echo, tmp_path).write(PROMPTS[:1], Sampling())
    assert echo.asked == ["why"]


# ── a server ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    playing.play = lambda body, number: completion(f"said {shown_in(body)} END more")
    yield playing
    playing.close()


def shown_in(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def served(server: Server, layout: str | None = None, **options: Any) -> Served:
    ref = JudgeRef("m", server.url)
    return Served(ref, layout, lambda line: None, **{"pause": 0.01, "timeout": 5.0, "concurrency": 2, **options})


def test_a_server_is_asked_in_a_chat_and_never_twice(server: Server, tmp_path: Path) -> None:
    how, bill = replace(WARM, n=2, stop=("END",)), Bill()
    got = generator(served(server), tmp_path, bill).write([*PROMPTS, Prompt("hi", system="Brief.")], how)
    assert got == [[f"said {text} "] * 2 for text in [*(prompt.text for prompt in PROMPTS), "hi"]]
    assert len(server.bodies) == 10 and {head["path"] for head in server.headers} == {"/v1/chat/completions"}
    body = next(body for body in server.bodies if shown_in(body) == "hi")
    assert body["messages"][0] == {"role": "system", "content": "Brief."}
    assert (body["model"], body["temperature"], body["top_p"], body["max_tokens"]) == ("m", 1.0, 0.9, 8)
    assert body["stop"] == ["END"] and "response_format" not in body
    assert len({body["seed"] for body in server.bodies}) == 10
    assert (bill["prompt_tokens"], bill["generated_tokens"]) == (100, 20)
    moved = Server()  # the same model at another address
    assert generator(served(moved), tmp_path).write([*PROMPTS, Prompt("hi", system="Brief.")], how) == got
    assert not moved.bodies
    moved.close()


def test_a_text_template_goes_to_a_server_as_text(server: Server, tmp_path: Path) -> None:
    server.play = lambda body, number: (200, {"choices": [{"text": " yes"}], "usage": {}}, {})
    got = generator(served(server, "alpaca"), tmp_path).write([Prompt("why"), Prompt("raw ", raw=True)], Sampling())
    assert got == [[" yes"], [" yes"]]
    assert {head["path"] for head in server.headers} == {"/v1/completions"}
    assert {body["prompt"] for body in server.bodies} == {ALPACA.replace("{instruction}", "why"), "raw "}
    assert all("seed" not in body and body["temperature"] == 0.0 for body in server.bodies)


def test_a_server_that_goes_away_is_paid_once_for_each_answer(server: Server, tmp_path: Path) -> None:
    answered: list[str] = []

    def play(body: dict[str, Any], number: int) -> Reply:
        if "seed" in body:
            return refusal(400, "unknown field seed")
        if number % 5 == 2:
            return refusal(429, "slow down")
        if len(answered) >= 5 and not back:
            return refusal(401, "no more money")
        answered.append(shown_in(body))
        return completion("fine")

    server.play, back = play, []
    prompts = [Prompt(f"p{number}") for number in range(12)]
    how = replace(WARM, n=1)
    with pytest.raises(EngineError, match=r"the model's server at .* answered 401"):
        generator(served(server), tmp_path).write(prompts, how)
    back.append(True)
    assert generator(served(server), tmp_path).write(prompts, how) == [["fine"]] * 12
    assert sorted(answered) == sorted(prompt.text for prompt in prompts)


def test_a_prompt_that_a_server_refuses_is_an_empty_answer_and_said(server: Server, tmp_path: Path) -> None:
    def play(body: dict[str, Any], number: int) -> Reply:
        return refusal(400, "context too long") if shown_in(body) == "why" else completion("fine")

    server.play = play
    lines: list[str] = []
    got = generator(served(server), tmp_path, log=lines.append).write(PROMPTS, Sampling())
    assert got == [[""], ["fine"], ["fine"], ["fine"]]
    assert len(lines) == 1 and "no answer to 1 prompts" in lines[0] and "context too long" in lines[0]


# ── vLLM, and what is not there ───────────────────────────────────────────────────────────────────────────────────────


def make(spec: str, model: Path, tmp_path: Path) -> Generator:
    how = Settings(dtype="float32", device="cpu")
    nobody: Any = None
    ref, log = ModelRef(str(model)), lambda line: None
    return make_generator(spec, Subject("m", ref, how, Store(tmp_path), tmp_path, nobody, log, Quiet()))


def test_what_is_not_there_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"needs vllm, which is missing; run: pip install "):
        make("vllm", models["llama"], tmp_path)
    with pytest.raises(ConfigError, match="unknown generator 'vlm'; did you mean 'vllm'"):
        make("vlm", models["llama"], tmp_path)
    with pytest.raises(ConfigError, match="must be written openai:MODEL@"):
        make("openai:m", models["llama"], tmp_path)


def test_vllm_is_given_tokens_and_a_seed_for_each_answer(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[Any], list[Any], Any]] = []

    class LLM:
        def __init__(self, model: str, dtype: str, trust_remote_code: bool) -> None:
            assert not trust_remote_code
            assert (model, dtype) == (str(models["llama"]), "float32")

        def generate(self, prompts: list[Any], params: list[Any], use_tqdm: bool, lora_request: Any) -> list[Any]:
            calls.append((prompts, params, lora_request))
            out = types.SimpleNamespace(text="yes STOP no", token_ids=[1, 2, 3], finish_reason="stop")
            return [types.SimpleNamespace(outputs=[out]) for _ in prompts]

    fake: Any = types.ModuleType("vllm")
    fake.__spec__ = types.SimpleNamespace(name="vllm")
    fake.LLM, fake.SamplingParams = LLM, lambda **how: how
    monkeypatch.setitem(sys.modules, "vllm", fake)
    made = make("vllm", models["llama"], tmp_path)
    assert made.write(PROMPTS, replace(WARM, stop=("STOP",))) == [["yes "] * 3] * 4
    ((prompts, params, adapter),) = calls
    assert len(prompts) == 12 and adapter is None
    lengths = [len(prompt["prompt_token_ids"]) for prompt in prompts]
    assert lengths == sorted(lengths, reverse=True)
    assert len({how["seed"] for how in params}) == 12
    assert {(how["n"], how["temperature"], how["top_p"], how["max_tokens"]) for how in params} == {(1, 1.0, 0.9, 8)}
    kept = [json.loads(line) for line in made.written.path.read_text().splitlines()]
    assert {(line["text"], line["generated"]) for line in kept} == {("yes ", 3)}
