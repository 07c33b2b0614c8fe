"""``instdiff verdict``: one card as text, picture, Markdown and JSON; what it says is what the run found."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from instdiff.cli.console import fit
from instdiff.core.files import read_json
from instdiff.experiments.summary import add_verdicts

from .shell import cli, ok

TASK = {"suite": "heldout", "task": "heldout", "metric": "nll", "higher_is_better": False, "budget": "10% tokens"}
RANDOM = {"name": "random", **TASK, "seeds": 3, "value": 2.885, "by_seed": [2.877, 2.885, 2.895]}


def run(value: float, p: float | None = 0.001, name: str = "ifd") -> Path:
    """A comparison of one method with random rows; without ``p`` it has one seed."""
    diff = value - 2.885
    ends = (None, None) if p is None else (diff - 0.1, diff + 0.1)
    line: dict[str, Any] = {
        "name": name,
        **TASK,
        "value": value,
        "diff": diff,
        "diff_low": ends[0],
        "diff_high": ends[1],
    }
    line |= {"p": p, "seeds": 1 if p is None else 3, "rows": 40, "tokens": 1900, "warmup_s": 1.0, "score_s": 92.0}
    line |= {"train_s": 4.0, "cost_unit": "CPU seconds"}
    add_verdicts([line])
    Path("run").mkdir(exist_ok=True)
    facts = {"lines": [RANDOM, line], "against": "random", "cost_unit": "CPU seconds"}
    Path("run/comparison.json").write_text(json.dumps(facts), encoding="utf-8")
    return Path("run")


def texts(picture: str) -> list[str]:
    """The words of a picture, which must be XML."""
    found = ET.parse(picture).getroot().iter("{http://www.w3.org/2000/svg}text")
    return [one.text or "" for one in found]


def test_the_card_in_a_terminal() -> None:
    ran = ok("verdict", run(2.5))
    assert ran.out.splitlines() == [
        "Better than random",
        "  ifd has a held-out NLL of 2.500, -0.385 [-0.485, -0.285] against random.",
        "  difference: -0.385 nats per token in held-out NLL, 95 % interval -0.485 to -0.285; lower is better",
        "  seeds: 3 of ifd, 3 of random",
        "  chosen: 40 rows, 1,900 tokens by ifd, budget 10% tokens",
        "  cost: 1.62 min on a CPU, to choose and train",
    ]
    for width in (60, 80, 140):
        assert max(map(len, fit(ran.out, width).splitlines())) <= width
    assert ok("verdict", run(3.4)).out.startswith("Worse than random\n")
    assert ok("verdict", run(2.9, 0.6)).out.startswith("Not told apart from random\n")


def test_too_few_seeds_have_no_interval() -> None:
    ran = ok("verdict", run(2.5, None), "--output", "v.svg")
    assert ran.out.startswith("Too few seeds\n") and "too few seeds for an interval" in ran.out
    assert "look at: 1 seed of ifd, 3 of random: a verdict needs 3 on either side" in ran.out
    assert "better →" not in texts("v.svg")


def test_all_kinds_of_files_say_the_same() -> None:
    places = [f"v{ending}" for ending in (".svg", ".md", ".txt", ".json")]
    ran = ok("verdict", run(2.5), *(word for place in places for word in ("--output", place)))
    assert ran.err.splitlines() == [f"card -> {place}" for place in places]
    assert Path("v.txt").read_text() == ran.out
    assert read_json("v.json")["word"] == "Better than random" and read_json("v.json")["low"] == pytest.approx(-0.485)
    told = Path("v.md").read_text()
    assert told.startswith("### Better than random\n") and "| seeds | 3 of ifd, 3 of random |" in told
    assert "](" not in told and str(Path.cwd()) not in told
    shown = texts("v.svg")
    assert shown[0] == "Better than random" and "better →" in shown and "3 of ifd, 3 of random" in shown
    assert ok("verdict", "run", "--json").json == read_json("v.json")


def test_the_picture_asks_for_nothing_and_knows_light_and_dark() -> None:
    ok("verdict", run(2.5), "--output", "v.svg")
    picture = Path("v.svg").read_text(encoding="utf-8")
    assert "prefers-color-scheme:dark" in picture and 'role="img"' in picture and "<title>Better than random" in picture
    assert not re.search(r"url\(|@import|@font-face|<script|<image|href|https?://(?!www\.w3\.org/2000/svg)", picture)
    root = ET.fromstring(picture)
    at = {one.get("class"): float(one.get("cx", one.get("x1", "0"))) for one in root if one.get("class")}
    assert at["axis"] < at["bar"], "better is to the right of random, also where lower is better"


def test_what_names_say_cannot_change_a_card() -> None:
    evil = "<script>|[x](file:///etc)`\u202e"
    ok("verdict", run(2.5, name=evil), "--output", "v.svg", "--output", "v.md")
    assert any("⟨U+202E⟩" in line for line in texts("v.svg")) and "<script>" not in Path("v.svg").read_text()
    told = Path("v.md").read_text()
    assert "\\<script\\>\\|\\[x\\]" in told and "\u202e" not in told


def test_a_run_that_is_not_finished_is_called_so() -> None:
    cell = Path("run/cells/random/10pct/seed_0")
    cell.mkdir(parents=True)
    (cell / "cell.json").write_text("{}")
    ran = ok("verdict", "run", "--output", "v.svg", "--output", "v.md")
    assert ran.out.startswith("No outcome yet\n  This comparison is not finished: 1 of its trainings are judged.")
    assert texts("v.svg")[0] == "No outcome yet" and "No outcome yet" in Path("v.md").read_text()


def test_what_is_wrong_is_one_sentence() -> None:
    assert cli("verdict", run(2.5), "--output", "v.png").error == (
        "a card goes to .svg, .md, .txt or .json, not to 'v.png'"
    )
    assert "there is no 'nowhere'" in cli("verdict", "nowhere").error


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_picture_in_a_page(scheme: str) -> None:
    """No word leaves the card, and its ground goes with the page."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    ok("verdict", run(2.5), "--output", "v.svg")
    with api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(color_scheme=scheme)
        tab.goto(Path("v.svg").resolve().as_uri())
        ends = tab.evaluate("[...document.querySelectorAll('text')].map(t => t.getBBox().x + t.getBBox().width)")
        ground = tab.evaluate("getComputedStyle(document.querySelector('.card')).fill")
        browser.close()
    assert max(ends) <= 672 and ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
