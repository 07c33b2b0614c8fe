"""The page of a comparison: what cells are called, which of them are drawn, and curves over budgets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.data import load
from instdiff.errors import DataError
from instdiff.reporting import plots, report, run_sections, statistics
from instdiff.reporting.context import ReportContext
from instdiff.reporting.sources import ReportSources, gather
from instdiff.selection.selector import select

from .kit import make_scores, payload

BUDGETS, SEEDS = ("5%", "10%", "20%"), (0, 1)
METHODS = {"random": "random", "longest": "longest", "ours, 2 rounds": "instructdiff"}
HOW = {"num_train_epochs": 1.0, "global_batch_size": 4}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def value(line: str, budget: str) -> float:
    return 4.0 - 0.1 * BUDGETS.index(budget) - 0.02 * list(METHODS).index(line)


def trained(folder: Path, mark: str, first: float, rows: int = 4, seed: int = 0) -> None:
    record = {"settings": HOW, "seed": seed, "rows": rows, "steps": 2, "target_tokens": 9, "wall_s": 1.5}
    write(folder / "models" / mark / "training.json", {**record, "losses": [first, 1.0]})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three lines at three budgets with two seeds, and all rows; one line has two rounds."""
    folder = tmp_path_factory.mktemp("compare") / "run"
    folder.mkdir()
    table = make_scores(folder, 60, selected=False)
    pool = load(str(folder / "rows.jsonl"))
    (folder / "scores").mkdir()
    for seed in SEEDS:
        shutil.copy(folder / "scores.parquet", folder / "scores" / f"a1_seed_{seed}.parquet")
    (folder / "scores.parquet").unlink()
    (folder / "config.yaml").write_text(f"model: models/base\nstudent: null\noutput: run\ndata: {folder}/rows.jsonl\n")
    lines = [{"name": "base", "budget": None, "value": 4.2, "low": 4.1, "high": 4.3}]
    lines += [{"name": "full", "budget": "100%", "value": 3.5, "low": 3.4, "high": 3.6}]
    for name, method in METHODS.items():
        for budget in BUDGETS:
            mean = value(name, budget)
            lines.append({"name": name, "budget": budget, "value": mean, "low": mean - 0.05, "high": mean + 0.05})
            for seed in SEEDS:
                place = folder / "cells" / name.replace(" ", "_").replace(",", "_") / budget.replace("%", "pct")
                cell = place / f"seed_{seed}"
                mark = f"{name[:4]}_{BUDGETS.index(budget)}_{seed}"
                for part in ("round_1", "round_2") if name.startswith("ours") else ("round_1",):
                    (cell / part).mkdir(parents=True)
                    chosen = select(pool, table[method], budget, meta=table.meta)
                    chosen.write_record(cell / part / "selection.json")
                    write(cell / part / "model.json", {"model": f"models/{mark}"})
                shutil.copy(cell / part / "selection.json", cell / "selection.json")
                if name == "random":
                    trained(folder, mark, 10 * seed + BUDGETS.index(budget), seed=seed)
                if name.startswith("ours"):
                    trained(folder, mark, 50.0, seed=seed)  # of the first round
                    last = f"last_{seed}_{BUDGETS.index(budget)}"
                    trained(folder, last, 60.0, seed=seed)
                    write(cell / part / "model.json", {"model": f"models/{last}"})
    (folder / "cells/full/100pct/seed_0").mkdir(parents=True)
    select(pool, table["random"], "100%", meta=table.meta).write_record(
        folder / "cells/full/100pct/seed_0/selection.json"
    )
    trained(folder, "warm", 70.0, rows=12, seed=1)
    trained(folder, "warmer", 71.0, rows=12, seed=0)
    same = {"suite": "heldout", "task": "heldout", "metric": "nll", "higher_is_better": False, "rows": 6}
    write(folder / "comparison.json", {"lines": [{**same, **line} for line in lines], "against": "longest"})
    return report(folder)


@pytest.fixture(scope="module")
def found(run: Path) -> Any:
    return json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))["sections"]


def figures(page: Path, section: str) -> dict[str, Any]:
    return dict(payload(page)["figures"][section])


def test_trainings_are_called_by_what_they_are(run: Path, found: Any) -> None:
    facts = found["training"]["facts"]
    cells = [f"random, {budget}, seed {seed}" for seed in SEEDS for budget in BUDGETS]
    rounds = [f"ours, 2 rounds{part}, {b}, seed {s}" for s in SEEDS for b in BUDGETS for part in ("", " round 1")]
    assert set(facts) == {*cells, *rounds, "warm-up, 12 rows, seed 0", "warm-up, 12 rows, seed 1"}
    assert facts["random, 10%, seed 1"]["losses"] == [11.0, 1.0]
    assert facts["ours, 2 rounds, 20%, seed 1"]["losses"][0] == 60.0
    assert facts["ours, 2 rounds round 1, 20%, seed 1"]["losses"][0] == 50.0
    drawn = dict.fromkeys(trace["name"] for trace in figures(run, "training")["loss"]["data"])
    assert list(drawn) == ["random, 5%, seed 0", "ours, 2 rounds, 5%, seed 0", "warm-up, 12 rows, seed 0"]
    assert f"Of {len(facts)} trainings the first budget and seed of each line is here" in found["training"]["notes"][0]


def test_without_names_no_training_is_guessed(run: Path, tmp_path: Path) -> None:
    """As an earlier version left it: rows and seed are known, and what was trained on what is not."""
    shutil.copytree(run.parent, tmp_path / "old")
    for path in (tmp_path / "old").rglob("model.json"):
        path.unlink()
    page = report(tmp_path / "old")
    names = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))["sections"]["training"]["facts"]
    assert "a model, 12 rows, seed 0" in names and not any(name.startswith("warm-up") for name in names)


def test_rows_and_scores_are_of_one_seed(run: Path, tmp_path: Path) -> None:
    """Cells taken from records are of seeds whose scores nobody made here."""
    folder = Path(shutil.copytree(run.parent, tmp_path / "run"))
    (folder / "scores" / "a1_seed_0.parquet").unlink()
    for path in folder.glob("cells/*/*/seed_0/**/selection.json"):
        record = json.loads(path.read_text())
        record.pop("rows_crc32", None), record.pop("crc32", None)
        write(path, record | {key: record[key][::-1] for key in ("rows", "ids")})
    part = gather(folder).parts[-1]
    assert part.name == "seed 1" and part.record is not None and len(part.chosen) > 2
    assert part.chosen.tolist() == part.scored.best()[: len(part.chosen)].tolist()


def test_the_overlap_of_one_seed_is_drawn_and_all_cells_are_told(run: Path, found: Any) -> None:
    facts = found["overlap"]["facts"]
    names = list(facts["selections"])
    assert len(names) == 19 and len(facts["jaccard"]) == 19 == len(facts["jaccard"][0])
    at = names.index("random, 10%, seed 0"), names.index("random, 10%, seed 1")
    assert facts["jaccard"][at[0]][at[1]] == 1.0 and facts["selections"]["random, 10%, seed 1"] == 6
    drawn = figures(run, "overlap")
    assert [label for label in drawn if label.startswith("Jaccard")] == [f"Jaccard, {budget}" for budget in BUDGETS]
    trace = drawn["Jaccard, 10%"]["data"][0]
    assert trace["x"] == ["full (100%)", "random", "longest", "ours, 2 rounds"]
    assert trace["z"][0] == [1.0, 0.1, 0.1, 0.1] and trace["z"][1][1] == 1.0


def test_jaccard_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    sets = {str(n): rng.choice(200, 20 + n, replace=False) for n in range(5)} | {"none": np.zeros(0, np.int64)}
    plain = [[len({*a} & {*b}) / max(1, len({*a} | {*b})) for b in sets.values()] for a in sets.values()]
    for wide in (7, 1 << 16):
        monkeypatch.setattr(statistics, "WIDE", wide)
        assert np.allclose(np.array(statistics.jaccard(sets), float), plain, atol=1e-4)


def test_curves_over_budgets(run: Path, found: Any) -> None:
    facts = found["comparison"]["facts"]
    curves = facts["curves"]["held-out NLL"]
    assert set(curves) == set(METHODS)
    assert curves["random"]["budget"] == list(BUDGETS)
    assert curves["longest"]["value"] == pytest.approx([value("longest", budget) for budget in BUDGETS])
    assert curves["longest"]["low"] == pytest.approx([value("longest", budget) - 0.05 for budget in BUDGETS])
    drawn = figures(run, "comparison")
    assert list(drawn) == ["held-out NLL by budget", *(f"held-out NLL at {budget}" for budget in BUDGETS)]
    traces = drawn["held-out NLL by budget"]["data"]
    assert [trace["name"] for trace in traces] == ["ours, 2 rounds", "longest", "random"]  # the lowest NLL first
    assert drawn["held-out NLL by budget"]["layout"]["xaxis"]["ticktext"] == ["5", "10", "20"]
    assert [a["text"] for a in drawn["held-out NLL by budget"]["layout"]["annotations"]] == ["full", "base"]
    one = drawn["held-out NLL at 10%"]["data"][0]
    assert one["y"] == ["full 100%", "ours, 2 rounds 10%", "longest 10%", "random 10%", "base"]
    assert "against longest" in run.read_text(encoding="utf-8")


def test_the_curve_is_a_function() -> None:
    lines = [
        {"name": "a", "budget": b, "value": v, "low": v - 1, "high": v + 2} for b, v in (("200", 3.0), ("50", 2.0))
    ]
    figure = plots.budgets([*lines, {"name": "base", "value": 1.0}], "score")
    (trace,) = figure.data
    assert list(trace.y) == [2.0, 3.0] and list(trace.text) == ["50", "200"]
    assert list(trace.error_y.array) == [2.0, 2.0] and list(trace.error_y.arrayminus) == [1.0, 1.0]
    assert figure.layout.xaxis.title.text == "budget (rows)" and np.allclose(trace.x, [50, 200], rtol=0.01)
    mixed = [{"name": "a", "budget": b, "value": 1.0, "rows": r} for b, r in (("10%", 40), ("500 tokens", 7))]
    assert [point["at"] for point in statistics.curves(mixed)["a"]] == [7, 40]
    with pytest.raises(DataError, match="no line has values at two budgets"):
        plots.budgets(lines[:1])


def test_lines_with_budgets_of_their_own_have_no_curve() -> None:
    names = {"a": "10%", "b": "10%", "c": "10% tokens", "d": "10% tokens"}
    lines = [{"name": n, "budget": b, "task": "t", "metric": "accuracy", "value": 0.5} for n, b in names.items()]
    scene = ReportContext(ReportSources("t", "compare", comparison=lines))
    section = run_sections.comparison(scene)
    assert section is not None and "curves" not in section.facts
    assert [label for label, _ in section.figures] == ["t accuracy at 10%", "t accuracy at 10% tokens"]
    assert [row[0] for row in section.tables[0].rows] == list(names)


def test_the_scores_of_the_first_seed_are_shown(found: Any, run: Path) -> None:
    assert list(found["funnel"]["facts"]) == ["seed 0"]
    assert {name.partition(".")[0] for name in found["distributions"]["facts"]} == {"instructdiff", "longest", "random"}
    notes = json.loads(run.with_suffix(".json").read_text(encoding="utf-8"))["notes"]
    assert "Scores are those of seed 0; 'scores' in the folder has those of the others." in notes
