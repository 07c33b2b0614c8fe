"""Size of the page of a comparison of 20 lines, and when a reader sees and can use what is on it.

Chromium opens the page from a file. Times are from the start of the navigation, the fastest of several openings.
"""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path
from shutil import which
from typing import Any

from common import arguments, cpu_seconds, finish, timed

import instdiff
from instdiff.experiments.summary import add_verdicts
from instdiff.reporting import report

ROWS, LINES, OPENINGS = (2_000, 200_000), 20, 5
INTERACTIVE_MS, MOST_MB = 1500, 20
"""When rows can be sorted and opened at the latest, and the most that a page may weigh."""
TASK = {"suite": "heldout", "task": "heldout", "metric": "nll", "higher_is_better": False, "budget": "10%", "rows": 200}
MARKS = """async () => {
  document.querySelector('.figures').scrollIntoView({ behavior: 'instant' });
  while (!document.querySelector('.main-svg')) await new Promise(requestAnimationFrame);
  const found = { picture_ms: performance.now() };
  for (const one of performance.getEntriesByType('mark')) found[`${one.name}_ms`] = one.startTime;
  const [paint] = performance.getEntriesByName('first-contentful-paint');
  return { ...found, paint_ms: paint.startTime, nodes: document.querySelectorAll('*').length };
}"""


def write_run(folder: Path, count: int) -> None:
    """Rows, scores by two methods, and what twenty lines came to."""
    rng = random.Random(0)
    words = [f"word{n}" for n in range(500)]
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for row in range(count):
            said = " ".join(rng.choices(words, k=rng.randint(5, 60)))
            file.write(json.dumps({"instruction": f"{said} {row}", "output": said, "source": f"s{row % 5}"}) + "\n")
    (folder / "scores").mkdir()
    pool = instdiff.load(str(folder / "rows.jsonl"))
    instdiff.score(pool, ["longest", "random"]).write(folder / "scores" / "a_seed_0.parquet")
    control = {"name": "random", **TASK, "seeds": 3, "value": 2.9, "by_seed": [2.88, 2.9, 2.92]}
    lines: list[dict[str, Any]] = [
        {"name": f"line {n}", **TASK, "seeds": 3, "value": 2.9 + n / 100, "low": 2.8, "high": 3.1, "diff": n / 100}
        | {"diff_low": n / 100 - 0.1, "diff_high": n / 100 + 0.1, "p": 0.5, "p_diff": 0.5, "against": "random"}
        for n in range(LINES)
    ]
    add_verdicts(lines)
    facts = {"lines": [control, *lines], "against": "random", "cost_unit": "CPU seconds"}
    (folder / "comparison.json").write_text(json.dumps(facts), encoding="utf-8")


def open_page(page: Path, openings: int) -> dict[str, float]:
    """The least of each time over some openings; nothing where there is no browser."""
    chromium = which("chromium") or which("chromium-browser") or which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        return {}
    seen = []
    with sync_playwright() as play:
        for _ in range(openings):
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1360, "height": 900})
            tab.goto(page.resolve().as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            seen.append(tab.evaluate(MARKS))
            browser.close()
    return {key: round(min(one[key] for one in seen)) for key in seen[0]}


def measure(count: int, openings: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_run(folder, count)
        before = cpu_seconds()
        seconds, page = timed(lambda: report(folder))
        found = {"rows": count, "lines": LINES, "write_s": seconds, "write_cpu_s": cpu_seconds() - before}
        return {**found, "page_mb": page.stat().st_size / 1e6, **open_page(page, openings)}


def main() -> None:
    args = arguments()
    records = [measure(count, 1 if args.quick else OPENINGS) for count in (ROWS[:1] if args.quick else ROWS)]
    finish(args, records)
    late = [one for one in records if one.get("rows_ms", 0) > INTERACTIVE_MS or one["page_mb"] > MOST_MB]
    if late and not args.quick:
        raise SystemExit(f"a page weighs more than {MOST_MB} MB or takes more than {INTERACTIVE_MS} ms: {late}")


if __name__ == "__main__":
    main()
