"""The papers' tables: they say what the papers say, name what there is, and their small twins run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cli.shell import ok
from compare.test_configs import PAPERS, ROOT, TWINS
from instdiff.config.base import load
from instdiff.config.compare import CompareConfig, Variant
from instdiff.config.evaluate import EvalConfig
from instdiff.config.methods import make_method
from instdiff.core import Method
from instdiff.evaluation.evaluator import eval_config_of
from instdiff.evaluation.llm_judge.suite import TASKS
from instdiff.evaluation.suites import make_suites
from instdiff.rendering.templates import template
from instdiff.store import Store

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models")) / "smollm2-135m"
INSTRUCTDIFF = {
    "perplexity_min", "perplexity_mid", "perplexity_max", "entropy_min", "entropy_mid", "entropy_max", "longest",
    "instruction_longest", "ratio_longest", "ratio_shortest", "random", "full", "ifd", "selectit", "zip",
    "superfiltering", "instructdiff",
}  # fmt: skip
CONTROLS = {"random", "longest", "full"}

# model; learning rate, global batch, epochs, tokens, warm-up, weight decay; budgets; lines
TABLES = {
    "instructdiff_math": ("Qwen/Qwen2.5-7B", (5e-5, 256, 3, 2048, 0.05, 0.01), ("10%",), INSTRUCTDIFF),
    "instructdiff_general": ("meta-llama/Meta-Llama-3-8B", (2e-5, 64, 10, 2048, 0.05, 0.01), ("10%",), INSTRUCTDIFF),
    "instructdiff_med": ("meta-llama/Meta-Llama-3-8B", (2e-5, 64, 3, 512, 0.05, 0.01), ("10%",), INSTRUCTDIFF),
    "instructdiff_code": ("meta-llama/Meta-Llama-3-8B", (1e-5, 256, 5, 4096, 0.05, 0.01), ("20%",), INSTRUCTDIFF),
    "tshirt": (
        "meta-llama/Llama-3.1-8B", (2e-5, 128, 3, 2048, 0.03, 0.0), ("2600",),
        CONTROLS | {"deita", "ds2", "ifd", "tshirt_50", "tshirt_75"},
    ),
    "miwv": (
        "meta-llama/Llama-2-7b-hf", (2e-5, 128, 3, 512, 0.03, 0.0), ("1%", "5%", "10%", "15%"),
        CONTROLS | {"miwv", "ifd", "selectit", "superfiltering", "alpagasus", "deita", "nuggets"},
    ),
    "mads": ("meta-llama/Llama-3.1-8B", (2e-5, 128, 3, 2048, 0.03, 0.0), ("15%",), CONTROLS | {"mads"}),
}  # fmt: skip
ITEMS = {"math": 5, "general": 2, "med": 3, "code": 5}


def config(name: str, small: bool = False) -> CompareConfig:
    return load(CompareConfig, ROOT / "configs" / "papers" / ("small" if small else "") / f"{name}.yaml", {})


def method_of(name: str, line: str) -> Method:
    variant = config(name).lines()[line]
    return make_method(variant.method or line, variant.params, 0)


def test_every_table_is_known() -> None:
    assert {path.stem for path in PAPERS} == TABLES.keys()


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_the_papers(name: str) -> None:
    asked, (model, training, budgets, lines) = config(name), TABLES[name]
    t = asked.train
    have = (
        t.learning_rate, t.global_batch_size, t.num_train_epochs, t.model_max_length, t.warmup_ratio, t.weight_decay
    )  # fmt: skip
    assert (asked.model, have, asked.budgets) == (model, training, budgets)
    assert (t.lr_scheduler_type, t.max_grad_norm, t.mode, t.use_lora) == ("cosine", 1.0, "sft", False)
    assert lines == {line for line in asked.lines() if "_round" not in line}
    template(asked.template or "alpaca")
    text = (ROOT / "configs" / "papers" / f"{name}.yaml").read_text(encoding="utf-8")
    assert "# fact" in text and "our reading" in text and "this does not:" in text


@pytest.mark.parametrize("name", TABLES)
def test_its_suites_and_tasks_are_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for task in TASKS.values():
        (tmp_path / "data" / task.files[0]).write_text('{"question_id": 1, "turns": ["Hello"]}\n')
    asked: EvalConfig = eval_config_of(config(name), config(name).eval, Store(str(tmp_path)))
    suites = make_suites(asked)
    assert [suite.name for suite in suites] == asked.suite
    if name.startswith("instructdiff_"):
        assert len(asked.task) == ITEMS[name.partition("_")[2]]


@pytest.mark.parametrize(("name", "rounds"), [("math", 2), ("general", 2), ("med", 3), ("code", 3)])
def test_instructdiff_has_the_rounds_of_the_table(name: str, rounds: int) -> None:
    asked, share = config(f"instructdiff_{name}"), "20%" if name == "code" else "10%"
    mine = [line for line in asked.lines() if line.startswith("instructdiff")]
    assert sorted(asked.lines()[line].rounds for line in mine) == [1, 2, 3]
    assert asked.lines()["instructdiff"].rounds == rounds
    assert {asked.lines()[line].budget for line in mine} == {f"{share} tokens"}
    assert (asked.warmup.sample_size, asked.warmup.limit) == (1000, 10000)
    assert method_of(f"instructdiff_{name}", "instructdiff").params()["nll_reject_ratio"] == 0.1


def test_what_the_papers_say_of_selection() -> None:
    half, three = (method_of("tshirt", line) for line in ("tshirt_50", "tshirt_75"))
    assert (half.k, three.k) == (50, 75)
    assert (half.draws, half.alpha, half.gamma, half.model) == (30, 5.0, 2.0, "proxy")
    layout = template(config("tshirt").template)
    assert layout.turn("Say hello.", "").endswith("questions.\nUSER:\nSay hello.\nASSISTANT:\n")
    assert (method_of("miwv", "miwv").pooling, method_of("miwv", "miwv").shots) == ("mean", 1)
    assert method_of("mads", "mads").model == "proxy" and "3B" in config("mads").models["proxy"]
    assert all(config(name).models["proxy"] == "gpt2" for name in TABLES if name != "mads")


# ── the twins ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TABLES)
def test_a_twin_has_the_same_lines_and_roles(name: str) -> None:
    large, small = config(name), config(name, small=True)
    assert list(small.lines()) == list(large.lines())

    def shape(one: Variant, line: str) -> tuple[str, int]:
        return one.method or line, one.rounds

    assert all(shape(small.lines()[line], line) == shape(large.lines()[line], line) for line in large.lines())
    assert small.models.keys() == large.models.keys() - {"embedder"}
    assert {small.model, *small.models.values()} == {SMALL}
    assert (small.data, small.eval["suite"]) == ("builtin:demo", ["heldout"]) and (small.limit or 99) <= 30


@pytest.mark.slow
@pytest.mark.parametrize("path", TWINS, ids=lambda path: path.stem)
def test_a_twin_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not MODEL.is_dir():
        pytest.skip(f"no model in {MODEL}; set INSTDIFF_MODELS")
    monkeypatch.chdir(ROOT)
    asked = load(CompareConfig, path, {})
    models = [f"model={MODEL}", *(f"models.{role}={MODEL}" for role in asked.models)]
    words = ["--config", path, *models, f"output={tmp_path / 'run'}", f"store={tmp_path / 'store'}"]
    priced = ok("plan", *words, "--json").json
    assert priced
    ok("compare", *words)
    found = json.loads((tmp_path / "run" / "comparison.json").read_text(encoding="utf-8"))
    assert found["failed"] == []
    made = {(one["name"], one["budget"]): one for one in found["lines"]}
    wanted = {("base", None)}
    for line, variant in asked.lines().items():
        own = ["100%"] if line == "full" else [str(variant.budget)] if variant.budget else asked.budgets
        wanted |= {(line, str(budget)) for budget in own}
    assert made.keys() == wanted
    assert {one["items"] for one in found["lines"]} == {3} and made["full", "100%"]["rows"] == asked.limit
    assert all(one["seeds"] == (3 if line == "random" else 1) for (line, _), one in made.items())
    assert all(one["rows"] > 0 for (line, _), one in made.items() if line != "base")
    assert (tmp_path / "run" / "report.html").is_file()
