"""One self-contained page from a run folder: no script, no network, all data text escaped."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from instdiff.artifact import read_json, writing
from instdiff.core import Floats, Scored
from instdiff.table import read_scores

BARS, EXAMPLES, TEXT = 60, 20, 600


def write_report(folder: Path, lines: list[dict[str, Any]]) -> Path:
    """Write ``report.html`` of a pipeline's run folder.

    Args:
        folder: the run.
        lines: one per model, as the pipeline found them.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"count": lambda n: "–" if n is None else f"{n:,}", "visible": visible}
    page = environment.from_string((Path(__file__).parent / "pages" / "run.html").read_text(encoding="utf-8"))
    rounds = [_round(path) for path in sorted(folder.glob("iter_*"), key=lambda p: int(p.name[5:]))]
    text = page.render(
        title=f"Run {folder.name}",
        summary=_summary(rounds, lines),
        lines=lines,
        flaws=bool(lines) and "flawed" in lines[0],
        rounds=rounds,
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        environment=json.dumps(read_json(folder / "environment.json"), indent=2),
    )
    path = folder / "report.html"
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def _summary(rounds: list[dict[str, Any]], lines: list[dict[str, Any]]) -> str:
    last = rounds[-1]["record"]
    counts = last["counts"]
    said = (
        f"{last['method']} chose {counts['selected_rows']:,} of {counts['pool_rows']:,} rows within {last['budget']} "
        f"in {len(rounds)} round{'s' * (len(rounds) > 1)}."
    )
    random = [line["nll"] for line in lines if line["model"].startswith("random seed")]
    if lines and random:
        mine, mean = lines[-1]["nll"], float(np.mean(random))
        word = "below" if mine < mean else "above"
        said += (
            f" Its held-out NLL is {mine:.3f}, {abs(mine - mean):.3f} {word} the mean of {len(random)} random "
            f"selection{'s' * (len(random) > 1)} with as many tokens ({min(random):.3f} to {max(random):.3f})."
        )
    return said


def _round(folder: Path) -> dict[str, Any]:
    record = read_json(folder / "selection.json")
    scored = read_scores(folder / "scores.parquet")[record["method"]]
    at = {name: place for place, name in enumerate(scored.ids)}
    chosen = np.array([at[name] for name in record["ids"]], np.int64)
    shown = {scored.name: scored.value, **scored.details}
    rows = (folder / "selected.jsonl").read_text(encoding="utf-8").splitlines()[:EXAMPLES]
    return {
        "name": folder.name.replace("iter_", "Round "),
        "record": record,
        "histograms": [h for name, values in shown.items() if (h := _histogram(name, values, chosen)) is not None],
        "examples": [_example(record, scored, place, json.loads(text)) for place, text in enumerate(rows)],
    }


def _histogram(name: str, values: Floats, chosen: np.ndarray[Any, Any]) -> dict[str, Any] | None:
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        return None
    low, high = np.quantile(finite, [0.005, 0.995])
    edges = np.linspace(low, high if high > low else low + 1, BARS + 1)
    every = np.histogram(np.clip(finite, edges[0], edges[-1]), edges)[0]
    mine = values[chosen]
    kept = np.histogram(np.clip(mine[np.isfinite(mine)], edges[0], edges[-1]), edges)[0]
    top = max(int(every.max()), 1)
    bars = [
        {"all": round(100 * a / top, 1), "kept": round(100 * k / a, 1) if a else 0}
        for a, k in zip(every.tolist(), kept.tolist(), strict=True)
    ]
    return {"name": name, "low": float(edges[0]), "high": float(edges[-1]), "bars": bars}


def _example(record: dict[str, Any], scored: Scored, place: int, row: dict[str, Any]) -> dict[str, Any]:
    values = {name: json.dumps(v, ensure_ascii=False) if not isinstance(v, str) else v for name, v in row.items()}
    first = next(
        (values[k] for k in ("instruction", "question", "prompt", "conversations", "messages") if k in values), ""
    )
    response = next((values[k] for k in ("output", "response", "answer", "completion") if values.get(k)), "")
    at = scored.ids.index(record["ids"][place])
    return {
        "row": record["rows"][place],
        "score": float(scored.value[at]),
        "instruction": _cut("\n".join(part for part in (first, values.get("input", "")) if part)),
        "response": _cut(response),
    }


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else text[:TEXT] + " …"


def visible(text: str) -> str:
    """Control and direction marks as their code points, so that data cannot rearrange the page."""
    hidden = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")
    return "".join(f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in hidden and c not in "\n\t" else c for c in text)
