"""The numbers behind the report's pictures: arrays in, plain values out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Floats, Scored
from instdiff.core.arrays import correlation
from instdiff.core.budget import parse_budget
from instdiff.data import Pool
from instdiff.rendering.renderer import text_lengths
from instdiff.scoring.table import ScoreTable

Indices = npt.NDArray[np.int64]
BINS, GROUPS = 60, 12
WIDE = 1 << 16
"""Rows that are compared at once."""
UNITS = {
    "rows": "budget (rows)",
    "tokens": "budget (response tokens)",
    "share": "budget (% of the rows)",
    "eligible": "budget (% of the eligible rows)",
    "token_share": "budget (% of the response tokens)",
}
DOMAINS = ("domain", "source", "dataset", "category", "subject", "task", "topic", "type", "lang", "language")
"""Columns of the input that say what kind of row it is, in the order in which they are tried."""


def finite(value: float | None, digits: int = 6) -> float | None:
    """A number for JSON, or None."""
    return None if value is None or not np.isfinite(value) else float(f"{value:.{digits}g}")


def histogram(values: Floats, chosen: npt.NDArray[np.bool_]) -> dict[str, Any] | None:
    """Counts of all and of the chosen rows; the outermost half percent stands in the last bars."""
    some = np.isfinite(values)
    if not some.any():
        return None
    low, high = (float(edge) for edge in np.quantile(values[some], [0.005, 0.995]))
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    every, kept = (
        np.histogram(np.clip(values[mask], edges[0], edges[-1]), edges)[0].tolist() for mask in (some, some & chosen)
    )
    return {"edges": [finite(edge) for edge in edges.tolist()], "all": every, "chosen": kept}


def log_histogram(sizes: Floats, chosen: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Counts of all and of the chosen by log10 of their size; what is below 0.0001 stands in the first bar."""
    logs = np.log10(np.maximum(sizes, 1e-4))
    edges = np.linspace(-4, max(-3.0, float(logs.max())), BINS + 1)
    every, kept = (np.histogram(some, edges)[0].tolist() for some in (logs, logs[chosen]))
    return {"edges": edges.tolist(), "all": every, "chosen": kept}


def spread(values: Floats) -> dict[str, Any]:
    """Count, mean, median, standard deviation and extremes."""
    some = values[np.isfinite(values)]
    if len(some) == 0:
        return {"rows": 0}
    q = np.quantile(some, [0.05, 0.25, 0.5, 0.75, 0.95]).tolist()
    return {
        "rows": len(some),
        "mean": finite(float(some.mean())),
        "median": finite(q[2]),
        "sd": finite(float(some.std())),
        "min": finite(float(some.min())),
        "q05": finite(q[0]),
        "q25": finite(q[1]),
        "q75": finite(q[3]),
        "q95": finite(q[4]),
        "max": finite(float(some.max())),
    }


def spearman(columns: Mapping[str, Floats]) -> list[list[float | None]]:
    """Rank correlation of every pair, over the rows that have both; columns that lack the same rows are ranked once."""
    names, ranked = list(columns), dict[str, Floats]()
    some = {name: np.isfinite(values) for name, values in columns.items()}

    def ranks(name: str, both: npt.NDArray[np.bool_]) -> Floats:
        whole = np.array_equal(both, some[name])
        if not (whole and name in ranked):
            place = correlation.ranks(columns[name][both])
            place = place - place.mean() if len(place) else place
            if not whole:
                return place
            ranked[name] = place
        return ranked[name]

    out: list[list[float | None]] = [[None] * len(names) for _ in names]
    for i, a in enumerate(names):
        for j, b in enumerate(names[: i + 1]):
            x, y = (ranks(name, some[a] & some[b]) for name in (a, b))
            size = float(np.sqrt((x @ x) * (y @ y)))
            out[i][j] = out[j][i] = finite(float(x @ y) / size, 4) if len(x) > 2 and size else None
    return out


def chance(sizes: Sequence[int], rows: int) -> list[list[float | None]]:
    """The Jaccard index that random selections of these sizes have on average, about; 1 of a selection with itself."""
    n = np.array(sizes, np.float64)
    shared = np.outer(n, n) / max(rows, 1)
    out = shared / np.maximum(n[:, None] + n - shared, 1)
    np.fill_diagonal(out, 1.0)
    return [[finite(float(value), 4) for value in row] for row in out]


def random_band(every: Sequence[int], chosen: int) -> tuple[Floats, Floats]:
    """Between which counts of each bar 95 % of random selections of so many rows lie, about."""
    counts = np.array(every, np.float64)
    total = max(counts.sum(), 1)
    mean = counts * chosen / total
    reach = 1.96 * np.sqrt(mean * (1 - counts / total) * max(total - chosen, 0) / max(total - 1, 1))
    return np.maximum(mean - reach, 0), np.minimum(mean + reach, counts)


def jaccard(sets: Mapping[str, Indices]) -> list[list[float | None]]:
    """Shared rows over rows in either, for every pair."""
    one = [np.unique(rows) for rows in sets.values()]
    every = np.unique(np.concatenate(one)) if one else np.zeros(0, np.int64)
    both = np.zeros((len(one), len(one)))
    for start in range(0, len(every), WIDE):
        some = every[start : start + WIDE]
        member = np.stack([np.isin(some, rows, assume_unique=True) for rows in one]).astype(np.float32)
        both += member @ member.T
    size = np.array([len(rows) for rows in one])
    shared = both / np.maximum(size[:, None] + size - both, 1)
    return [[finite(float(value), 4) for value in row] for row in shared]


def groups(pool: Pool) -> tuple[str, list[str]] | None:
    """The column that says what kind of row it is, and its value per row; the rarest are ``other``."""
    columns: dict[str, list[str]] = {name: [] for name in DOMAINS}
    for text in pool.table.column("source").to_pylist():
        row = json.loads(text)
        for name, values in columns.items():
            value = row.get(name)
            values.append("none" if value is None else str(value))
    for name, values in columns.items():
        counts = Counter(values)
        if 2 <= len(counts) <= max(GROUPS, len(values) // 20):
            kept = {value for value, _ in counts.most_common(GROUPS)}
            return name, [value if value in kept else "other" for value in values]
    return None


def count_excluded(scored: Scored) -> dict[str, int]:
    """Rows without a score, by reason."""
    return dict(Counter(str(word) for word in scored.reason if word is not None).most_common())


def funnel(scored: Scored, chosen: Indices) -> list[dict[str, Any]]:
    """Rows and tokens of each stage."""
    known = bool(np.all(scored.n_tokens >= 0))
    whole, picked = np.ones(len(scored), bool), np.zeros(len(scored), bool)
    picked[chosen] = True
    stages = {"input": whole, "scorable": scored.scorable, "eligible": scored.takeable, "chosen": picked}
    return [
        {"stage": name, "rows": int(mask.sum()), "tokens": int(scored.n_tokens[mask].sum()) if known else None}
        for name, mask in stages.items()
    ]


def shares(stages: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Rows and tokens of each stage in percent of the first, as far as they are known."""
    out = {}
    for unit in ("rows", "tokens"):
        counts = [stage[unit] for stage in stages]
        if None not in counts and counts[0]:
            out[unit] = [100 * count / counts[0] for count in counts]
    return out


def lengths(pool: Pool | None, n_tokens: Indices, n_thought: Indices | None = None) -> dict[str, Floats]:
    """How long each row is, in every way that is known."""
    out: dict[str, Floats] = {}
    if np.all(n_tokens >= 0):
        out["response tokens"] = n_tokens.astype(np.float64)
    if n_thought is not None:
        out["thought tokens"] = n_thought.astype(np.float64)
        out["answer tokens"] = (n_tokens - n_thought).astype(np.float64)
        if pool is not None:
            out["steps"] = text_lengths(pool, "response", "steps")
    if pool is not None:
        sizes = [
            (len(s.instruction) + len(s.input), sum(len(m.content) for m in s.messages if m.role == "assistant"))
            for s in pool.samples()
        ]
        columns = np.array(sizes, np.float64).reshape(-1, 2)
        out |= {"instruction characters": columns[:, 0], "response characters": columns[:, 1]}
    return out


def response_length(known: Mapping[str, Floats]) -> tuple[str, Floats] | None:
    """The length by which a bias is looked for."""
    name = next((n for n in ("response tokens", "response characters") if n in known), None)
    return None if name is None else (name, known[name])


def threshold(scored: Scored, mask: npt.NDArray[np.bool_]) -> float | None:
    """The lowest score among the chosen rows."""
    some = scored.value[mask & scored.eligible]
    return float(some.min()) if len(some) else None


def band(scored: Scored, detail: str) -> tuple[float, float] | None:
    """The kept band of a detail: from the lowest to the highest of the eligible rows."""
    kept = scored.details[detail][scored.eligible]
    return (float(kept.min()), float(kept.max())) if len(kept) else None


def by_group(column: Floats, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Mean, median, standard deviation and extremes of a column in each group."""
    names = np.array(labels, object)
    return {kind: spread(column[names == kind]) for kind in sorted(set(labels))}


NATS = "nats per token"
WORDS = {"nll": "NLL", "diff": "delta", "avg": "mean", "std": "sd of", "n": "number of"}
"""Parts of a detail's name, as people say them."""


def spoken(name: str, detail: str) -> str:
    """A detail as people call it, with its unit."""
    if detail == name:
        return name
    words = " ".join(WORDS.get(part, part) for part in detail.split("_"))
    words = {"NLL": "mean NLL", "entropy": "mean entropy"}.get(words, words)
    return f"{name}: {words}" + (f" ({NATS})" if {"nll", "entropy"} & set(detail.split("_")) else "")


def natural(scored: Scored) -> tuple[str, Floats, int]:
    """A score as people know it: the detail that it is but for its sign, else itself.

    Returns its name, its values where the row is eligible, and the sign that makes it the score.
    """
    for detail, values in scored.details.items():
        if sign := copy_sign(scored.value, values):
            return spoken(scored.name, detail), np.where(scored.eligible, values, np.nan), sign
    return scored.name, scored.value, 1


def copy_sign(a: Floats, b: Floats) -> int:
    """1 where two columns say the same, -1 where one is the other's negative, else 0."""
    both = np.flatnonzero(np.isfinite(a) & np.isfinite(b))
    for sign in (1, -1):
        if len(both) > 2 and all(np.allclose(a[rows], sign * b[rows], rtol=1e-5) for rows in (both[:64], both)):
            return sign
    return 0


def columns_of(table: ScoreTable) -> dict[str, Floats]:
    """Every score and detail of a table under the name that people know."""
    out: dict[str, Floats] = {}
    for name, scored in table.scored.items():
        said, values, _ = natural(scored)
        prefix = "" if len(table.scored) > 1 else f"{name}: "
        for word, column in {said: values, **{spoken(name, k): v for k, v in scored.details.items()}}.items():
            out.setdefault(word.removesuffix(f" ({NATS})").removeprefix(prefix), values if word == said else column)
    return out


def distinct(columns: Mapping[str, Floats]) -> tuple[dict[str, Floats], dict[str, str]]:
    """The columns that vary, without copies and negatives of earlier ones; and of these which one each is a copy of."""
    kept: dict[str, Floats] = {}
    copies: dict[str, str] = {}
    for name, values in columns.items():
        some = values[np.isfinite(values)]
        if len(some) < 3 or np.ptp(some) == 0:
            continue
        first = next((other for other, known in kept.items() if copy_sign(known, values)), None)
        if first is None:
            kept[name] = values
        else:
            copies[name] = first
    return kept, copies


def curves(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Each line that has several budgets: its values by budget, the smallest first, with ``at`` on the axis.

    Shares are in per cent. Budgets of different units have no common axis but the rows that they bought.
    """
    by: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line.get("budget"):
            by.setdefault(str(line["name"]), []).append(dict(line))
    kept = {name: points for name, points in by.items() if len(points) > 1}
    parsed = {str(one["budget"]): parse_budget(str(one["budget"])) for points in kept.values() for one in points}
    alike = len({budget.kind for budget in parsed.values()}) == 1
    for points in kept.values():
        for one in points:
            budget = parsed[str(one["budget"])]
            percent = 100 if budget.kind not in ("rows", "tokens") else 1
            one["at"] = round(budget.amount * percent, 6) if alike else one.get("rows")
            one["unit"] = UNITS[budget.kind].replace("response", budget.part or "response") if alike else "rows"
        points[:] = sorted((one for one in points if one["at"]), key=lambda one: float(one["at"]))
    return {name: points for name, points in kept.items() if len(points) > 1}


def sample(count: int, most: int, seed: int = 0) -> Indices:
    """All positions, or a seeded sample of them in order."""
    if count <= most:
        return np.arange(count)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False))


def plain(value: Any) -> Any:
    """The same value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(v) for key, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
