"""The data card of a subset: what it is, how it was chosen, and how to make it again."""

from __future__ import annotations

import html
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instdiff.core.display import visible
from instdiff.data import Pool
from instdiff.methods import METHODS
from instdiff.selection.explain import method_words, score_command
from instdiff.selection.record import origins
from instdiff.version import __version__

MADE = "<!-- written by instdiff export -->"
"""Tells a card that may be written over from one that somebody wrote."""
DATA = "data/train.parquet"
_SIZES = ((1_000, "1K"), (10_000, "10K"), (100_000, "100K"), (1_000_000, "1M"), (10_000_000, "10M"))


def size_category(rows: int) -> str:
    """The hub's word for a number of rows."""
    names = ["n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "n>10M"]
    return names[sum(rows >= limit for limit, _ in _SIZES)]


def front_matter(record: Mapping[str, Any] | None, rows: int, license: str | None, title: str, fingerprint: str) -> str:
    """The card's head, which the hub and `datasets` read."""
    from huggingface_hub import DatasetCardData

    # `datasets` keeps what it has read of a folder under the folder's name and this head: without something that goes
    # with the rows, another folder of the same name would get these.
    about = f"{rows} rows, fingerprint {fingerprint}"
    files = [{"split": "train", "path": DATA}]
    data = DatasetCardData(
        pretty_name=title,
        license=license or "unknown",
        task_categories=["text-generation"],
        size_categories=[size_category(rows)],
        tags=["instruction-tuning", "data-selection", "instdiff", *([str(record["method"])] if record else [])],
        configs=[{"config_name": "default", "description": about, "data_files": files}],
    )
    return f"---\n{data.to_yaml()}\n---"


def card(record: Mapping[str, Any] | None, pool: Pool, *, columns: list[str], license: str | None, title: str) -> str:
    """The whole ``README.md``.

    Without the record of the selection it says that nothing is known; ``license`` is that of the source.
    """
    rows = len(pool)
    parts = [front_matter(record, rows, license, title, pool.fingerprint), MADE, f"# {plain(title)}"]
    if record is None:
        parts.append(f"{rows:,} rows of {code(base(pool.origin))}. There is no record of how they were chosen.")
    else:
        parts += _body(record, rows)
    named = ", ".join(map(code, columns))
    parts += ["## Data", f"One split, `train`, in `{DATA}`. Columns: {named}."]
    parts += ["## Licence", _licence(license)]
    if record is not None:
        parts += ["## How to make it again", _again(record)]
    return "\n\n".join(parts) + "\n"


def _body(record: Mapping[str, Any], rows: int) -> list[str]:
    counts, method = record.get("counts", {}), str(record["method"])
    of, tokens = counts.get("pool_rows"), counts.get("selected_tokens")
    paper = METHODS[method].paper if method in METHODS else ""
    said = f"{rows:,} rows" + (f" of {of:,}" if of else "") + (f", {tokens:,} response tokens" if tokens else "")
    origin = " + ".join(map(base, origins(record))) or "unknown data"
    first = (
        f"{said}, chosen from {code(origin)} by {code(method)}{f' ({paper})' if paper else ''} within a budget of "
        f"{code(record.get('budget'))}, with instdiff {plain(record.get('instdiff', __version__))}."
    )
    params = record.get("params") or {}
    rows_ = [("method", plain(method)), *((code(k), code(json.dumps(v))) for k, v in params.items())]
    out = [first, "## Method", _table(("parameter", "value"), rows_)]
    models = record.get("models") or {}
    if models:
        lines = [
            tuple(map(code, (role, base(str(m.get("where"))), m.get("template") or "-", m.get("fingerprint"))))
            for role, m in models.items()
        ]
        out += ["## Models", _table(("role", "model", "template", "fingerprint"), lines)]
    settings = [(code(k), code(v)) for k, v in (record.get("settings") or {}).items()]
    out += ["## Settings", _table(("setting", "value"), settings)] if settings else []
    numbers = [(plain(k.replace("_", " ")), plain(f"{v:,}")) for k, v in counts.items() if v is not None]
    numbers += [(plain(f"excluded: {word}"), plain(f"{n:,}")) for word, n in (record.get("excluded") or {}).items()]
    out += ["## Counts", _table(("what", "how many"), numbers)] if numbers else []
    if "data" in record:
        out.append(f"Fingerprint of the source's rows: {code(record['data'].get('fingerprint'))}.")
    return out


def _licence(license: str | None) -> str:
    if license:
        return f"The source is under {code(license)}, as its user said; a subset is under the same terms."
    return "The licence of the source was not stated when this was made. Find out before you share or use it."


def _again(record: Mapping[str, Any]) -> str:
    public_record = public(record)
    entry = {"spec": record["method"], "params": record.get("params") or {}}
    meta = {**public_record, "methods": {record["method"]: entry}}
    data = [word for origin in origins(public_record) or ["DATA"] for word in ("--data", origin)]
    chosen = ["instdiff", "select", *data, "--scores", "scores.parquet"]
    chosen += [*method_words(str(record["method"]), {"spec": record["method"]})[:2]]
    chosen += ["--budget", str(record.get("budget")), "--output", "selected.jsonl"]
    groups, per = record.get("groups"), record.get("per")
    chosen += ["--per", str(per["by"]), str(per["most"])] if per else []
    chosen += ["--group-by", str(groups["by"])] if groups else []
    versions = ", ".join(plain(f"{k} {v}") for k, v in (record.get("packages") or {}).items() if v)
    said = visible(f"{score_command(meta)}\n{shlex.join(chosen)}")
    fence = "`" * max(3, _longest_run(said) + 1)
    lines = f"{fence}sh\n{said}\n{fence}"
    note = "`selection.json` has the rows' numbers and ids in order."
    calibrated = (record.get("models") or {}).get("calibrated", {}).get("where")
    if calibrated and base(str(calibrated)) != calibrated:  # a folder of whoever made it
        note += " The calibrated model is trained by `instdiff pipeline` on a part of the same data."
    return "\n\n".join([lines, note, *([f"Made with {versions}."] if versions else [])])


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [[cell.replace("\\|", "\\⟨U+007C⟩").replace("|", "\\|") for cell in line] for line in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, ["---"] * len(header), *cells])


def code(value: object) -> str:
    """A value as code in Markdown: nothing in it is markup, and it stays on its line."""
    said = visible(" ".join(str(value).split())) or " "
    ticks = "`" * (_longest_run(said) + 1)
    edge = " " if said[0] == "`" or said[-1] == "`" else ""
    return f"{ticks}{edge}{said}{edge}{ticks}"


def plain(value: object) -> str:
    """A value as words in Markdown, whose marks are escaped."""
    said = visible(" ".join(str(value).split()))
    return html.escape(re.sub(r"([\\`*_{}\[\]()#!~])", r"\\\1", said), quote=False)


def _longest_run(text: str) -> int:
    """How many back quotes stand in a row."""
    return max(map(len, re.findall("`+", text)), default=0)


def base(where: str) -> str:
    """A path without the folders of whoever made the file; names of the hub and built-in ones as they are."""
    if re.match(r"(hub|builtin|openai):", where):
        return where
    parts = where.split("+")
    return "+".join(Path(p).name if p.startswith(("/", "~", ".")) or Path(p).exists() else p for p in parts)


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record without the paths of whoever made it."""
    out = dict(record)
    if "data" in out:
        named = [base(origin) for origin in origins(record)]
        out["data"] = {**out["data"], "origin": named[0] if len(named) == 1 else named}
    if "models" in out:
        out["models"] = {role: {**m, "where": base(str(m.get("where")))} for role, m in out["models"].items()}
    return out
