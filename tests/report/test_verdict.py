"""The verdict on a run: its word, what it rests on, and the facts to look at first."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.core.budget import parse_budget
from instdiff.experiments.summary import add_verdicts
from instdiff.reporting.context import ReportContext
from instdiff.reporting.score_sections import summary
from instdiff.reporting.sources import Part, ReportSources, gather
from instdiff.reporting.verdict import NO_OUTCOME, Verdict, cost_of, judge, read_verdict
from instdiff.selection.selector import select

from .kit import make_scores, make_table, write_rows

TASK = {"suite": "heldout", "task": "heldout", "metric": "nll", "higher_is_better": False}
RANDOM = {"name": "random", **TASK, "budget": None, "seeds": 3, "value": 2.885, "by_seed": [2.877, 2.885, 2.895]}


def line(name: str, value: float, p: float | None, **more: Any) -> dict[str, Any]:
    """A line of a comparison with random rows; without ``p`` it has one seed and no interval."""
    diff = value - RANDOM["value"]
    ends = (None, None) if p is None else (diff - 0.1, diff + 0.1)
    facts = {"diff": diff, "diff_low": ends[0], "diff_high": ends[1], "p": p, "seeds": 1 if p is None else 3}
    cost = {"rows": 40, "tokens": 900, "warmup_s": 1.0, "score_s": 2.0, "train_s": 4.0, "cost_unit": "CPU seconds"}
    return {"name": name, **TASK, "budget": None, **cost, "value": value, **facts, **more}


def compared(folder: Path, *lines: dict[str, Any], **more: Any) -> Path:
    add_verdicts(lines)
    folder.mkdir(exist_ok=True)
    facts = {"lines": [RANDOM, *lines], "against": "random", "cost_unit": "CPU seconds", **more}
    (folder / "comparison.json").write_text(json.dumps(facts))
    return folder


@pytest.mark.parametrize(
    ("value", "p", "word"),
    [
        (2.5, 0.001, "Better than random"),
        (3.5, 0.001, "Worse than random"),
        (2.9, 0.5, "Not told apart from random"),
        (4.86, None, "Too few seeds"),
    ],
)
def test_the_word_is_that_of_the_comparison(tmp_path: Path, value: float, p: float | None, word: str) -> None:
    found = read_verdict(compared(tmp_path, line("ifd", value, p)))
    assert (found.word, found.line, found.seeds, found.seeds_against) == (word, "ifd", 1 if p is None else 3, 3)
    assert found.difference == pytest.approx(value - 2.885) and found.unit == "nats per token"
    assert (found.low is None) == (p is None) and found.lower_is_better and found.measured == "held-out NLL"
    assert (found.rows, found.tokens, found.seconds, found.device) == (40, 900, 7.0, "CPU")
    assert f"{value:.3f}" in found.sentence


def test_too_few_seeds_tell_only_the_fact_beside(tmp_path: Path) -> None:
    found = read_verdict(compared(tmp_path, line("ifd", 4.86, None)))
    assert found.beside == "each of 3 random selections lies between 2.877 and 2.895"
    assert found.sentence == f"ifd has a held-out NLL of 4.860; {found.beside}."
    (alert,) = found.alerts
    assert alert.section == "comparison" and alert.text.startswith("1 seed of ifd, 3 of random: a verdict needs 3")


def test_a_comparison_is_about_lines_against_random_and_not_about_the_best_value(tmp_path: Path) -> None:
    lines = [line("full", 1.2, None), line("zip", 3.4, 0.001), line("ifd", 2.6, 0.001), line("miwv", 2.9, 0.9)]
    found = read_verdict(compared(tmp_path, *lines))
    assert (found.word, found.line) == ("Better than random", "ifd")
    begin = "Of 3 selections: 1 better than random: ifd, 1 worse, 1 not told apart. The best: ifd has a held-out NLL "
    assert found.sentence.startswith(begin + "of 2.600, -0.285 [-0.385, -0.185] against random")
    worse = read_verdict(compared(tmp_path / "two", lines[0], line("zip", 3.4, 0.001), line("ifd", 3.1, 0.001)))
    assert (worse.word, worse.line) == ("Worse than random", "ifd")


def test_further_tasks_of_the_same_line_are_told(tmp_path: Path) -> None:
    other = line("ifd", 0.7, 0.001, task="gsm8k", suite="skills", metric="accuracy", higher_is_better=True)
    found = read_verdict(compared(tmp_path, line("ifd", 2.5, 0.001), other))
    assert found.word == "Better than random" and len(found.others) == 1
    assert found.others[0].startswith("Worse than random: ifd has a gsm8k accuracy of 0.700")


def test_a_search_is_judged_by_the_task_that_decides(tmp_path: Path) -> None:
    other = line("ifd", 0.7, 0.001, task="skills", suite="skills", metric="accuracy", higher_is_better=True)
    final = line("ifd", 2.5, 0.001)
    compared(tmp_path, other, final, line("zip", 2.0, 0.001))
    told = ["Choose rows by ifd.", "The search saw it gain."]
    (tmp_path / "search.json").write_text(json.dumps({"best": "ifd", "final": final, "told": told, "rungs": []}))
    found = read_verdict(tmp_path)
    assert (found.word, found.line, found.measured) == ("Better than random", "ifd", "held-out NLL")
    assert found.sentence == " ".join(told) and found.others[0].startswith("Worse than random: ifd has a skills")


def test_oracles_alone_tell_what_there_is_to_gain(tmp_path: Path) -> None:
    other = line("oracle", 0.7, 0.001, task="gsm8k", suite="skills", metric="accuracy", higher_is_better=True, room=6.1)
    compared(tmp_path, line("oracle", 2.855, 0.03, budget="10% tokens", room=2.5), other, oracles=["oracle"])
    found = read_verdict(tmp_path)
    assert (found.kind, found.word, found.line) == (NO_OUTCOME, "Nothing can be told here", None)
    said = "held-out NLL: oracle is -0.030 [-0.130, +0.070] against random at 10% tokens, "
    said += "2.5 standard errors of headroom, and a share needs at least 4."
    assert found.sentence == said and found.alerts == ()
    (told,) = found.others
    assert told.startswith("gsm8k accuracy: Headroom: oracle is -2.185") and told.endswith("6.1 standard errors.")
    assert gather(tmp_path).title == "What oracle gains over random"
    assert summary(ReportContext(gather(tmp_path))).text == [
        "No scores of rows are in this folder, so nothing is shown of them."
    ]


@pytest.mark.parametrize(("room", "told"), [(2.5, True), (None, True), (4.0, False)])
def test_a_verdict_without_headroom_is_told(tmp_path: Path, room: float | None, told: bool) -> None:
    tenth, fifth = ({"budget": budget} for budget in ("10% tokens", "20% tokens"))
    oracles = [line("oracle", 2.6, 0.03, **fifth, room=9.0), line("oracle", 2.855, 0.03, **tenth, room=room)]
    found = read_verdict(compared(tmp_path, line("ifd", 2.87, 0.5, **tenth), *oracles, oracles=["oracle"]))
    assert (found.word, found.line) == ("Not told apart from random", "ifd")
    texts = [alert.text for alert in found.alerts if alert.section == "comparison"]
    begin = "Nothing can be told here" if room else "Nothing can be told of the headroom"
    assert [text.startswith(f"{begin}: oracle is -0.030") for text in texts] == [True] * told


def test_a_comparison_that_is_not_finished_is_called_so(tmp_path: Path) -> None:
    for seed in (0, 1):
        cell = tmp_path / "cells" / "random" / "10pct" / f"seed_{seed}"
        cell.mkdir(parents=True)
        (cell / "cell.json").write_text("{}")
    found = read_verdict(tmp_path)
    assert (found.kind, found.word) == (NO_OUTCOME, "No outcome yet")
    assert found.sentence.startswith("This comparison is not finished: 2 of its trainings are judged.")


def test_scores_alone_have_no_outcome_and_say_what_to_run(tmp_path: Path) -> None:
    make_scores(tmp_path, 60)
    found = read_verdict(tmp_path / "scores.parquet")
    assert found.word == "No outcome yet" and found.difference is None and found.seconds is None
    assert str(tmp_path) not in found.sentence  # a card is sent to others
    assert (
        "instdiff compare --data rows.jsonl " in found.sentence
        and "--method instructdiff --budget '20%'" in found.sentence
    )
    assert (found.method, found.rows, found.budget, found.counted) == ("instructdiff", 12, "20%", "rows")
    assert (found.asked, found.got) == (12, 12)


def test_the_command_to_run_reads_no_more_rows_than_were_scored(tmp_path: Path) -> None:
    make_scores(tmp_path, 60)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps({"instruction": "One more.", "output": "A row."}) + "\n")
    assert "instdiff compare --data rows.jsonl --limit 60 --model" in read_verdict(tmp_path / "scores.parquet").sentence


def test_random_rows_are_not_compared_with_themselves(tmp_path: Path) -> None:
    make_scores(tmp_path, 60, selected=False)
    sentence = judge(ReportContext(gather(tmp_path / "scores.parquet", method="random"))).sentence
    assert "whether a method is better than these random rows. Run: instdiff compare --data rows.jsonl" in sentence
    assert "--method METHOD" in sentence


def test_a_pipeline_that_judges_nothing_says_so(tmp_path: Path) -> None:
    (tmp_path / "iter_1").mkdir()
    make_scores(tmp_path / "iter_1", 60)
    (tmp_path / "config.yaml").write_text("eval: null\n")
    assert read_verdict(tmp_path).sentence == "This run judges no model: its `eval` is empty."
    (tmp_path / "config.yaml").write_text("eval: {suite: [heldout]}\n")
    assert read_verdict(tmp_path).sentence.startswith("This run is not finished.")


def scene(tmp_path: Path, method: str = "longest", budget: str = "20%", **more: Any) -> ReportContext:
    """Some rows of four sources, and what a method takes of them."""
    pool = write_rows(tmp_path / "rows.jsonl", 200)
    table = make_table(200, pool.ids, str(tmp_path / "rows.jsonl"), pool)
    picked = select(pool, table[method], budget, meta=table.meta)
    part = Part("scores", table, method, parse_budget(budget), picked.at, picked.record())
    return ReportContext(ReportSources("t", "scores", parts=[part], pool=pool, **more))


def told(found: Verdict) -> dict[str, str]:
    return {alert.section: alert.text for alert in found.alerts}


def test_the_alerts_are_computed(tmp_path: Path) -> None:
    flawed = [{"model": f"random seed {n}", "flawed": share} for n, share in enumerate((0.31, 0.37))]
    here = scene(tmp_path, lines=[*flawed, {"model": "longest", "flawed": 0.46}], against="random")
    found = told(judge(here, {"nearest_chosen": 0.832, "nearest_random": 0.947}))
    assert found["comparison"] == "46 % of the chosen rows are flawed, of random ones 31 to 37 %"
    assert "0.832 against 0.947" in found["coverage"]
    part = here.part
    assert part is not None
    mine = np.median(part.scored.n_tokens[part.chosen])
    assert found["length"] == (
        f"Length: the median chosen row has {mine:,.0f} response tokens, of all rows "
        f"{np.median(part.scored.n_tokens):,.0f}; rank correlation of score and length +1.00"
    )
    assert told(judge(scene(tmp_path, "random"), {"nearest_chosen": 0.95, "nearest_random": 0.947})) == {}


def test_a_source_nearly_gone_a_weak_model_and_an_unmet_budget(tmp_path: Path) -> None:
    here = scene(tmp_path, "random", "150")
    part = here.part
    assert part is not None and here.groups is not None
    labels = np.array(here.groups[1])
    keep = np.array([row for row in part.chosen if labels[row] != "code"])
    record = {**part.record, "counts": {"asked_rows": 150, "selected_rows": len(keep)}}  # type: ignore[dict-item]
    scored = part.table.scored["random"]
    scored.reason[np.setdiff1d(np.arange(200), keep[:40])] = "filtered"
    here.material.parts[0] = Part("scores", part.table, "random", part.budget, keep, record)
    found = told(judge(here))
    assert found["domains"].startswith("Nearly gone: source 'code': 0 rows; as many random rows have about 2")
    assert found["funnel"] == f"The budget asks for 150 rows; there are {len(keep)}"
    first = next(alert for alert in judge(here).alerts)
    assert first.text == "random filtered 160 of 200 rows; the model may be too weak for this method"


def test_six_alerts_at_most(tmp_path: Path) -> None:
    assert len(judge(scene(tmp_path)).alerts) <= 6


def test_seconds_by_stage() -> None:
    log = [
        {"event": "trained iter_1/calibration_model", "seconds": 10.0},
        {"event": "scored round 1", "seconds": 29.0},
        {"event": "trained iter_1/selected_train_model", "seconds": 7.5},
        {"event": "trained iter_1/seed_7/selected_train_model", "seconds": 7.0},
        {"event": "trained iter_1/seed_8/selected_train_model", "seconds": 8.0},
        {"event": "trained baselines/full/model", "seconds": 78.0},
        {"event": "judged full", "seconds": 8.0},
        {"event": "round 1", "selected_rows": 3},
    ]
    sources = ReportSources("t", "pipeline", log=log)
    parts = {"warm-up": 10, "scoring": 29, "training": 7.5, "other seeds": 15, "controls": 78, "evaluation": 8}
    assert cost_of(sources) == parts
    assert judge(ReportContext(sources)).seconds == 46.5, "choosing, and one training of what was chosen"


def test_the_module_is_light() -> None:
    heavy = "('torch', 'plotly', 'pandas')"
    said = f"import sys, instdiff.reporting.verdict; print([m for m in {heavy} if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_rows_need_not_be_there(tmp_path: Path) -> None:
    make_scores(tmp_path, 60)
    (tmp_path / "rows.jsonl").unlink()
    assert read_verdict(tmp_path).word == "No outcome yet"


@pytest.mark.parametrize(("word", "end"), [("worse", ", and without these it is worse"), ("too few seeds", "")])
def test_rows_that_overlap_items_are_told(tmp_path: Path, word: str, end: str) -> None:
    hit = {"name": "ifd", "rows": 2.0, "items": 400, "items_hit": 19, "task": "heldout", "verdict_without": word}
    found = read_verdict(compared(tmp_path, line("ifd", 2.5, 0.001), leaks={"lines": [hit]}))
    (alert,) = found.alerts
    assert alert.text == f"2 of its rows overlap items of heldout; 19 of 400 are hit{end}"
