"""What the store still has of a score file: values of tokens, vectors, tags, and how much of each signal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Embedding, Entropy, Nll, Pooled, Prompted, ResponseOnly, Side, Signal, vectors
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import Pool
from instdiff.errors import InstDiffError
from instdiff.methods import TShirt
from instdiff.scoring.planner import plan
from instdiff.scoring.table import ScoreTable
from instdiff.selection.tokens import informative
from instdiff.store import ColumnId, Store, info

if TYPE_CHECKING:
    from instdiff.scoring.workbench import Workbench

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Response tokens of some rows with what models said of each: a row's pieces of text, and columns of values.

    A column of another length than the pieces is empty in that row. ``deltas`` are pairs of columns to subtract.
    """

    pieces: list[list[str]]
    columns: dict[str, Ragged]
    deltas: dict[str, tuple[str, str]]


def signals_of(table: ScoreTable) -> dict[Signal, list[str]]:
    """Every signal of a table's methods, with the methods that use it."""
    out: dict[Signal, list[str]] = {}
    for name, scored in table.scored.items():
        for signal in scored.method.signals().values():
            for asked in (*signal.needs(), signal):
                if name not in out.setdefault(asked, []):
                    out[asked].append(name)
    return out


def _reachable(table: ScoreTable) -> list[Signal]:
    """Signals whose model the file names."""
    return [signal for signal in signals_of(table) if signal.model in table.meta.get("models", {})]


def bench_of(table: ScoreTable, pool: Pool, store: str | None) -> Workbench:
    """The rows with the models and settings that a score file names; nothing is computed."""
    from instdiff.scoring.models import recorded
    from instdiff.scoring.workbench import Workbench

    return Workbench(pool, *recorded(table.meta), Store(store or table.meta.get("store")), log=lambda line: None)


# ── tokens ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def tokens(table: ScoreTable, pool: Pool, store: str | None) -> Tokens | None:
    """What the store has of the response tokens of these rows; None where it has nothing.

    Raises:
        InstDiffError: a model or tokenizer that the scores name cannot be read.
    """
    asked = [s for s in _reachable(table) if _of_tokens(s)]
    if not asked:
        return None
    bench = bench_of(table, pool, store)
    shown = min(asked, key=lambda s: not isinstance(s.view, Prompted))
    rows = bench.render(shown.model, shown.view).tokens
    ids = Ragged(rows.ids.values[rows.target], np.concatenate([[0], np.cumsum(rows.n_targets())]))
    columns: dict[str, Ragged] = {}
    for signal in asked:
        values = bench.vectors(signal)
        whole = np.flatnonzero(values.lengths() == ids.lengths())
        if values.lengths()[whole].sum():
            columns[_signal_text(signal)] = Ragged.of(
                [values[row] if values.lengths()[row] == len(ids[row]) else [] for row in range(len(ids))], np.float32
            )
    columns |= _informative(table, columns)
    hf = bench.tokenizer(shown.model).hf
    spoken = {int(token): _piece(hf, int(token)) for token in np.unique(ids.values)}
    pieces = [[spoken[int(token)] for token in ids[row]] for row in range(len(ids))]
    return Tokens(pieces, columns, dict(_deltas(columns))) if columns else None


def _informative(table: ScoreTable, columns: Mapping[str, Ragged]) -> dict[str, Ragged]:
    """Per method which tokens it selects, where it is T-SHIRT; rows of which this is not known are empty."""
    out = {}
    for name, scored in table.scored.items():
        if isinstance(scored.method, TShirt):
            asked = scored.method.signals()
            given, alone = (columns.get(_signal_text(asked[end])) for end in ("given", "alone"))
            if given is not None and alone is not None:
                marks = [informative(scored, given[row], alone[row]) for row in range(len(given))]
                out[f"{name} informative"] = Ragged.of([[] if one is None else one for one in marks], np.float32)
    return out


def _of_tokens(signal: Signal) -> bool:
    views = isinstance(signal.view, Prompted | ResponseOnly)
    return isinstance(signal.measure, Nll | Entropy) and views and signal.of == "pool"


def _signal_text(signal: Signal) -> str:
    word = "NLL" if isinstance(signal.measure, Nll) else "entropy"
    return f"{word} by {signal.model}{' without the prompt' if isinstance(signal.view, ResponseOnly) else ''}"


def _signal_name(signal: Signal) -> str:
    """What a model says of what it sees, in words."""
    measure = type(signal.measure).__name__
    view = f"{signal.view.name} side" if isinstance(signal.view, Side) else type(signal.view).__name__
    words = {"Nll": "NLL", "MeanNll": "mean NLL", "Prompted": "with the prompt", "ResponseOnly": "without the prompt"}
    return f"{words.get(measure, measure.lower())} {words.get(view, f'of {view.lower()}')}, by {signal.model}"


def _deltas(columns: Mapping[str, Ragged]) -> Iterator[tuple[str, tuple[str, str]]]:
    for name in columns:
        word, _, role = name.partition(" by ")
        if f"{name} without the prompt" in columns:
            yield f"{word}: what the prompt saves ({role})", (f"{name} without the prompt", name)
        if role == "base" and f"{word} by calibrated" in columns:
            yield f"delta {word}: base minus calibrated", (name, f"{word} by calibrated")


def _piece(hf: Any, token: int) -> str:
    """A token's text; the mark of a word's beginning is a space again."""
    raw = hf.convert_ids_to_tokens(token)
    if isinstance(raw, str) and raw.startswith("▁"):
        return raw.replace("▁", " ")
    return str(hf.decode([token], clean_up_tokenization_spaces=False))


# ── vectors and tags ──────────────────────────────────────────────────────────────────────────────────────────────────


def find_embeddings(table: ScoreTable, pool: Pool, store: str | None) -> tuple[str, npt.NDArray[Any]] | None:
    """Vectors of all rows, and whose they are; None where the store has none for every row."""
    asked = [s for s in _reachable(table) if isinstance(s.measure, Embedding | Pooled) and s.of == "pool"]
    for signal in sorted(asked, key=lambda s: not isinstance(s.measure, Embedding)):
        bench = bench_of(table, pool, store)
        x, full = vectors(bench.vectors(signal))
        if len(x) and full.mean() > 0.99:
            out = np.zeros((len(full), x.shape[1]), np.float32)
            out[full], out[~full] = x, x.mean(0)
            return f"{type(signal.measure).__name__.lower()} by {signal.model} of the store", out
    return None


@dataclass(frozen=True)
class Tags:
    """The tags of a method: those that differ most between categories, and how often each of them all is there.

    ``share`` of a category's rows that show a tag is [tag, category]; ``shared`` is how many tags a row of one category
    has in common with another row of the other, on average: NaN for a category of one row. ``frequency`` has of each
    tag how many rows show it, the most frequent first; ``per_row`` has of each row how many tags it shows, NaN
    where that is not known.
    """

    names: list[str]
    categories: list[str]
    share: npt.NDArray[np.float64]
    shared: npt.NDArray[np.float64]
    frequency: Indices
    per_row: npt.NDArray[np.float64]


def tags(table: ScoreTable, pool: Pool, store: str | None, labels: list[str] | None, most: int = 24) -> Tags | None:
    """The tags of the first method that has any; ``labels`` are the rows' categories, by default one for all.

    Raises:
        InstDiffError: the store lacks the activations.
    """
    from instdiff.scoring.scorer import recalling

    found = next((s for s in table.scored.values() if s.method.tag), None)
    if found is None:
        return None
    s = recalling(found, table.meta, pool, store=store).signals()
    rows = np.flatnonzero(found.method.ready(s))
    offsets, marks = found.method.tags(s, rows)
    groups = np.array(["all rows"] * len(s) if labels is None else labels, object)[rows].astype(str)
    kinds, group = np.unique(groups, return_inverse=True)
    sizes = np.bincount(group, minlength=len(kinds)).astype(float)
    names, column = np.unique(marks, return_inverse=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (column, np.repeat(group, np.diff(offsets))), 1)
    share = counts / np.maximum(sizes, 1)
    order = np.argsort(-(share.max(1) - share.min(1)), kind="stable")[:most]
    order = order[np.lexsort((-share[order].max(1), share[order].argmax(1)))]
    frequency = np.sort(counts.sum(1).astype(np.int64))[::-1]
    said = [f"{found.method.tag} {int(names[i])}" for i in order]
    per_row = np.full(len(s), np.nan)
    per_row[rows] = np.diff(offsets)
    return Tags(said, kinds.tolist(), share[order], _shared(counts, sizes), frequency, per_row)


def _shared(counts: npt.NDArray[np.float64], sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Over pairs of different rows the mean number of tags in common, from the rows of each category by tag."""
    both, pairs = counts.T @ counts, np.outer(sizes, sizes)
    both[np.diag_indices_from(both)] -= counts.sum(0)
    pairs[np.diag_indices_from(pairs)] -= sizes
    return np.divide(both, pairs, out=np.full_like(both, np.nan), where=pairs > 0)


# ── cost ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def costs(table: ScoreTable, store: str | None) -> dict[str, Any]:
    """Per signal who uses it and what the store holds of it; passes together and one method at a time."""
    asked = {signal: used for signal, used in signals_of(table).items() if signal.measure.needs_model}
    root = Store(store or table.meta.get("store"))
    held = {facts.name: facts for facts in info(root)} if root.root.is_dir() else {}
    lines = []
    for signal, used in asked.items():
        facts = held.get(_column(signal, table.meta))
        lines.append(
            {
                "signal": _signal_name(signal),
                "methods": used,
                "rows": facts.rows if facts else None,
                "values": facts.values if facts else None,
                "megabytes": round(facts.bytes / 1e6, 2) if facts else None,
            }
        )
    alone = [scored.method.signals().values() for scored in table.scored.values()]
    return {
        "signals": lines,
        "passes": sum(map(len, plan(asked))),
        "passes_alone": sum(sum(map(len, plan(signals))) for signals in alone),
        "store": str(root.root),
    }


def _column(signal: Signal, meta: Mapping[str, Any]) -> str:
    """Where the store keeps a signal, by what the file says of its model."""
    model = meta.get("models", {}).get(signal.model, {}).get("fingerprint")
    dtype = "text" if signal.measure.of_text else meta.get("settings", {}).get("dtype", "")
    return ColumnId(str(model), dtype, signal.measure).name


def why_not(error: InstDiffError | OSError) -> str:
    """An error as half a sentence."""
    return str(error).rstrip(".")
