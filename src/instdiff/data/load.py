"""From whatever the user has to a pool."""

from __future__ import annotations

import itertools
import os
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.core.files import remote_place, remote_url
from instdiff.data.arrow import Packed, TableBuilder, pack
from instdiff.data.builtin.skills import rows_named as skills_named
from instdiff.data.formats import Format, format_of, known_formats, misfit, requested_format
from instdiff.data.frames import rows_of_container
from instdiff.data.hub import hub_tables
from instdiff.data.json_rows import read_lines
from instdiff.data.json_values import read_rows
from instdiff.data.mapping import check_columns, mapping_format, suggest_map, suggest_speaker
from instdiff.data.notes import Notes
from instdiff.data.pool import Pool
from instdiff.data.readers import StrPath, read_file, reads_in_part
from instdiff.data.records import LONGEST_LINE, Record, Reject
from instdiff.data.sample import REASONING, SYSTEM, TARGETS, Turns
from instdiff.data.sources import DataFile, Files, find_files
from instdiff.data.tables import read_tables
from instdiff.data.write import write_rejects
from instdiff.errors import ConfigError, DataError, did_you_mean

_TOLD = 5
_SHAPES_KEPT = 4096

Source = StrPath | Sequence[StrPath] | Iterable[Mapping[str, Any]] | Any
"""What ``frames.TAKEN`` says; of other libraries' types none is imported here."""
Log = Callable[[str], object]


def load(
    source: Source,
    *,
    format: str | None = None,
    map: Mapping[str, str] | None = None,
    targets: str = "all",
    reasoning: str = "learn",
    system: str = "keep",
    limit: int | None = None,
    longest_line_mb: int = LONGEST_LINE >> 20,
    rejects_path: str | os.PathLike[str] | None = None,
    log: Log | None = None,
) -> Pool:
    """Reads instruction data and brings it to one form.

    A record that does not fit is left out, counted and named; its place in the numbering of rows stays empty.

    Args:
        source: A ``.jsonl``, ``.ndjson``, ``.json``, ``.csv`` or ``.tsv`` file, also a compressed one, a ``.parquet``
            or ``.arrow`` file, a folder of them (``FOLDER:SPLIT``, or ``train`` where it has splits), an address that
            fsspec knows (``s3://``), ``builtin:demo``, ``builtin:skills``, ``hub:owner/name[@revision][:split]``,
            or ``-`` for JSON lines from standard input. A list of paths is one pool in their order. Or rows: a
            ``datasets.Dataset``, a pandas or polars frame, an Arrow table, a list of dicts, a selection.
        format: A format's name; by default the keys of each row decide.
        map: Which column is which (``mapping.MAP_KEYS``); of turns, which key and which speaker.
        targets: Which turns are learnt: ``all`` answers, the ``last`` one, or ``all+calls``; see ``Turns``.
        reasoning: Thoughts: ``learn``, ``context`` or ``drop``; see ``Turns``.
        system: A system turn: ``keep`` or ``fold``; see ``Turns``.
        limit: Read the first so many records only.
        longest_line_mb: Megabytes of a line, after which it is left out unread.
        rejects_path: Where to write the records that do not fit, if there are any; beside it where that is the source.
        log: Is told one line about the data and one for each of the first bad records, and what was not read.

    Raises:
        ConfigError: An option has a value that does not exist, or the source a type that is not taken, or is given
            twice.
        DataError: The source is not there, cannot be read, is empty, or has more bad records than good ones.
        StoreError: ``rejects_path`` cannot be written.
    """
    turns = check_turns(targets, reasoning, system)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, it must be at least 1")
    sources = _sources(source)
    records = itertools.chain.from_iterable(_open(one, limit, longest_line_mb << 20) for one in sources)
    loading = _Loading(_requested(format, map), limit, sources, records)
    if rejects_path is not None and not loading.fits_none:
        _put_rejects(loading.rejects, _not_over(sources, Path(rejects_path)))
    loading.check(map)
    _tell(loading, log)
    return loading.pool(turns, _size(sources) if _in_part(sources, limit) else loading.total)


def read_records(source: Source) -> Iterator[Record]:
    """The rows of files as they are, whatever their columns are; those that cannot be read are among them."""
    return (one for given in _sources(source) for _, _, some in _open(given, None, LONGEST_LINE) for one in some)


def as_pool(source: Source) -> Pool:
    """Rows as a pool: one that is there, that of a selection, or what ``load`` makes of the source."""
    if isinstance(source, Pool):
        return source
    made: Pool = source.to_pool() if hasattr(source, "to_pool") else load(source)
    return made


def _tell(loading: _Loading, log: Log | None) -> None:
    if log is not None:
        for line in loading.report():
            log(line)


def check_turns(targets: str = "all", reasoning: str = "learn", system: str = "keep") -> Turns:
    """The options as one value; a ConfigError names one that does not exist."""
    known = {"targets": (targets, TARGETS), "reasoning": (reasoning, REASONING), "system": (system, SYSTEM)}
    for name, (value, values) in known.items():
        if value not in values:
            raise ConfigError(f"unknown {name} '{value}'{did_you_mean(value, values)}")
    return Turns(targets, reasoning, system)


def load_shards(
    source: Source, count: int, index: int | None = None, *, log: Log | None = None, **how: Any
) -> list[Pool]:
    """The parts of an input, about as large and one after the other, each as ``load`` with this ``how`` would read it.

    With an ``index`` only that part; it alone is read of ``.jsonl`` and ``.parquet`` files and of the hub. Whether more
    records are bad than good does not show in a part. Rows of a part count from 0.
    """
    limit, longest = how.pop("limit", None), how.pop("longest_line_mb", LONGEST_LINE >> 20)
    sources = _sources(source)
    if not _in_part(sources, limit):
        whole = load(source, limit=limit, longest_line_mb=longest, log=log, **how)
        parts = [whole.part(len(whole) * at // count, len(whole) * (at + 1) // count) for at in range(count)]
        return parts if index is None else [parts[index]]
    form = _requested(how.get("format"), how.get("map"))
    turns = check_turns(**{name: how[name] for name in ("targets", "reasoning", "system") if name in how})
    size, out = _size(sources), []
    for at in range(count) if index is None else [index]:
        loading = _Loading(form, None, sources, _open_part(sources, at, count, longest << 20))
        out.append(loading.pool(turns, size, rejects=False))
        if log is not None:
            log(next(loading.report()))
    return out


def _requested(format: str | None, map: Mapping[str, str] | None) -> Format | None:
    if map and format is not None:
        raise ConfigError("give a format or a map, not both")
    return mapping_format(dict(map)) if map else requested_format(format)


class _Loading:
    """What is known while the records come in."""

    def __init__(self, form: Format | None, limit: int | None, sources: Sequence[_Source], files: _Records) -> None:
        self.sources = sources
        self.origin = " + ".join(one.name for one in sources)
        self.left = limit
        self.total = 0
        self.builder = TableBuilder()
        self.rejects: list[Reject] = []
        self.keys: dict[str, None] = {}
        self.formats: Counter[str] = Counter()
        self.columns: dict[str, None] = {}
        self.notes = Notes()
        self.read: dict[str, int] = {}
        self._example: dict[str, Any] | None = None
        self._fitted = False
        for name, own, records in files:
            if self.left == 0:
                break
            self._read(name, form or own, records)

    def pool(self, turns: Turns, size: int, *, rejects: bool = True) -> Pool:
        """What was read."""
        rejected = tuple(self.rejects) if rejects else ()
        names = tuple(one.name for one in self.sources)
        return Pool(self.builder.table(), "+".join(self.formats), self.origin, turns, rejected, size, names)

    def _read(self, name: str, form: Format | None, records: Iterator[Record]) -> None:
        """Takes in the records of one file, or of a part of it."""
        before = self.total
        shapes: dict[tuple[str, ...], Format | None] = {}
        for record in itertools.islice(records, self.left):
            row = record.value
            shape = None
            if row is not None:
                keys = tuple([key for key, value in row.items() if value is not None])
                if keys not in shapes:
                    if len(shapes) >= _SHAPES_KEPT:
                        shapes.clear()
                    shapes[keys] = self._shape(keys, form)
                shape = shapes[keys]
            self._take(record, shape)
        self.read[name] = self.read.get(name, 0) + self.total - before
        if self.left is not None:
            self.left -= self.total - before

    def _shape(self, keys: tuple[str, ...], form: Format | None) -> Format | None:
        found = form or format_of(keys)
        if found is not None:
            self._fitted = True
            self.columns.update(dict.fromkeys(found.keys_used(keys)))
        return found

    def _take(self, record: Record, form: Format | None) -> None:
        number = self.total
        self.total += 1
        reason = record.reason
        if record.value is not None:
            self.keys.update(dict.fromkeys(record.value))
            sample, reason = self._build(record.value, form)
            if form is not None and sample is not None:
                self.builder.add(number, sample, record.text)
                self.formats[form.name] += 1
                if record.note is not None:
                    self.notes.see(*record.note)
                return
        self.rejects.append(Reject(record.file, record.line, reason, record.text))

    def _build(self, row: dict[str, Any], form: Format | None) -> tuple[Packed | None, str]:
        """The sample that a row is, or why it is none."""
        try:
            if form is not None:
                return pack(form.build(row, self.notes)), ""
            self._example = self._example or row
            return None, misfit(row)
        except UnicodeEncodeError:
            return None, "a lone surrogate, which UTF-8 cannot hold"
        except RecursionError:
            return None, "nested too deep"
        except ValueError as error:
            return None, str(error)
        except Exception as error:  # noqa: BLE001 - a row that nobody thought of must not end the reading
            return None, f"it cannot be read: {type(error).__name__}: {error}"

    def check(self, map: Mapping[str, str] | None) -> None:
        """Raises where what was read is not worth going on with."""
        if not self.total:
            raise DataError(f"{self.origin} is empty: no record in it; check the path")
        if map and self.keys:
            check_columns(map, self.keys, self.origin)
        if self.fits_none:
            raise DataError(
                f"{self.origin}: the rows fit no known format; keys found: {_some(self.keys)}. "
                f"Formats: {known_formats()}. {self._advice()}"
            )
        if len(self.rejects) * 2 > self.total:
            first = "\n".join(f"  {reject}" for reject in self.rejects[:3])
            raise DataError(
                f"{self.origin}: {len(self.rejects):,} of {self.total:,} records cannot be used, "
                f"which is more than half. The first:\n{first}\n"
                f"Keys found: {_some(self.keys) or 'none'}. Formats: {known_formats()}. {self._advice()}"
            )

    @property
    def fits_none(self) -> bool:
        """Whether all rows are of a kind that nobody said how to read, rather than bad."""
        return self._example is not None and not self._fitted

    def _advice(self) -> str:
        found = suggest_map(self._example) if self._example else ""
        found = found or next(filter(None, (suggest_speaker(reject.reason) for reject in self.rejects)), "")
        if found:
            return f"They would be read with --map {shlex.quote(found)}"
        return "Say which column is which with --map instruction=...,response=... (or --map messages=...)"

    def report(self) -> Iterator[str]:
        """The lines for the log."""
        bad = len(self.rejects)
        one = f"format {'+'.join(self.formats)}"
        several = f"formats {', '.join(f'{name} {count:,}' for name, count in self.formats.items())}"
        yield (
            f"{self.origin}: {self.total - bad:,} rows, {several if len(self.formats) > 1 else one} "
            f"({', '.join(self.columns)})" + (f"; {bad:,} rejected" if bad else "")
        )
        for source in self.sources:
            if source.found is not None:
                yield from (f"{source.name}: {line}" for line in source.found.report(self.read))
        yield from self.notes.lines()
        yield from (str(reject) for reject in self.rejects[:_TOLD])
        if bad > _TOLD:
            yield f"… and {bad - _TOLD:,} more"


def _some(keys: Iterable[str]) -> str:
    """The keys, cut where a file without a header made whole texts of them."""
    shown = [key if len(key) <= 60 else f"{key[:60]}…" for key in keys]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")


# ── sources ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_Records = Iterator[tuple[str, Format | None, Iterator[Record]]]
"""Of each file its name, its format where something beside it says so, and its records."""


@dataclass
class _Source:
    """A source, the name that it has in messages, and its files where it has some."""

    given: Any
    name: str
    found: Files | None = None


def _sources(source: Source) -> list[_Source]:
    """The sources one by one; a ConfigError where one is given twice, a DataError where one is not there."""
    if isinstance(source, str | os.PathLike) or not isinstance(source, list | tuple):
        return [_source(source)]
    names = [os.fspath(one) for one in source if isinstance(one, str | os.PathLike)]
    if not names or len(names) < len(source):
        return [_source(source)]
    seen = set()
    for one in names:
        place = os.path.realpath(one) if os.path.exists(one) else one
        if place in seen:
            raise ConfigError(f"'{one}' is given twice as data; leave one out")
        seen.add(place)
    return [_source(one) for one in names]


def _source(source: Any) -> _Source:
    if not isinstance(source, str | os.PathLike):
        return _Source(rows_of_container(source), "rows")
    name = os.fspath(source)
    if name == "-":
        return _Source(name, "stdin")
    if name.startswith(("hub:", "builtin:skills")):
        return _Source(name, name)
    return _Source(name, name, find_files(name))


def _open(source: _Source, limit: int | None, longest: int) -> _Records:
    """The records of each file of a source."""
    name = source.name
    if source.found is not None:
        return ((file.name, file.form, read_file(file.path, file.name, None, longest)) for file in source.found.read)
    if source.given == "-":
        return iter([(name, None, read_lines(sys.stdin.buffer, name, longest))])
    if name.startswith("hub:"):
        return iter([(name, None, read_tables(hub_tables(name[4:], limit), name))])
    rows = skills_named(name) if name.startswith("builtin:") else source.given
    return iter([(name, None, read_rows(rows, name))])


def _open_part(sources: Sequence[_Source], index: int, count: int, longest: int) -> _Records:
    """Of sources whose files are laid end to end, a part of so many that are about as large."""
    if sources[0].name.startswith("hub:"):
        name = sources[0].name
        yield name, None, read_tables(hub_tables(name[4:], None, (index, count)), name)
    total, begin = _size(sources), 0
    first, last = total * index // count, total * (index + 1) // count
    for file in _files(sources):
        size = _bytes(file.path)
        start, stop = (min(max(at - begin, 0), size) for at in (first, last))
        begin += size
        if start < stop:
            yield file.name, file.form, read_file(file.path, file.name, (start, stop, size), longest)


def _in_part(sources: Sequence[_Source], limit: int | None) -> bool:
    """Whether a part of the sources can be read alone."""
    if limit is not None:
        return False
    if len(sources) == 1 and sources[0].name.startswith("hub:"):
        return True
    # A server need not tell how large a file is; such a one is read whole.
    return all(source.found is not None for source in sources) and all(
        reads_in_part(file.path) and (remote_url(file.path) is None or _bytes(file.path)) for file in _files(sources)
    )


def _files(sources: Iterable[_Source]) -> list[DataFile]:
    return [file for source in sources if source.found is not None for file in source.found.read]


def _size(sources: Iterable[_Source]) -> int:
    """Bytes of the files of sources; the hub, which has revisions, is not asked."""
    return sum(_bytes(file.path) for file in _files(sources))


def _bytes(path: StrPath) -> int:
    if (url := remote_url(path)) is None:
        return Path(path).stat().st_size
    system, place = remote_place(url)
    try:
        return int(system.size(place) or 0)
    except OSError as error:
        raise DataError(f"cannot read {url}: {error}; check the address and your key") from error


def _put_rejects(rejects: Sequence[Reject], path: Path) -> None:
    """Write the rejects; where there are none, those of an earlier reading go."""
    if rejects:
        write_rejects(rejects, path)
    elif remote_url(path) is None:
        with suppress(OSError):
            path.unlink()


def _not_over(sources: Sequence[_Source], rejects: Path) -> Path:
    """Mended rejects may be the input itself, whose good rows must not be lost."""
    if os.path.realpath(rejects) in [os.path.realpath(file.path) for file in _files(sources)]:
        return rejects.with_name(f"{rejects.stem}_again{rejects.suffix}")
    return rejects
