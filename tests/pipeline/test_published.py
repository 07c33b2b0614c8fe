"""The configurations that ship: they parse, hold the paper's numbers, and the published ones run as they are."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

from helpers import ALPACA, make_llama

from .kit import Work, files, inside, ok, read_json, read_jsonl, scores, set_up, stray, write_jsonl

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
ELSEWHERE = ("cluster", "compare", "papers", "search", "small", "studies")
"""Folders of other kinds of files, which have tests of their own."""
ALL = sorted(
    path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml") if path.parent.name not in ELSEWHERE
)
OTHERS = {"examples/diverse_evol.yaml": "kcenter"}
BUDGETS = {"examples/diverse_evol.yaml": "200"}
PAPER = {"lr_scheduler_type": "cosine", "warmup_ratio": 0.05, "weight_decay": 0.01, "max_grad_norm": 1.0, "mode": "sft"}


def kind_of(name: str) -> Any:
    from instdiff.config import commands as verbs

    kinds = {"sample": verbs.SampleConfig, "score": verbs.ScoreConfig, "train": verbs.TrainConfig}
    kinds |= {"combine": verbs.SelectConfig}
    return kinds.get(Path(name).stem.partition("_")[0], verbs.PipelineConfig)


def parsed(name: str) -> Any:
    from instdiff.config.base import load

    return load(kind_of(name), CONFIGS / name, {})


def trainings(config: Any) -> list[Any]:
    """The settings of every training that a pipeline does."""
    return [config.warmup.train or config.train, config.select_train.train or config.train]


# ── all of them ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ALL)
def test_every_configuration_parses(name: str) -> None:
    from trl import SFTConfig

    from instdiff.config.train import hf_arguments, split_batch
    from instdiff.experiments.pipeline import budget_of, selector
    from instdiff.rendering.templates import template

    config = parsed(name)
    assert config.seed == 42
    train = [config.train] if hasattr(config, "train") else []
    if hasattr(config, "iterations"):
        train = trainings(config)
        method, params = selector(config)[0], selector(config)[1].params()
        assert method == OTHERS.get(name, "instructdiff") and params.get("nll_reject_ratio", 0.1) == 0.1
        assert str(budget_of(config)) == BUDGETS.get(name, "10% tokens")
        template(config.score.template or config.template or "alpaca")
    known = [field.name for field in dataclasses.fields(SFTConfig)]
    for settings in train:
        assert not settings.model_extra
        assert hf_arguments(settings, known)["learning_rate"] == settings.learning_rate
        assert split_batch(settings, 1, 8)[0] * split_batch(settings, 1, 8)[1] == settings.global_batch_size


@pytest.mark.parametrize(
    ("name", "model", "rate", "batch", "epochs", "length", "rounds", "data"),
    [
        ("math/pipeline_math.yaml", "Qwen/Qwen2.5-7B", 5e-5, 256, 3, 2048, 2, "numina_cot_10k"),
        ("med/pipeline_med_iter.yaml", "meta-llama/Meta-Llama-3-8B", 2e-5, 64, 3, 512, 5, "train_medmcqa_alpaca_10k"),
    ],
)
def test_the_papers_hyper_parameters(
    name: str, model: str, rate: float, batch: int, epochs: int, length: int, rounds: int, data: str
) -> None:
    config = parsed(name)
    assert (config.model, config.iterations, config.data) == (model, rounds, f"data/{data}.jsonl")
    assert (config.warmup.sample_size, config.warmup.limit, config.score.max_samples) == (1000, 10000, 10000)
    for settings in trainings(config):
        assert (settings.learning_rate, settings.global_batch_size) == (rate, batch)
        assert (settings.num_train_epochs, settings.model_max_length) == (epochs, length)
        assert {key: getattr(settings, key) for key in PAPER} == PAPER
        assert not settings.use_lora
    # Scoring sees at least what training sees.
    assert (config.score.max_length or config.max_length) >= length


def test_the_published_keys() -> None:
    sample, score = parsed("med/sample_med_1k_100.yaml"), parsed("med/score_med.yaml")
    assert (sample.data, sample.output) == ("data/train_medmcqa_alpaca_10k.jsonl", "runs/med_1k_100.jsonl")
    assert (sample.max_samples, sample.limit) == (100, 1000)
    assert (score.model, score.output, score.limit) == (
        {"base": "models/Llama-2-7b-hf"}, "runs/score_med_llama2.jsonl", 100
    )  # fmt: skip
    assert (score.instruction_key, score.input_key, score.response_key) == ("instruction", "input", "response")
    assert score.template == ALPACA
    for name, data, output in (
        ("train_med_100", "runs/med_1k_100.jsonl", "runs/trained/med_sft_100"),
        ("train_med_iter1_selected", "runs/pipeline_med_iter/iter_1/selected.jsonl", None),
    ):
        train = parsed(f"med/{name}.yaml").train
        assert (train.model_name_or_path, train.data_path) == ("models/Llama-2-7b-hf", data)
        assert output is None or train.output_dir == output
        assert (train.model_max_length, train.per_device_train_batch_size, train.global_batch_size) == (512, 1, 1)
        assert (train.num_train_epochs, train.learning_rate, train.mode) == (1, 2e-5, "sft")
    second = parsed("med/pipeline_med_iter2.yaml")
    assert (second.output, second.iterations) == ("runs/pipeline_med_iter_stage2", 1)
    assert (second.warmup.sample_size, second.warmup.limit, second.score.max_samples) == (100, 1000, 200)
    assert second.score.template == parsed("med/pipeline_med_iter.yaml").score.template == "DIRECT_PROMPT"
    assert all(t.global_batch_size == 1 and t.learning_rate == 2e-5 for t in trainings(second))


# ── the examples ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_diverse_evol(tmp_path: Path) -> None:
    """The example runs: each round keeps the rows it has, and adds to them by the vectors of the model so far."""
    home = set_up(tmp_path)
    small = ["base_model=base", "data_path=pool.jsonl", "iterations=2", "warmup.sample_size=10", "select.budget=14"]
    small += ["select.grow=3", "eval.data_path=heldout.jsonl", "eval.seeds=[0]", "store=store", "dtype=float32"]
    with inside(home):
        ok("pipeline", "--config", CONFIGS / "examples/diverse_evol.yaml", *small)
    run = home / "runs/diverse_evol"
    held = {row["instruction"] for row in read_jsonl(run / "iter_1/warmup_subset.jsonl")}
    for number, calibrated in ((1, "iter_1/calibration_model"), (2, "iter_1/selected_train_model")):
        record = read_json(run / f"iter_{number}/selection.json")
        assert (record["method"], record["counts"]["selected_rows"]) == ("kcenter", 11 + 3 * number)
        assert record["models"]["calibrated"]["where"] == f"runs/diverse_evol/{calibrated}"
        chosen = [row["instruction"] for row in read_jsonl(run / f"iter_{number}/selected.jsonl")]
        assert held <= set(chosen[: len(held)])
        held = set(chosen)


# ── the published order ───────────────────────────────────────────────────────────────────────────────────────────────

PARTS = ["nerve", "artery", "vein", "muscle", "bone"]


def medical_rows(count: int) -> list[dict[str, str]]:
    """Rows as the published file has them, made from rows as MedMCQA has them."""
    import instdiff

    draw = random.Random(0)
    raw = [
        {"question": f"Which {draw.choice(PARTS)} is number {n}?", "opa": draw.choice(PARTS), "opb": f"no. {n}",
         "opc": "both", "opd": "none", "cop": draw.randrange(4), "exp": None}
        for n in range(count)
    ]  # fmt: skip
    samples = instdiff.load(raw, format="medmcqa").samples()
    return [{"instruction": s.instruction, "input": "", "response": s.response} for s in samples]


class Seen:
    """Prompts and responses as models get them, in training and in scoring."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
        from instdiff.scoring.workbench import Workbench
        from instdiff.training.trainer import Job

        self.tokenizer = tokenizer
        self.trained: list[tuple[str, str]] = []
        self.scored: list[tuple[str, str]] = []
        run, sweeping = Job.run, Workbench._sweep

        def train(job: Any, *args: Any) -> Any:
            self.trained += self.texts(job.rows)
            return run(job, *args)

        def score(bench: Any, step: Any, todo: Any, measures: Any) -> Any:
            self.scored += self.texts(bench.render_for(step).tokens.take(todo))
            return sweeping(bench, step, todo, measures)

        monkeypatch.setattr(Job, "run", train)
        monkeypatch.setattr(Workbench, "_sweep", score)

    def texts(self, rows: Any) -> list[tuple[str, str]]:
        found = []
        for row in range(len(rows)):
            start, end = rows.ids.offsets[row], rows.ids.offsets[row + 1]
            ids, target = rows.ids.values[start:end], rows.target[start:end]
            found.append((self.tokenizer.decode(ids[~target].tolist()), self.tokenizer.decode(ids[target].tolist())))
        return found

    def take(self) -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        """What was seen since the last call: in training, in scoring."""
        found = set(self.trained), set(self.scored)
        self.trained, self.scored = [], []
        return found


def test_the_published_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the published README, with no override at all: only the models are small ones."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    home = tmp_path / "home"
    for seed, where in enumerate(("models/Llama-2-7b-hf", "meta-llama/Meta-Llama-3-8B")):
        (home / where).mkdir(parents=True)
        make_llama(home / where, seed, chat=None, num_hidden_layers=1)
    rows = medical_rows(110)
    (home / "data").mkdir()
    write_jsonl(home / "data/train_medmcqa_alpaca_10k.jsonl", rows)
    pairs = {(row["instruction"], row["response"]) for row in rows}
    seen = Seen(monkeypatch, AutoTokenizer.from_pretrained(home / "models/Llama-2-7b-hf"))

    def learnt(pairs: Any, prompt: str = "{}") -> set[tuple[str, str]]:
        return {(f"<s>{prompt.format(asked)}", f"{said}</s>") for asked, said in pairs}

    def scored(pairs: Any, prompt: str = "{}") -> set[tuple[str, str]]:
        return {(f"<s>{prompt.format(asked)}", said) for asked, said in pairs}

    def read(name: str) -> set[tuple[str, str]]:
        return {(row["instruction"], row["response"]) for row in read_jsonl(home / name)}

    def run(verb: str, name: str) -> str:
        with inside(home):
            return ok(verb, "--config", CONFIGS / "med" / f"{name}.yaml").out

    alpaca = ALPACA.replace("{instruction}", "{}")
    run("sample", "sample_med_1k_100")
    assert read_jsonl(home / "runs/med_1k_100.jsonl") == random.Random(42).sample(rows, 100)

    run("train", "train_med_100")
    record = read_json(home / "runs/trained/med_sft_100/training.json")
    assert (record["rows"], record["steps"], record["left_out"], record["truncated"]) == (100, 100, {}, 0)
    assert seen.take() == (learnt(read("runs/med_1k_100.jsonl"), alpaca), set())

    run("score", "score_med")
    lines = read_jsonl(home / "runs/score_med_llama2.jsonl")
    assert len(lines) == 100 and all(line["perplexity.nll"] > 0 and line["entropy.entropy"] > 0 for line in lines)
    first = {(row["instruction"], row["response"]) for row in rows[:100]}
    assert seen.take() == (set(), scored(first, alpaca))

    first_run = home / "runs/pipeline_med_iter"
    assert "round 5" in run("pipeline", "pipeline_med_iter")
    assert {path.name for path in first_run.glob("iter_*")} == {f"iter_{n}" for n in range(1, 6)}
    for folder in first_run.glob("iter_*"):
        made = {"scores.parquet", "selected.jsonl", "selection.json", "model.json", "selected_train_model"}
        more = {"warmup_subset.jsonl", "calibration_model"} if folder.name == "iter_1" else set()
        assert {path.name for path in folder.iterdir()} == made | more
        assert len(scores(folder / "scores.parquet")) == 110
    # Every row is seen as the instruction itself; the published code sent the literal text DIRECT_PROMPT.
    assert seen.take() == (learnt(pairs), scored(pairs))
    assert (first_run / "report.html").is_file() and stray(first_run) == []

    run("pipeline", "pipeline_med_iter2")
    second_run = home / "runs/pipeline_med_iter_stage2"
    assert read_jsonl(second_run / "iter_1/warmup_subset.jsonl") == random.Random(42).sample(rows, 100)
    record = read_json(second_run / "iter_1/selection.json")
    assert record["models"]["base"]["where"] == "runs/pipeline_med_iter/iter_1/selected_train_model"
    trained = read("runs/pipeline_med_iter_stage2/iter_1/warmup_subset.jsonl")
    trained |= read("runs/pipeline_med_iter_stage2/iter_1/selected.jsonl")
    assert seen.take() == (learnt(trained), scored(pairs))

    run("train", "train_med_iter1_selected")
    chosen = read("runs/pipeline_med_iter/iter_1/selected.jsonl")
    assert seen.take() == (learnt(chosen, alpaca), set())
    ((output, *rest),) = [[p.parent.name for p in (home / "runs/trained").glob("*iter1*/training.json")]]
    assert (output, rest) == ("med_sft_iter1_selected", [])
    assert {name.split("/")[0] for name in files(home)} == {"data", "models", "meta-llama", "runs"}


# ── the demo ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    home = tmp_path / "home"
    home.mkdir()
    with inside(home):
        first = ok("pipeline", "--config", CONFIGS / "demo.yaml")
    lines = first.out.splitlines()
    names = ["base", "random seed 0", "random seed 1", "random seed 2", "full", "instructdiff round 1"]
    head = next(at for at, line in enumerate(lines) if "held-out NLL" in line and "flawed" in line)
    assert lines[head + 1].startswith("---")
    assert [line[:20].rstrip() for line in lines[head + 2 : head + 8]] == names
    assert "the run is in runs/demo; its page is runs/demo/report.html" in lines
    assert files(home) == {f"runs/demo/{name}" for name in files(home / "runs/demo")}
    models = {line["model"]: line for line in map(read_result, sorted((home / "runs/demo").rglob("results.json")))}
    assert all(line["gain_high"] < 0 for line in models.values())  # training helps on held-out rows

    work = Work(monkeypatch)
    with inside(home):
        again = ok("pipeline", "--config", CONFIGS / "demo.yaml")
    assert (work.trained, work.passes, work.loads) == ([], 0, 0) and again.out == first.out


def read_result(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())["selection"]
    return found
