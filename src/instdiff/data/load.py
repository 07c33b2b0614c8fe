"""From whatever the user has to a pool."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from instdiff.core.files import remote_place, remote_url
from instdiff.data.arrow import TableBuilder
from instdiff.data.builtin.skills import rows_named as skills_named
from instdiff.data.formats import Format, check_columns, known_formats, requested_format, vote
from instdiff.data.hub import hub_rows
from instdiff.data.pool import Pool
from instdiff.data.readers import (
    READERS,
    Record,
    Reject,
    StrPath,
    read_file,
    read_lines,
    read_rows,
    reader_for,
    reads_in_part,
)
from instdiff.data.sample import REASONING, SYSTEM, TARGETS, Turns
from instdiff.data.write import write_rejects
from instdiff.errors import ConfigError, DataError, did_you_mean

_WINDOW = 100
_TOLD = 5
# What LLaMA-Factory and the hub put beside the data: no rows in it.
_NO_DATA = ("dataset_info.json", "dataset_infos.json")
_BUILTIN = Path(__file__).resolve().parent / "builtin"

Source = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
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
    rejects_path: str | os.PathLike[str] | None = None,
    log: Log | None = None,
) -> Pool:
    """Reads instruction data and brings it to one form.

    A record that does not fit is left out, counted and named; its place in the numbering of rows stays empty.

    Args:
        source: A ``.jsonl``, ``.json`` (both also ``.gz``), ``.parquet``, ``.csv`` or ``.tsv`` file, a folder of them,
            an address of either that fsspec knows (``s3://``, ``gs://``, ``hf://``), ``builtin:demo``,
            ``builtin:skills``, ``hub:owner/name[@revision][:split]``, ``-`` for JSON lines from standard input, or a
            list of dicts.
        format: A format's name; by default the keys of the first rows decide, in a folder for each file.
        map: Which column is the ``instruction``, ``input``, ``response``, ``system`` or ``messages``.
        targets: Which turns are learnt: ``all`` answers, the ``last`` one, or ``all+calls``; see ``Turns``.
        reasoning: Thoughts are ``learn``-ed as a part of the response, its ``context``, or ``drop``-ped.
        system: ``fold`` puts a system turn that the chat template refuses before the first user turn's text.
        limit: Read the first so many records only.
        rejects_path: Where to write the records that do not fit, if there are any; beside it where that is the source.
        log: Is told one line about the data and one for each of the first bad records.

    Raises:
        ConfigError: An option has a value that does not exist.
        DataError: The source is not there, cannot be read, is empty, or has more bad records than good ones.
        StoreError: ``rejects_path`` cannot be written.
    """
    turns = check_turns(targets, reasoning, system)
    if limit is not None and limit < 1:
        raise ConfigError(f"limit is {limit}, it must be at least 1")
    loading = _Loading(requested_format(format, map), limit, *_open(source, limit))
    if rejects_path is not None and loading.rejects:
        write_rejects(loading.rejects, _not_over(source, Path(rejects_path)))
    loading.check(map)
    if log is not None:
        for line in loading.report():
            log(line)
    return loading.pool(turns, _size(source) if _in_part(source, limit) else loading.total)


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
    limit = how.pop("limit", None)
    if not _in_part(source, limit):
        whole = load(source, limit=limit, log=log, **how)
        parts = [whole.part(len(whole) * at // count, len(whole) * (at + 1) // count) for at in range(count)]
        return parts if index is None else [parts[index]]
    form = requested_format(how.get("format"), how.get("map"))
    turns = check_turns(**{name: how[name] for name in ("targets", "reasoning", "system") if name in how})
    out = []
    for at in range(count) if index is None else [index]:
        loading = _Loading(form, None, *_open(source, None, (at, count)))
        out.append(loading.pool(turns, _size(source), rejects=False))
        if log is not None:
            log(next(loading.report()))
    return out


class _Loading:
    """What is known while the records come in."""

    def __init__(self, form: Format | None, limit: int | None, origin: str, files: Files) -> None:
        self.origin = origin
        self.left = limit
        self.total = 0
        self.builder = TableBuilder()
        self.rejects: list[Reject] = []
        self.keys: dict[str, None] = {}
        self.formats: list[str] = []
        self.columns: dict[str, None] = {}
        self._forced = form
        for head, records in files:
            self._read(records, head)
            if self.left == 0:
                break

    def pool(self, turns: Turns, size: int, *, rejects: bool = True) -> Pool:
        """What was read."""
        rejected = tuple(self.rejects) if rejects else ()
        return Pool(self.builder.table(), "+".join(self.formats), self.origin, turns, rejected, size)

    def _read(self, records: Iterator[Record], head: Iterator[Record] | None = None) -> None:
        """Takes in the records of one file, or of a part of it that does not begin with its ``head``."""
        records = itertools.islice(records, self.left)
        window, good = _until_known(records if head is None else head)
        form = self._choose(window, good) if good else None
        if head is not None:
            window = []
        before = self.total
        for record in itertools.chain(window, records):
            self._take(record, form)
        if self.left is not None:
            self.left -= self.total - before

    def _choose(self, window: list[Record], good: list[dict[str, Any]]) -> Format:
        form = self._forced or vote(good)
        if form is None:
            keys = dict.fromkeys(key for row in good for key in row)
            raise DataError(
                f"{window[0].file}: the rows fit no known format; keys found: {_some(keys)}. "
                f"Formats: {known_formats()}. {_ADVICE}"
            )
        if form.name not in self.formats:
            self.formats.append(form.name)
        self.columns.update(dict.fromkeys(form.keys_used(good)))
        return form

    def _take(self, record: Record, form: Format | None) -> None:
        row = self.total
        self.total += 1
        reason = record.reason
        if record.value is not None and form is not None:
            self.keys.update(dict.fromkeys(record.value))
            try:
                self.builder.add(row, form.parse(record.value), record.text)
                return
            except ValueError as error:
                reason = str(error)
        self.rejects.append(Reject(record.file, record.line, reason, record.text))

    def check(self, map: Mapping[str, str] | None) -> None:
        """Raises where what was read is not worth going on with."""
        if not self.total:
            raise DataError(f"{self.origin} is empty: no record in it; check the path")
        if map and self.keys:
            check_columns(map, self.keys, self.origin)
        if len(self.rejects) * 2 > self.total:
            first = "\n".join(f"  {reject}" for reject in self.rejects[:3])
            raise DataError(
                f"{self.origin}: {len(self.rejects):,} of {self.total:,} records cannot be used, "
                f"which is more than half. The first:\n{first}\n"
                f"Keys found: {_some(self.keys) or 'none'}. Formats: {known_formats()}. {_ADVICE}"
            )

    def report(self) -> Iterator[str]:
        """The lines for the log."""
        bad = len(self.rejects)
        yield (
            f"{self.origin}: {self.total - bad:,} rows, format {'+'.join(self.formats)} ({', '.join(self.columns)})"
            + (f"; {bad:,} rejected" if bad else "")
        )
        yield from (str(reject) for reject in self.rejects[:_TOLD])
        if bad > _TOLD:
            yield f"… and {bad - _TOLD:,} more"


def _until_known(records: Iterator[Record]) -> tuple[list[Record], list[dict[str, Any]]]:
    """The first records, and the rows among them by which a format is known."""
    window: list[Record] = []
    good: list[dict[str, Any]] = []
    for record in records:
        window.append(record)
        if record.value is not None:
            good.append(record.value)
            if len(good) == _WINDOW:
                break
    return window, good


_ADVICE = "Say which column is which with --map instruction=...,response=... (or --map messages=...)"


def _some(keys: Iterable[str]) -> str:
    """The keys, cut where a file without a header made whole texts of them."""
    shown = [key if len(key) <= 60 else f"{key[:60]}…" for key in keys]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "")


Files = Iterator[tuple[Iterator[Record] | None, Iterator[Record]]]
"""Of each file the records that are asked for; before them its first ones, where they do not begin with these."""


def _open(source: Source, limit: int | None, shard: tuple[int, int] | None = None) -> tuple[str, Files]:
    """How the source is called in messages, and the records of each of its files."""
    if not isinstance(source, str | os.PathLike):
        if isinstance(source, Mapping):
            raise DataError("a list of rows is expected, this is one dict; put it into a list")
        return "rows", iter([(None, read_rows(source, "rows"))])
    name = os.fspath(source)
    if name == "-":
        return "stdin", iter([(None, read_lines(sys.stdin.buffer, "stdin"))])
    if name.startswith("hub:"):
        spec = name.removeprefix("hub:")
        head = read_rows(hub_rows(spec, _WINDOW), name) if shard else None
        return name, iter([(head, read_rows(hub_rows(spec, limit, shard), name))])
    if name.startswith("builtin:skills"):
        return name, iter([(None, read_rows(skills_named(name), name))])
    files = _files(name)
    if shard is None:
        return name, ((None, read_file(path, shown)) for path, shown in files)
    return name, _part_of(files, *shard)


def _part_of(files: list[tuple[StrPath, str]], index: int, count: int) -> Files:
    """Of files that are laid end to end, a part of so many that are about as large."""
    total, begin = sum(_bytes(path) for path, _ in files), 0
    first, last = total * index // count, total * (index + 1) // count
    for path, name in files:
        size = _bytes(path)
        start, stop = (min(max(at - begin, 0), size) for at in (first, last))
        begin += size
        if start < stop:
            yield read_file(path, name), read_file(path, name, (start, stop, size))


def _in_part(source: Source, limit: int | None) -> bool:
    """Whether a part of a source can be read alone."""
    if limit is not None or not isinstance(source, str | os.PathLike):
        return False
    name = os.fspath(source)
    if name.startswith("hub:"):
        return True
    if name == "-" or name.startswith("builtin:skills"):
        return False
    # A server need not tell how large a file is; such a one is read whole.
    return all(reads_in_part(path) and (remote_url(path) is None or _bytes(path)) for path, _ in _files(name))


def _size(source: Source) -> int:
    """Bytes of a source's files; the hub, which has revisions, is not asked."""
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else ""
    return 0 if name.startswith("hub:") else sum(_bytes(path) for path, _ in _files(name))


def _bytes(path: StrPath) -> int:
    if (url := remote_url(path)) is None:
        return Path(path).stat().st_size
    system, place = remote_place(url)
    try:
        return int(system.size(place) or 0)
    except OSError as error:
        raise DataError(f"cannot read {url}: {error}; check the address and your key") from error


def _files(name: str) -> list[tuple[StrPath, str]]:
    """The data files of a path or an address, and how they are called in messages."""
    if (url := remote_url(name)) is not None:
        return [(one, one) for one in _remote(url)]
    path = _builtin(name) if name.startswith("builtin:") else Path(name)
    if path.is_dir():
        return _folder(path, name)
    if not path.exists():
        raise DataError(_missing_message(path, name))
    return [(path, name)]


def _builtin(name: str) -> Path:
    data, _, part = name.removeprefix("builtin:").partition("/")
    path = _BUILTIN / data / f"{part or 'train'}.jsonl"
    if not path.is_file():
        there = [f"{p.parent.name}/{p.stem}".removesuffix("/train") for p in sorted(_BUILTIN.glob("*/*.jsonl"))]
        there.append("skills")
        raise DataError(f"no built-in data '{name}'{did_you_mean(name, [f'builtin:{known}' for known in there])}")
    return path


def _folder(path: Path, name: str) -> list[tuple[StrPath, str]]:
    files = _data_files(name, (file.name for file in path.iterdir() if file.is_file()))
    return [(path / file, os.path.join(name, file)) for file in files]


def _data_files(folder: str, names: Iterable[str]) -> list[str]:
    """Those of a folder's files that hold rows."""
    files = [name for name in sorted(names) if name[0] != "." and name not in _NO_DATA and reader_for(name)]
    if not files:
        raise DataError(f"{folder}: no data file in this folder; known kinds: {', '.join(READERS)}")
    return files


def _remote(url: str) -> list[str]:
    """The addresses of a file, or of each file of a folder."""
    system, place = remote_place(url)
    try:
        if system.isfile(place):
            return [url]
        inside = [facts["name"] for facts in system.ls(place, detail=True) if facts["type"] == "file"]
    except FileNotFoundError:
        raise DataError(f"{url} is not there; check the address") from None
    except Exception as error:
        raise DataError(
            f"cannot read {url}: {str(error) or type(error).__name__}; check the address and your key"
        ) from error
    return [f"{url.rstrip('/')}/{name}" for name in _data_files(url, (path.rpartition("/")[2] for path in inside))]


def _missing_message(path: Path, name: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        hint = f"; for a data set on the Hugging Face hub write hub:{name}" if name.count("/") == 1 else ""
        return f"{name} is not there: no folder {folder}{hint}"
    close = get_close_matches(path.name, sorted(os.listdir(folder)), n=3, cutoff=0.6)
    return f"{name} is not there" + (f"; did you mean {' or '.join(close)}?" if close else "; check the path")


def _not_over(source: Source, rejects: Path) -> Path:
    """A mended ``rejected.jsonl`` may be the input itself, whose good rows must not be lost."""
    if isinstance(source, (str, os.PathLike)) and os.path.realpath(source) == os.path.realpath(rejects):
        return rejects.with_name(f"{rejects.stem}_again{rejects.suffix}")
    return rejects
