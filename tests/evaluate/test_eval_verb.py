"""``instdiff eval`` through the command line: tables, files, going on, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.shell import ROWS, cli, make_model, ok, write_jsonl
from helpers import by_hand, reference
from instdiff.config.base import load as load_config
from instdiff.config.evaluate import EvalConfig
from instdiff.engine.text.generate import Generator
from instdiff.errors import ConfigError
from instdiff.evaluation.evaluator import evaluate, result_paths
from instdiff.evaluation.results import read_results
from instdiff.evaluation.suites import SUITES, distinct, make_suites
from judging import Server, completion

pytest.importorskip("math_verify")

FEW = ("--n", "2", "--temperature", "0.7", "--max-new-tokens", "6", "--dtype", "float32", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_model(tmp_path_factory.mktemp("models") / "base", seed=1))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "here"
    (here / "data" / "gsm8k").mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    write_jsonl("my.jsonl", ROWS)
    write_jsonl("data/gsm8k/test.jsonl", [{"question": f"{n} + {n}?", "answer": f"#### {2 * n}"} for n in range(5)])
    write_jsonl("amc.jsonl", [{"problem": "1?", "answer": "1"}, {"problem": "2?", "answer": "2"}])
    return here


@pytest.fixture
def server() -> Iterator[Server]:
    playing = Server()
    yield playing
    playing.close()


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Answers of every batch that a model really writes."""
    sizes: list[int] = []
    real = Generator.generate

    def counting(self: Generator, prompts: list[list[int]], room: int, *how: Any) -> Any:
        sizes.append(len(prompts))
        return real(self, prompts, room, *how)

    monkeypatch.setattr(Generator, "generate", counting)
    return sizes


def test_a_suite_gives_a_table_and_a_file_and_goes_on(model: str, written: list[int]) -> None:
    command = ("eval", "--model", model, "--suite", "math", "--task", "gsm8k", "--data-dir", "data", *FEW)
    ran = ok(*command, "--output", "results.json")
    assert sum(written) == 10
    lines = ran.out.splitlines()
    assert lines[0].split() == ["suite", "task", "metric", "value", "95", "%", "interval", "scored", "of"], lines
    assert lines[2].split()[:3] == ["math", "gsm8k", "accuracy"] and lines[2].split()[-2:] == ["5", "5"]
    found = read_results(Path("results.json"))
    assert (found.suite, found.model, [task.name for task in found.tasks]) == ("math", model, ["gsm8k"])
    assert found.settings["n"] == 2 and found.settings["template"] == "alpaca"
    assert found.settings["dtype"] == "float32" and len(found.settings["fingerprint"]) == 32
    assert found.cost["answers"] == 10 and 0 < found.cost["generated_tokens"] <= 60
    assert found.cost["prompt_tokens"] > 10 * 100 and found.cost["wall_seconds"] > 0
    ok(*command, "--output", "again.json")
    assert sum(written) == 10
    again = read_results(Path("again.json"))
    assert again["gsm8k"].score.tolist() == found["gsm8k"].score.tolist()
    assert {k: v for k, v in again.cost.items() if k != "wall_seconds"} == {
        k: v for k, v in found.cost.items() if k != "wall_seconds"
    }
    ok(*command, "--limit", "3", "data.gsm8k=amc.jsonl", "seed=7", "--quiet", "--output", "other.json")
    assert sum(written) == 14 and len(read_results(Path("other.json"))["gsm8k"].ids) == 2


def test_several_suites_are_files_in_a_folder(model: str) -> None:
    suites = ("--suite", "math,heldout", "--data", "my.jsonl", "--task", "math.amc23", "data.amc23=amc.jsonl")
    told = ok("eval", "--model", model, *suites, *FEW, "--output", "found", "--json").json
    assert sorted(path.name for path in Path("found").iterdir()) == ["heldout.json", "math.json"]
    assert list(told["suites"]) == ["math", "heldout"] and list(told["suites"]["math"]["tasks"]) == ["amc23"]
    heldout = read_results(Path("found/heldout.json"))["heldout"]
    assert len(heldout.ids) == len(set(heldout.ids)) == len(ROWS) and not heldout.higher_is_better
    by_hand = np.average(heldout.score, weights=heldout.weight)
    assert told["suites"]["heldout"]["tasks"]["heldout"]["value"] == pytest.approx(by_hand)
    assert heldout.score[3] == heldout.score[11]  # the same row


def test_heldout_is_the_nll_of_a_plain_loop(lab: Any, models: dict[str, Path]) -> None:
    (found,) = evaluate(
        str(models["llama"]), suite=["heldout"], data="my.jsonl", dtype="float32", device="cpu", limit=4
    )
    hf, plain = lab.tokenizer("llama"), lab.reference("llama")
    for row, score in zip(ROWS, found["heldout"].score.tolist(), strict=False):
        told = by_hand(hf, row, 256)["given"]
        assert told is not None
        assert score == pytest.approx(float(reference(plain, *told)[0].mean()), abs=1e-5)


def test_a_server_needs_no_model_and_is_paid_once(server: Server) -> None:
    server.play = lambda body, number: completion(r"It is \boxed{2}.")
    where = f"openai:gpt@{server.url}"
    command = ("eval", "--generator", where, "--suite", "math", "--task", "amc23", "data.amc23=amc.jsonl")
    told = ok(*command, "--output", "a.json", "--json").json["suites"]["math"]
    assert told["model"] == "gpt" and told["value"] == 0.5 and told["settings"]["template"] == "chat"
    assert told["cost"]["prompt_tokens"] == 20 and len(server.bodies) == 2
    ok(*command, "--output", "b.json")
    assert len(server.bodies) == 2


def test_an_interrupted_evaluation_keeps_what_it_has(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("eval", "--model", model, "--suite", "math", "--task", "gsm8k", "--data-dir", "data", *FEW)
    sizes: list[int] = []
    real = Generator.generate

    def stopping(self: Generator, prompts: list[list[int]], room: int, *how: Any) -> Any:
        if sum(sizes) >= 4:
            raise KeyboardInterrupt
        sizes.append(len(prompts))
        return real(self, prompts, room, *how)

    monkeypatch.setattr(Generator, "generate", stopping)
    few = ("--batch-tokens", "400")
    assert cli(*command, *few, "--output", "a.json").code == 130
    assert not Path("a.json").exists() and 4 <= sum(sizes) < 10
    before = sum(sizes)
    monkeypatch.setattr(Generator, "generate", lambda *a, **b: (sizes.append(len(a[1])), real(*a, **b))[1])
    ok(*command, *few, "--output", "a.json")
    assert sum(sizes) == 10 and before < 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "no suite is named; give --suite, one or several of heldout, math"),
        (("--suite", "mat"), "unknown suite 'mat'; did you mean 'math'?"),
        (("--suite", "math", "--task", "gsm"), "suite 'math' has no task 'gsm'; did you mean 'gsm8k'?"),
        (("--suite", "math", "--task", "med.medqa"), "task 'med.medqa' is of suite 'med', which is not asked for"),
        (("--suite", "heldout"), "suite 'heldout' needs rows that were not trained on; give --data FILE"),
        (("--suite", "math,heldout", "--data", "my.jsonl", "--output", "a.json"), "'a.json' is one file, but 2 suites"),
        (("--suite", "math", "--data-dir", "nowhere"), "no folder 'nowhere'; --data-dir is where the files of tasks"),
        (("--suite", "math", "--generator", "hff"), "unknown generator 'hff'"),
        (("--suite", "math", "temprature=1"), "unknown key 'temprature'; did you mean 'temperature'?"),
        (("--suite", "math", "--top-p", "2"), "'top_p': Input should be less than or equal to 1 (given: 2.0)"),
    ],
)
def test_what_cannot_be_is_one_message(model: str, options: tuple[str, ...], words: str) -> None:
    if "--generator" in options:
        options = (*options, "--task", "amc23", "data.amc23=amc.jsonl")
    assert words in cli("eval", "--model", model, *options).error


def test_a_model_must_be_named() -> None:
    assert "no model is named; give --model WHERE" in cli("eval", "--suite", "math").error
    assert "no model folder './none'" in cli("eval", "--model", "./none", "--suite", "math").error


def test_every_option_is_a_key(folder: Path) -> None:
    Path("eval.yaml").write_text(
        "model: m\nsuite: math, heldout\ntasks: [math.gsm8k]\nn: 4\ndata: {gsm8k: a.jsonl}\nmax_samples: 3\n"
    )
    found = load_config(EvalConfig, "eval.yaml", {"n": 2}, ["data.amc23=7", "task_data.math500=b.jsonl"])
    assert (found.suite, found.task, found.n, found.limit) == (["math", "heldout"], ["math.gsm8k"], 2, 3)
    assert found.task_data == {"gsm8k": "a.jsonl", "amc23": "7", "math500": "b.jsonl"} and found.data is None
    helped = " ".join(ok("eval", "--help").out.split())
    hidden = {
        "task_data",
        "instruction_key",
        "input_key",
        "response_key",
        "ray_address",
        "gpus_per_worker",
        "longest_line_mb",
        "cluster",
        "judge_price",  # options of plan
    }
    lacking = [key for key in EvalConfig.model_fields if f"--{key.replace('_', '-')}" not in helped]
    assert set(lacking) == hidden


def test_results_have_their_places() -> None:
    assert result_paths("a/b.json", ["math"]) == [Path("a/b.json")]
    assert result_paths("a", ["math"]) == [Path("a/results.json")]
    assert result_paths("a", ["math", "med"]) == [Path("a/math.json"), Path("a/med.json")]
    assert distinct(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]


def test_suites_are_imported_late_and_exist() -> None:
    """Every name leads to a function that takes a configuration."""
    from importlib import import_module

    for place in SUITES.values():
        module, _, function = place.partition(":")
        assert callable(getattr(import_module(module), function)), place
    with pytest.raises(ConfigError, match="no suite is named"):
        make_suites(EvalConfig())


def test_results_are_plain_json(model: str) -> None:
    ok("eval", "--model", model, "--suite", "heldout", "--data", "my.jsonl", "--output", "r.json", *FEW)
    told = json.loads(Path("r.json").read_text())
    assert list(told) == ["instdiff", "suite", "model", "value", "tasks", "settings", "cost", "items", "crc32"]
    assert told["tasks"]["heldout"]["details"]["data"] == "my.jsonl"
