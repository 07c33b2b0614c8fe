"""Cells of a comparison, with a model of a few kilobytes and a judge that reads its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cli.shell import write_jsonl
from helpers import make_llama, read_by_bytes, some_rows
from instdiff.config.base import build
from instdiff.config.compare import CompareConfig
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.core.files import read_json
from instdiff.core.progress import Quiet
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, DataError, EngineError, PlanError
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.experiments import engine as module
from instdiff.experiments import summary as costs
from instdiff.experiments.compare import Comparison
from instdiff.experiments.run_folder import Cell, CellResult
from instdiff.experiments.summary import overlaps, shares, summarize
from instdiff.experiments.tables import rows_of, terms, write_comparison
from instdiff.store import Store
from instdiff.training.trained_rows import trained_rows

TRAIN = {
    "model_max_length": 200, "num_train_epochs": 1, "learning_rate": 0.01, "warmup_ratio": 0.0,
    "global_batch_size": 4, "dtype": "float32",
}  # fmt: skip


def judged(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
    """Two items that tell trained models apart."""
    weights = load_file(Path(model.where) / "model.safetensors")
    score = np.array([float(w.double().sum()) for w in list(weights.values())[:2]])
    return [SuiteResult("weights", name, (TaskResult("sums", "sum", ["first", "second"], score),))]


@dataclass(frozen=True)
class Weights:
    """The judge as a suite."""

    judge: Callable[[ModelRef, str, Path], list[SuiteResult]]
    name: str = "weights"

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        (result,) = self.judge(subject.model, subject.name, subject.folder)
        return result.tasks

    def items(self, log: Any) -> list[BenchmarkItem]:
        return []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("compare")
    write_jsonl(home / "pool.jsonl", [{**row, "source": "ab"[n % 2]} for n, row in enumerate(some_rows(40, seed=3))])
    make_llama(home / "base", chat=None, num_hidden_layers=1)
    return home


Make = Callable[..., Comparison]


@pytest.fixture
def make(home: Path, tmp_path: Path, one_thread: None) -> Make:
    pool: Pool = load(str(home / "pool.jsonl"))

    def made(judge: Any = judged, log: Any = None, holdout: Pool | None = None, **changes: Any) -> Comparison:
        values = {
            "data": str(home / "pool.jsonl"), "model": str(home / "base"), "output": str(tmp_path / "run"),
            "method": {"ifd": {}}, "budgets": ["25% tokens"], "seeds": [0, 1], "train": TRAIN,
            "warmup": {"sample_size": 8}, **changes,
        }  # fmt: skip
        config = build(CompareConfig, values, "test")
        settings = Settings(max_length=200, dtype="float32", device="cpu")
        said = log or (lambda line, **facts: None)
        store = Store(str(tmp_path / "store"))
        return Comparison(
            config, tmp_path / "run", pool, pool, None, settings, store, EvalConfig(device="cpu"), [Weights(judge)],
            said, Quiet(), holdout
        )  # fmt: skip

    return made


def test_all_cells_are_there_at_one_token_budget(make: Make) -> None:
    made = make(method={"ifd": {}, "instructdiff": {}})
    outcomes = made.run()
    cells = [str(one.cell) for one in outcomes]
    assert cells[0] == "base"
    assert {cell.split()[0] for cell in cells} == {"base", "random", "longest", "full", "ifd", "instructdiff"}
    assert sum(cell.startswith("random") for cell in cells) == 3  # more seeds than the others: it is the control
    assert all(one.error is None for one in outcomes)
    target = made.budget("25% tokens").amount
    tokens = [one.facts["tokens"] for one in outcomes if one.cell.budget == "25% tokens"]
    longest = max(len(str(row)) for row in some_rows(40, seed=3))
    assert all(target <= count < target + longest for count in tokens)
    found = {line["name"]: line for line in summarize(outcomes)}
    assert found["ifd"]["seeds"] == 2 and found["base"]["seeds"] == 1
    assert found["full"]["rows"] == 40
    shared = overlaps(made.folder, [one.cell for one in outcomes])
    pairs = {(one["a"], one["b"]): one["jaccard"] for one in shared}
    assert 0 <= pairs["random", "ifd"] <= 1
    of = {one["name"]: one["shares"] for one in shares(made.folder, [o.cell for o in outcomes], made.pool, "input")}
    assert of["full"] == of["all rows"] and sum(of["ifd"].values()) == pytest.approx(1)


def test_a_second_run_makes_nothing_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before = make().run()

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("made again")

    monkeypatch.setattr(module, "train", never)
    monkeypatch.setattr(module, "score", never)
    after = make(judge=never).run()
    assert [one.facts for one in before] == [one.facts for one in after]
    assert summarize(before) == summarize(after)


DAMAGED = ["cell.json", "weights.json", "selection.json", "round_1/selection.json", "round_1/selected.jsonl"]


@pytest.mark.parametrize("name", [*DAMAGED, "round_1/model.json", "scores/cost.json", "weights"])
def test_what_was_changed_is_made_again(make: Make, name: str) -> None:
    before, said = make(seeds=[0], baselines=["random"]).run(), list[str]()
    made = make(seeds=[0], baselines=["random"], log=said.append)
    cell = before[-1].cell
    place = made.places.cell(cell)
    path = (made.folder if name.startswith("scores") else place) / name
    if name == "weights":  # they are read again where another suite needs them
        path = made.places.models / before[-1].facts["model"] / "model.safetensors"
        (place / "weights.json").unlink()
    elif name.startswith(("round", "scores")):
        (place / "cell.json").unlink()
    raw = bytearray(path.read_bytes())
    raw[-4] ^= 1
    path.write_bytes(raw)
    after = made.run()
    (line,) = [one for one in said if "set aside as '" in one]
    assert line.startswith("warning: ") and str(path.parent if name == "weights" else path) in line
    assert [one.error for one in after] == [None] * len(after)
    assert [one.results[0].tasks[0].score.tolist() for one in after] == [
        one.results[0].tasks[0].score.tolist() for one in before
    ]


def test_one_bad_cell_does_not_end_the_run(make: Make) -> None:
    def fails(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        if name.startswith("ifd") and name.endswith("seed 1"):
            raise EngineError("the judge is away")
        return judged(model, name, folder)

    said: list[str] = []
    made = make(judge=fails, baselines=["random"], log=lambda line, **facts: said.append(line))
    outcomes = made.run()
    bad = [one for one in outcomes if one.error is not None]
    assert [str(one.cell) for one in bad] == ["ifd 25% tokens seed 1"]
    assert read_json(made.folder / "cells" / bad[0].cell.place / "error.json") == {"error": "the judge is away"}
    assert any("is left out: the judge is away" in line for line in said)
    again = make(baselines=["random"]).run()
    assert all(one.error is None for one in again)
    assert not (made.folder / "cells" / bad[0].cell.place / "error.json").exists()


def test_strict_ends_at_the_first_failure(make: Make) -> None:
    def fails(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        raise EngineError("the judge is away")

    with pytest.raises(EngineError, match="the judge is away"):
        make(judge=fails, strict=True).run()


def test_an_order_of_methods_does_not_matter(make: Make, tmp_path: Path) -> None:
    few: dict[str, Any] = {"seeds": [0], "baselines": ["random"]}
    first = {str(one.cell): one.facts["rows"] for one in make(method={"ifd": {}, "entropy": {}}, **few).run()[1:]}
    for path in ("run", "store"):
        (tmp_path / path).rename(tmp_path / f"{path}_before")
    second = {str(one.cell): one.facts["rows"] for one in make(method={"entropy": {}, "ifd": {}}, **few).run()[1:]}
    assert first == second


def test_a_line_takes_the_same_share_of_each_group(make: Make) -> None:
    made = make(method={"even": {"method": "ifd", "group_by": "source"}}, seeds=[0], baselines=[], budgets=["50%"])
    (even,) = made.run()[1:]
    assert read_json(made.places.cell(even.cell) / "selection.json")["groups"] == {
        "by": "source", "rows": {"a": 10, "b": 10}
    }  # fmt: skip
    with pytest.raises(DataError, match="has a column 'sauce'; did you mean 'source'"):
        make(method={"ifd": {"group_by": "sauce"}})


def test_the_same_rows_and_seed_are_trained_once(make: Make) -> None:
    made = make(method={"ifd": {}, "ifd_again": {"method": "ifd"}}, baselines=["random"])
    outcomes = made.run()
    values = {str(one.cell): one.results[0]["sums"].value for one in outcomes}
    assert values["ifd 25% tokens seed 0"] == values["ifd_again 25% tokens seed 0"]
    assert values["ifd 25% tokens seed 0"] != values["ifd 25% tokens seed 1"]
    trained = [one for one in outcomes if one.cell.line != "base"]
    assert len(list((made.folder / "models").iterdir())) == len(trained) - 2


def test_steps_can_be_equalised(make: Make) -> None:
    outcomes = make(steps="equal", method={"perplexity": {}}, baselines=["random"]).run()
    steps = {one.facts["steps"] for one in outcomes if one.cell.line != "base"}
    random = next(one for one in outcomes if str(one.cell) == "random 25% tokens seed 0")
    assert steps == {int(np.ceil(random.facts["rows"] / 4))}


def test_rounds_take_the_model_of_the_round_before(make: Make) -> None:
    made = make(
        method={
            "twice": {"method": "instructdiff", "rounds": 2},
            "renewed": {"method": "perplexity", "rounds": 2, "rebind": "base", "train_from": "last"},
        },
        seeds=[0],
        baselines=["random"],
    )
    outcomes = {one.cell.line: one for one in made.run()}
    assert all(one.error is None for one in outcomes.values())
    for line in ("twice", "renewed"):
        place = made.folder / "cells" / outcomes[line].cell.place
        rounds = [read_json(place / f"round_{number}" / "selection.json") for number in (1, 2)]
        assert read_json(place / "selection.json") == rounds[1]
        assert rounds[0]["models"] != rounds[1]["models"]
        models = [read_json(place / f"round_{number}" / "model.json")["model"] for number in (1, 2)]
        assert models[0] != models[1] == f"models/{outcomes[line].facts['model']}"
        assert all((made.folder / model / "training.json").is_file() for model in models)
        role = {"twice": "calibrated", "renewed": "base"}[line]
        assert rounds[1]["models"][role]["where"] == str(made.folder / models[0])


def test_another_model_may_choose(make: Make, home: Path, tmp_path: Path) -> None:
    make_llama(tmp_path / "other", chat=None, num_hidden_layers=1, hidden_size=32)
    weak = {"method": "perplexity", "models": {"base": str(tmp_path / "other")}}
    made = make(method={"perplexity": {}, "weak": weak}, seeds=[0], baselines=["random"])
    outcomes = {one.cell.line: one for one in made.run()}
    assert all(one.error is None for one in outcomes.values())
    shapes = [read_json(Path(path)) for path in sorted((made.folder / "models").glob("*/config.json"))]
    assert {shape["hidden_size"] for shape in shapes} == {read_json(home / "base" / "config.json")["hidden_size"]}


def test_all_lines_have_their_budgets_in_the_students_tokens(make: Make, home: Path, tmp_path: Path) -> None:
    """Whatever the tokenizer of the model that chooses, and whatever else a line's view scores."""
    weak = str(read_by_bytes(make_llama(tmp_path / "weak", 3, chat=None, num_hidden_layers=1)))
    lines = {"superfiltering": {}, "ifd": {}, "weak": {"method": "perplexity", "models": {"base": weak}}, "grape": {}}
    for order in (list(lines), list(lines)[::-1]):
        made = make(method={name: lines[name] for name in order}, models={"proxy": weak}, seeds=[0])
        tokenizer = AutoTokenizer.from_pretrained(home / "base")
        texts = [str(row["output"]) for row in made.pool.source_rows(range(40))]
        truth = [len(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        for line in (*order, "random", "longest"):
            scored, _ = made.score_round(Cell(line, "25% tokens", 0), 1, made.roles_of(made.variants[line]))
            assert scored.n_tokens.tolist() == truth, line


def whole(made: Comparison) -> int:
    """How many trained models are on the disk."""
    return len(list((made.folder / "models").glob("*/model.safetensors")))


def test_models_need_not_be_kept(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is there as long as a later cell begins with it, and is trained once."""
    lines = {"instructdiff": {}, "twice": {"method": "instructdiff", "rounds": 2}}
    seen: dict[str, int] = {}
    trained: list[str] = []
    real = module.train

    def counted(*args: Any, **more: Any) -> ModelRef:
        trained.append(args[4].name)
        return real(*args, **more)

    def looked(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        seen[name.partition(" ")[0]] = whole(made)
        return judged(model, name, folder)

    monkeypatch.setattr(module, "train", counted)
    made = make(judge=looked, keep_models=False, seeds=[0], baselines=["random"], method=lines)
    outcomes = made.run()
    assert all(one.error is None for one in outcomes)
    # Random's own; then the warm-up, the shared first round, and the second one of `twice`.
    assert len(trained) == len(set(trained)) == 3 + 3
    assert seen["instructdiff"] == 2 and seen["twice"] == 3
    assert whole(made) == 0
    assert {path.name for path in (made.folder / "models").glob("*/*")} == {"training.json"}

    again = make(judge=None, keep_models=False, seeds=[0], baselines=["random"], method=lines).run()
    assert [one.facts for one in again] == [one.facts for one in outcomes] and len(trained) == 6

    # One more round: it begins with the models of the second one, which are trained once more.
    said: list[str] = []
    more = {**lines, "thrice": {"method": "instructdiff", "rounds": 3}}
    last = make(log=said.append, keep_models=False, seeds=[0], baselines=["random"], method=more)
    assert all(one.error is None for one in last.run()) and whole(last) == 0
    lost = [line for line in said if line.endswith("was dropped (keep_models: false) and is needed again; "
                                                   "it is trained once more")]  # fmt: skip
    assert len(lost) == len(set(lost)) >= 1
    assert len(trained) == 6 + len(lost) + 1


LEARN = {"learnability": {"folds": {"epochs": 2}}, "shorter": {"method": "learnability", "folds": {"epochs": 1}}}


def test_fold_models_are_trained_once_and_their_cost_is_told(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    both: Any = {"folds": {"epochs": 2}}
    lines = {**LEARN, "rehearsing": {"method": "learnability", **both, "rehearse": 0.3, "floor": 6.2}}
    lines["above"] = {"method": "then", "first": {"learnability": both}, "keep": "70%", "second": "random"}
    trained: list[str] = []
    real = module.train

    def counted(*args: Any, **more: Any) -> ModelRef:
        trained.append(args[4].name)
        return real(*args, **more)

    monkeypatch.setattr(module, "train", counted)
    made = make(method=lines, seeds=[0, 1], baselines=["random"], keep_models=False)
    outcomes = made.run()
    assert [one.error for one in outcomes if one.error is not None] == []
    assert len(trained) == len(set(trained)) and whole(made) == 0
    folds = {name for name in trained if read_json(made.folder / "models" / name / "training.json")["rows"] == 20}
    assert len(folds) == 2 * 2 * 2  # two ways to train, two seeds, two folds; other lines share the first
    found = {line["name"]: line for line in summarize(outcomes)}
    records = {name: read_json(made.folder / "models" / name / "training.json") for name in folds}
    spent = {
        epochs: sum(one["wall_s"] for one in records.values() if one["settings"]["num_train_epochs"] == epochs)
        for epochs in (1, 2)
    }
    # Cells of one seed are told what its two folds took.
    assert found["learnability"]["warmup_s"] == pytest.approx(spent[2] / 2, abs=0.05)
    assert found["shorter"]["warmup_s"] == pytest.approx(spent[1] / 2, abs=0.05)
    assert found["random"]["warmup_s"] is None and found["learnability"]["score_tokens"] > 0
    place = made.folder / "cells" / "rehearsing" / "25pct_tokens" / "seed_0"
    remark = read_json(place / "selection.json")["remark"]
    assert "rehearse what is known" in remark and not remark.startswith("0 of")
    roles = read_json(place / "selection.json")["models"]
    assert set(roles) == {"base", "held/0", "held/1"}

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    again = make(method=lines, seeds=[0, 1], baselines=["random"], keep_models=False).run()
    assert [one.facts for one in again] == [one.facts for one in outcomes]


def test_a_holdout_model_needs_its_rows(make: Make) -> None:
    with pytest.raises(PlanError, match=r"rho needs a model for role 'holdout'.*--holdout FILE"):
        make(method={"rho": {}}, seeds=[0], baselines=["random"])


def test_models_of_a_holdout_set_and_of_a_proxy_are_trained(make: Make, home: Path, tmp_path: Path) -> None:
    """Once for each seed, and asked of every row; the rows of the holdout set are not selected."""
    proxy = make_llama(tmp_path / "small", 4, chat=None, num_hidden_layers=1, hidden_size=16)
    lines = {"rho": {}, "small": {"method": "learnability", "folds": {"epochs": 1, "model": "proxy"}}}
    pool = load(str(home / "pool.jsonl"))
    holdout = load([*some_rows(6, seed=9), *pool.source_rows([4, 11])])
    made = make(method=lines, baselines=["random"], holdout=holdout, models={"proxy": str(proxy)})
    outcomes = made.run()
    assert [one.error for one in outcomes if one.error is not None] == []
    places = list((made.folder / "models").glob("*"))
    seen = [rows.ids for place in places if (rows := trained_rows(ModelRef(str(place)))) is not None]
    assert sum(ids == set(holdout.ids) for ids in seen) == 2
    records = [read_json(place / "training.json") for place in places]
    assert [one["rows"] for one in records if one["base"] == "small"] == [20] * 4
    for seed in (0, 1):
        place = made.folder / "cells" / "rho" / "25pct_tokens" / f"seed_{seed}"
        record = read_json(place / "selection.json")
        assert set(record["models"]) == {"base", "holdout"} and record["excluded"] == {"filtered": 2}
        assert record["ids"] and not set(record["ids"]) & set(holdout.ids)
        small = read_json(made.folder / "cells" / "small" / "25pct_tokens" / f"seed_{seed}" / "selection.json")
        assert {"proxy", "held/0", "held/1"} <= set(small["models"])
    found = {line["name"]: line for line in summarize(outcomes)}
    assert found["rho"]["warmup_s"] > 0 and found["small"]["warmup_s"] > 0


def test_a_line_whose_proxy_is_not_named_fails_alone(make: Make) -> None:
    made = make(method={"s2l": {}}, baselines=["random"], seeds=[0], keep_models=False)
    errors = {one.cell.line: one.error for one in made.run()}
    assert errors.pop("s2l") == (
        "what is missing is trained from the model of role 'proxy', which is not bound; give --model proxy=WHERE, or "
        "train the base: --set METHOD.model=base"
    )
    assert errors == {"base": None, "random": None} and whole(made) == 0


def test_a_limit_is_of_the_first_rows_whatever_copies_come_later(make: Make) -> None:
    rows = [*some_rows(6, seed=3), *some_rows(3, seed=3)]
    lines = {"first": {"method": "perplexity", "limit": 6}}
    made = make(method=lines, budgets=["100%"], baselines=["random"], seeds=[0])
    made.pool = load(rows)
    record = made.select(Cell("first", "100%", 0), 1, made.roles_of(made.variants["first"]))
    assert sorted(record["rows"]) == list(range(6))


def test_a_path_along_the_target_is_trained_once_and_priced(make: Make, home: Path) -> None:
    """Lines that want the same share it, and both of its saves are there as long as they are needed."""
    path = {"path": {"epochs": 3, "learning_rate": 0.05, "batch": 2}}
    lines = {"tap": path, "above": {"method": "then", "first": {"tap": path}, "keep": "70%", "second": "random"}}
    pool = load(str(home / "pool.jsonl"))
    target = load([*some_rows(3, seed=9), *pool.source_rows([4])])
    made = make(
        method=lines | {"longer": {"method": "tap", "path": {**path["path"], "epochs": 4}}},
        seeds=[0],
        baselines=["random"],
    )
    made.target = target
    outcomes = made.run()
    assert [one.error for one in outcomes if one.error is not None] == []
    records = [read_json(place) for place in (made.folder / "models").glob("*/training.json")]
    paths = [one for one in records if one["settings"].get("saves")]
    assert sorted(one["settings"]["num_train_epochs"] for one in paths) == [3, 4]
    assert {one["rows"] for one in paths} == {4} and [one["settings"]["saves"] for one in paths] == [[1], [1]]
    for name in ("tap", "above", "longer"):
        record = read_json(made.folder / "cells" / name / "25pct_tokens" / "seed_0" / "selection.json")
        assert {"path/first", "path/last"} <= set(record["models"])
        assert record["ids"] and not set(record["ids"]) & set(target.ids)
    found = {line["name"]: line for line in summarize(outcomes)}
    assert found["tap"]["warmup_s"] > 0 and found["random"]["warmup_s"] is None


def test_a_failed_cell_keeps_its_model(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        if name.startswith("ifd"):
            raise EngineError("the judge is away")
        return judged(model, name, folder)

    kinds = {"keep_models": False, "seeds": [0], "baselines": ["random"]}
    made = make(judge=fails, **kinds)
    made.run()
    assert whole(made) == 1

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(module, "train", never)
    made = make(**kinds)
    assert all(one.error is None for one in made.run()) and whole(made) == 0


def test_cost_says_its_unit(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds by the clock on a CPU; on GPUs times those that were held; the warm-up is part of it."""
    made = make(method={"instructdiff": {}}, seeds=[0], baselines=["random"])
    outcomes = made.run()
    assert [one.error for one in outcomes if one.error is not None] == []
    lines = {line["name"]: line for line in summarize(outcomes)}
    one = lines["instructdiff"]
    assert one["cost_unit"] == "CPU seconds" and one["warmup_s"] > 0 and one["score_s"] > 0
    assert lines["random"]["warmup_s"] is None
    model = next(o.facts["model"] for o in outcomes if o.cell.line == "instructdiff")
    record = read_json(made.folder / "models" / model / "training.json")
    assert one["train_s"] == pytest.approx(record["wall_s"], abs=0.01)
    found = write_comparison(made.folder, outcomes, list(lines.values()), {"terms": terms(made.config)})
    assert found["cost_unit"] == "CPU seconds" and "by the clock" in found["note"]
    text = (made.folder / "comparison.md").read_text()
    assert "1 epoch each" in text[text.index("Intervals") - 400 :] and " s warm-up, " in text

    # Two GPUs, of which each scoring holds both.
    known = read_json(made.folder / "scores" / "cost.json")
    monkeypatch.setattr("instdiff.engine.models.pick_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    told = costs.cost(made.folder, "instructdiff", 1, Settings(), print)
    speed = known["tokens"] / known["seconds"]
    assert told["cost_unit"] == "GPU seconds"
    assert told["score_s"] == pytest.approx(2 * told["score_tokens"] / speed, abs=0.01)
    assert costs.devices(Settings(workers=1)) == ("GPU seconds", 1)
    assert costs.devices(Settings(device="cuda:1")) == ("GPU seconds", 1)
    gpu = [CellResult(o.cell, {**o.facts, "cost_unit": "GPU seconds"}, o.results) for o in outcomes]
    assert " GPU s training" in rows_of(summarize(gpu))[-1][-1]
    assert "times the GPUs" in write_comparison(made.folder, gpu, summarize(gpu), {})["note"]


def test_a_typo_is_found_before_anything_is_trained(make: Make) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ifd'"):
        make(method={"idf": {}})
    with pytest.raises(PlanError, match="--model judge="):
        make(method={"alpagasus": {}})
    with pytest.raises(DataError, match="has a column 'sorce'; did you mean 'source'"):
        make(by="sorce")


def test_an_evaluation_goes_on_with_the_suites_that_it_lacks(make: Make) -> None:
    def fails(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        raise EngineError("the judge is away")

    kinds = {"seeds": [0], "baselines": ["random"], "method": {}}
    made = make(**kinds)
    made.suites.append(Weights(fails, "second"))
    assert all(one.error == "the judge is away" for one in made.run())

    asked: list[str] = []

    def counted(model: ModelRef, name: str, folder: Path) -> list[SuiteResult]:
        asked.append(name)
        return judged(model, name, folder)

    again = make(judge=fails, **kinds)  # the first suite is not asked again
    again.suites.append(Weights(counted, "second"))
    results = again.run()
    assert asked == [str(one.cell) for one in results]
    for one in results:
        first, second = one.results
        assert (first.suite, second.suite) == ("weights", "second")
        assert first["sums"].score.tolist() == second["sums"].score.tolist()
