"""The score table: one row per input row, a value with its reason and details per method."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from instdiff.config.methods import NotNamed, is_file, make_method, short_name
from instdiff.core import Budget, Method, Scored
from instdiff.core.arrays.ids import Ids
from instdiff.core.budget import parse_budget
from instdiff.core.display import html_table, pandas, some
from instdiff.core.files import SUM, open_file, remote_url, without_sum, write_record, writing
from instdiff.core.sums import sum_of
from instdiff.errors import ConfigError, DataError, StoreError, did_you_mean, require
from instdiff.store.parquet import reading_parquet, writing_parquet

META = b"instdiff"
TEXT_SUM = "crc32 of the rows"
"""Key of a text table's metadata."""
FIRST, THOUGHT = ("row", "id", "n_tokens", "truncated"), "n_thought"
ROWS_AT_ONCE = 1 << 16
"""Rows written at once: a row group of a .parquet file."""


@dataclass(frozen=True)
class ScoreTable:
    """What ``score`` gives: 0-based positions in the input, content hashes, and the methods' parts by name.

    ``n_tokens`` are scored response tokens, -1 where there was no tokenizer to count them; ``truncated`` rows were cut
    at the length limit. ``meta`` says what made the table: data, models, settings and parameters, with their
    fingerprints. ``n_thought`` are the scored tokens of thoughts, where some row has one.
    """

    rows: npt.NDArray[np.int64]
    ids: Ids
    n_tokens: npt.NDArray[np.int64]
    truncated: npt.NDArray[np.bool_]
    scored: dict[str, Scored]
    meta: dict[str, Any] = field(default_factory=dict)
    n_thought: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> Scored:
        if name not in self.scored:
            raise DataError(f"these scores have no method '{name}'{did_you_mean(name, self.scored)}")
        return replace(self.scored[name], meta=self.meta)

    def __iter__(self) -> Iterator[str]:
        return iter(self.scored)

    def counted_by(self, other: ScoreTable) -> ScoreTable:
        """The same scores with the tokens that another table of the same rows counts."""
        counts: dict[str, Any] = {"n_tokens": other.n_tokens, "n_thought": other.n_thought}
        return replace(self, scored={name: replace(one, **counts) for name, one in self.scored.items()}, **counts)

    def reasons(self) -> dict[str, dict[str, int]]:
        """Per method, how many rows have no score for which reason."""
        out: dict[str, dict[str, int]] = {}
        for name, scored in self.scored.items():
            out[name] = dict(sorted(Counter(str(word) for word in scored.reason if word is not None).items()))
        return out

    def to_arrow(self) -> pa.Table:
        """The columns of ``scores.parquet``; the metadata names store, models and settings."""
        return self._part(slice(None))

    def _part(self, at: slice) -> pa.Table:
        n_tokens = self.n_tokens[at]
        columns: dict[str, Any] = {
            "row": pa.array(self.rows[at], pa.int64()),
            "id": pa.array(list(self.ids[at]), pa.string()),
            "n_tokens": pa.array(n_tokens, pa.int64(), mask=n_tokens < 0),
            "truncated": pa.array(self.truncated[at], pa.bool_()),
        }
        if self.n_thought is not None:
            columns[THOUGHT] = pa.array(self.n_thought[at], pa.int64())
        for name, scored in self.scored.items():
            columns[name] = _floats(scored.value[at])
            columns[f"{name}.why"] = pa.array(scored.reason[at], pa.string())
            for detail, values in scored.details.items():
                columns[f"{name}.{detail}"] = _floats(values[at])
        return pa.table(columns).replace_schema_metadata({META: json.dumps(self.meta, ensure_ascii=False).encode()})

    def _parts(self) -> Iterator[pa.Table]:
        for start in range(0, max(1, len(self)), ROWS_AT_ONCE):
            yield self._part(slice(start, start + ROWS_AT_ONCE))

    def __repr__(self) -> str:
        known = some(f"{name} ({int(scored.eligible.sum()):,} with a score)" for name, scored in self.scored.items())
        return f"<ScoreTable of {len(self):,} rows: {known or 'no method'}>"

    def head(self, n: int = 5) -> list[dict[str, Any]]:
        """The first rows of the table, as in the score file."""
        rows: list[dict[str, Any]] = self._part(slice(0, n)).to_pylist()
        return rows

    def plot(self, name: str | None = None, budget: str | int | Budget = "10%") -> Any:
        """A plotly figure: a histogram for each method, or for the one named, with the rows within a budget coloured.

        A PlanError where plotly is missing.
        """
        go = plotly()
        from plotly.subplots import make_subplots

        names = [name] if name else list(self.scored)
        figure = make_subplots(rows=len(names), cols=1, subplot_titles=names)
        for number, scored in enumerate(map(self.__getitem__, names), 1):
            chosen = np.zeros(len(self), bool)
            chosen[parse_budget(budget).take(scored.best(), scored)] = True
            edges = (
                np.histogram_bin_edges(scored.value[scored.eligible], 40) if scored.eligible.any() else np.arange(2.0)
            )
            for label, mask in (("other rows", ~chosen), (f"within {budget}", chosen)):
                count, _ = np.histogram(scored.value[mask & scored.eligible], edges)
                bars = go.Bar(x=(edges[1:] + edges[:-1]) / 2, y=count, name=label, legendgroup=label)
                figure.add_trace(bars.update(showlegend=number == 1), row=number, col=1)
        return figure.update_layout(barmode="stack", bargap=0, height=120 + 220 * len(names))

    def _repr_html_(self) -> str:
        """What a notebook shows: a line for each method."""
        lines = [
            [
                name,
                int(scored.eligible.sum()),
                *_spread(scored.value),
                ", ".join(f"{n} {word}" for word, n in self.reasons()[name].items()),
            ]
            for name, scored in self.scored.items()
        ]
        header = ["method", "eligible", "lowest", "median", "highest", "excluded"]
        return f"<p>{len(self):,} rows</p>{html_table(header, lines)}"

    def to_pandas(self) -> Any:
        """A pandas data frame; a PlanError where pandas is missing."""
        pandas()
        return self.to_arrow().to_pandas()

    def joined(self, other: ScoreTable) -> ScoreTable:
        """The same with the methods of another table of these rows, which replace those of one name."""
        methods = {**self.meta.get("methods", {}), **other.meta.get("methods", {})}
        return replace(
            other, scored={**self.scored, **other.scored}, meta={**self.meta, **other.meta, "methods": methods}
        )

    def write(self, path: str | Path) -> None:
        """To ``.parquet``, or with the same columns to ``.jsonl`` or ``.csv``, where the metadata stands beside it.

        Raises:
            StoreError: the path cannot be written, or ends otherwise.
        """
        path = Path(path)
        if path.suffix not in (".parquet", ".jsonl", ".csv"):
            raise StoreError(f"scores go to .parquet, .jsonl or .csv, not to '{path}'")
        with writing(path) as aside:
            if path.suffix == ".parquet":
                with writing_parquet(aside, self._part(slice(0)).schema, compression="zstd") as file:
                    for part in self._parts():
                        file.write_table(part)
            else:
                _write_text(self._parts(), aside, path.suffix)
                with open(aside, "rb") as text:
                    found = sum_of(text)
        if path.suffix != ".parquet":
            write_record(sidecar(path), {**self.meta, TEXT_SUM: found})


def plotly(what: str = "a picture") -> Any:
    """The drawing library.

    Raises:
        PlanError: it is missing.
    """
    require("plotly", what)
    import plotly.graph_objects as go

    return go


def _spread(value: npt.NDArray[np.float64]) -> list[float]:
    some = value[np.isfinite(value)]
    return [float(f(some)) if len(some) else float("nan") for f in (np.min, np.median, np.max)]


def sidecar(path: Path) -> Path:
    """Where the metadata of a text table stands."""
    return path.with_name(f"{path.name}.meta.json")


def _floats(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values, pa.float64(), mask=~np.isfinite(values))


def _write_text(parts: Iterable[pa.Table], aside: Path, suffix: str) -> None:
    with open(aside, "w", encoding="utf-8", newline="") as file:
        for number, part in enumerate(parts):
            if suffix == ".csv":
                rows = csv.writer(file)
                if number == 0:
                    rows.writerow(part.column_names)
                rows.writerows(zip(*(column.to_pylist() for column in part.columns), strict=True))
                continue
            for row in part.to_pylist():
                file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


@dataclass(frozen=True)
class NotRun(Method):
    """Stands for a user's method whose file nobody asked to run: its scores can be read, but not ranked by."""

    spec: str
    given: Mapping[str, Any]
    option: str = ""

    def params(self) -> dict[str, Any]:
        """Hyper-parameters as the file has them."""
        return dict(self.given)

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Refuse with a ConfigError that says how to allow it."""
        raise ConfigError(
            f"these scores are by '{self.spec}', a file that is not run unless you name it; "
            f"give {self.option or f'--method {self.spec}'}"
        )


def read_scores(path: str | Path, run: Iterable[str] = ()) -> ScoreTable:
    """A table that ``write`` wrote, here or at an address; a StoreError where the file is absent or is no score file.

    ``run`` are users' methods, as ``file.py:Class``, that may be imported. A score file may come from anywhere, so the
    files that its metadata names are not run.
    """
    if not isinstance(path, str | Path):
        raise ConfigError(f"scores are read from a file; not from {type(path).__name__}")
    path = Path(path)
    if not (path.is_file() or remote_url(path)):
        raise StoreError(f"cannot read scores '{path}': no such file; `instdiff score` writes it")
    try:
        table = _read(path)
        meta = dict(json.loads((table.schema.metadata or {}).get(META, b"{}")))
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StoreError(f"cannot read scores '{path}': {reason}; score again, or take a copy") from None
    lacking = [name for name in FIRST if name not in table.column_names]
    if lacking or "methods" not in meta:
        raise StoreError(f"'{path}' is no score file of instdiff: it lacks {', '.join(lacking) or 'its metadata'}")
    ids = Ids.of(name for chunk in table["id"].chunks for name in chunk.to_pylist())
    n_tokens = table["n_tokens"].cast(pa.int64()).fill_null(-1).to_numpy()
    thought = table[THOUGHT].cast(pa.int64()).to_numpy() if THOUGHT in table.column_names else None
    files = {short_name(spec): spec for spec in run if is_file(spec)}
    scored = {
        name: replace(_read_scored(table, name, _method(entry, files), ids, n_tokens), n_thought=thought)
        for name, entry in meta["methods"].items()
    }
    truncated = np.asarray(table["truncated"].to_pylist(), bool)
    return ScoreTable(table["row"].to_numpy(), ids, n_tokens, truncated, scored, meta, thought)


def _read(path: Path) -> pa.Table:
    with open_file(path) as file:
        if path.suffix == ".parquet":
            with reading_parquet(file) as whole:
                return whole.read()
        if path.suffix == ".csv":
            from pyarrow import csv as pacsv

            table = pacsv.read_csv(file, convert_options=pacsv.ConvertOptions(strings_can_be_null=True))
        else:
            from pyarrow import json as pajson

            table = pajson.read_json(file)
        try:
            with open_file(sidecar(path)) as beside:
                meta = without_sum(json.loads(beside.read()))
        except FileNotFoundError:
            return table.replace_schema_metadata({META: b"{}"})
        file.seek(0)
        if meta.pop(TEXT_SUM, None) not in (None, sum_of(file)):
            raise ValueError(
                f"it was changed since it was written; if that was you, delete '{TEXT_SUM}' and '{SUM}' from "
                f"'{sidecar(path)}'"
            )
    return table.replace_schema_metadata({META: json.dumps(meta).encode()})


def _method(entry: Mapping[str, Any], files: Mapping[str, str]) -> Method:
    spec, params = entry["spec"], entry["params"]
    if is_file(spec):
        if short_name(spec) not in files:
            return NotRun(spec, params)
        spec = files[short_name(spec)]
    try:
        return make_method(spec, params, files=files)
    except NotNamed as error:
        return NotRun(error.spec, params, error.option)


def _read_scored(table: pa.Table, name: str, method: Method, ids: Ids, n_tokens: npt.NDArray[np.int64]) -> Scored:
    reason = np.full(len(ids), None, object)
    reason[:] = table[f"{name}.why"].to_pylist()

    def values(column: str) -> npt.NDArray[np.float64]:
        return np.asarray(table[column].cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)

    details = {
        c.removeprefix(f"{name}."): values(c)
        for c in table.column_names
        if c.startswith(f"{name}.") and c != f"{name}.why"
    }
    return Scored(name, method, values(name), reason, details, ids, n_tokens)
