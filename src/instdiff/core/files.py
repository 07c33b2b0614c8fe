"""Files and folders that are whole or absent: written aside, then renamed. Addresses are opened through fsspec."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from instdiff.core.settings import Log
from instdiff.errors import DataError, InstDiffError, StoreError, lacking, require
from instdiff.version import __version__

if sys.platform != "win32":
    import fcntl

SUM = "crc32"
"""The last key of a record."""
ASIDE = ".damaged"
"""Where the name of a damaged file ends that was set aside."""


class Damaged(StoreError):
    """A file of our own is not what was written."""


def remote_url(path: str | os.PathLike[str]) -> str | None:
    """The address that a path is, such as ``s3://bucket/rows.jsonl``; of its two slashes ``Path`` leaves one."""
    found = re.match(r"([a-z][a-z0-9+]+):/+", text := os.fspath(path))
    return f"{found[1]}://{text[found.end() :]}" if found else None


def remote_place(url: str) -> tuple[Any, str]:
    """An address's fsspec file system, and the path in it; a DataError where nothing here opens it."""
    require("fsspec", f"'{url}'", DataError)
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    try:
        system, place = url_to_fs(url)
    except ImportError as error:
        raise DataError(_without(url, error)) from None
    except ValueError as error:
        raise DataError(f"'{url}' cannot be opened: {error}") from None
    return system, str(place)


def _without(url: str, error: ImportError) -> str:
    """What is said where the package that opens such addresses is missing."""
    from fsspec.registry import known_implementations  # type: ignore[import-untyped]

    package = known_implementations.get(url.partition("://")[0], {}).get("class", "").partition(".")[0]
    if package in ("s3fs", "gcsfs"):
        return lacking(f"'{url}'", package)
    missing = "'instdiff[remote]'" if package in ("", "fsspec") else package
    return f"'{url}' cannot be opened: {error}; run: pip install {missing}"


def open_file(path: str | os.PathLike[str]) -> BinaryIO:
    """A file, on this machine or at an address, to read from."""
    if (url := remote_url(path)) is None:
        return open(path, "rb")
    system, place = remote_place(url)
    file: BinaryIO = system.open(place, "rb")
    return file


@contextmanager
def _uploading(url: str) -> Iterator[Path]:
    """A file to write to, which then goes to the address: a storage shows it when it has all of it."""
    system, place = remote_place(url)
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / place.rpartition("/")[2]
        yield aside
        try:
            system.put_file(str(aside), place)
        except Exception as error:
            raise unwritable(url, error) from error


@contextmanager
def writing(path: str | os.PathLike[str], *, lasting: bool = True) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes the name when the block ends well, and is gone otherwise.

    A link is followed; a device or pipe is written directly, because a plain file in its place would destroy it. A
    folder that cannot be written or a full disk is a StoreError, and nothing is left behind. After a power cut the name
    is of all that was written, or of what was there before; without ``lasting``, also of an empty or cut file.
    """
    if (url := remote_url(path)) is not None:
        with _uploading(url) as aside:
            yield aside
        return
    path = Path(path)
    target = Path(os.path.realpath(path))
    direct = target.exists() and not target.is_file() and not target.is_dir()
    aside = target if direct else target.with_name(f".{target.name}.{uuid4().hex[:12]}.partial")
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        make_folder(target.parent)
        yield aside
        if lasting and not direct:
            move(aside, target)
        elif not direct:
            os.replace(aside, target)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if not direct:
            _remove(aside)


@contextmanager
def building(folder: str | Path) -> Iterator[Path]:
    """A folder beside ``folder`` to build in; it takes the name when the block ends well.

    After an interruption the same half-built folder is given again, so that long work can go on from what is there.
    Raises a StoreError where somebody builds it now.
    """
    folder = Path(folder)
    aside, handle = folder.with_name(f".{folder.name}.partial"), None
    try:
        make_folder(aside)
        try:
            handle = lock_folder(aside, exclusive=True)
        except BlockingIOError:
            wait = "wait until it has ended, or give another place"
            raise StoreError(f"'{folder}' is being written by another process; {wait}") from None
        yield aside
        sync(aside)
        _remove(folder)
        os.replace(aside, folder)
        sync_entries(folder.parent)
    except InstDiffError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or _disk_is_full(error):
            raise unwritable(folder, error) from error
        raise
    finally:
        if handle is not None:
            os.close(handle)


def lock_folder(folder: Path, *, exclusive: bool) -> int | None:
    """A locked handle on a folder, or None where nothing can be locked; closing it, or its process's end, frees it.

    A BlockingIOError where others hold it, and it is wanted exclusively.
    """
    if sys.platform == "win32":
        return None
    while True:
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:  # a file system without locks
            os.close(handle)
            return None
        with suppress(OSError):
            if os.stat(folder).st_ino == os.fstat(handle).st_ino:
                return handle
        os.close(handle)  # dropped meanwhile, and perhaps made anew


def move(aside: Path, target: Path) -> None:
    """Give what was written aside its name, once all of it is on the disk; the name is there too in the end."""
    sync(aside)
    os.replace(aside, target)
    sync_entries(target.parent)


def sync(path: Path) -> None:
    """Put a file, or a folder with all that is in it, onto the disk, so that a power cut cannot take it."""
    if path.is_dir():
        for place, _, names in os.walk(path, topdown=False):
            for name in names:
                sync(Path(place, name))
            sync_entries(Path(place))
    elif path.is_file():
        handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync_entries(folder: Path) -> None:
    """Put the names in a folder onto the disk, where its file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder with those above it, unless it is there."""
    lacking = [place for place in (folder, *folder.parents) if not place.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for place in lacking:
        sync_entries(place.parent)


def _disk_is_full(error: Exception) -> bool:
    """Libraries that write for us have errors of their own for it."""
    return any(words in str(error) for words in ("No space left on device", "os error 28", "file write failed"))


def unwritable(path: str | Path, error: Exception) -> StoreError:
    """The error for an output that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error)
    return StoreError(
        f"cannot write '{path}': {reason}; nothing was written there. "
        "Free space or choose another place, then run the command again"
    )


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def write_json(path: str | Path, value: Any) -> None:
    """Readable JSON, whole or absent."""
    with writing(path) as aside:
        aside.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_record(path: str | Path, facts: Mapping[str, Any]) -> None:
    """A JSON object with a sum of itself as its last key, which ``read_json`` checks and takes off."""
    write_json(path, with_sum(facts))


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    A StoreError where it is not there or may not be read, ``Damaged`` where it is not what its sum is of.
    """
    try:
        return without_sum(json.loads(Path(path).read_text(encoding="utf-8")))
    except OSError as error:
        raise StoreError(f"cannot read '{path}': {error}") from None
    except (ValueError, RecursionError) as error:
        raise Damaged(f"cannot read '{path}': {error}") from None


def set_aside(path: Path) -> str:
    """Give a damaged file or folder another name, under which nobody reads it; tells what became of it."""
    aside = path.with_name(path.name + ASIDE)
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.{number}{ASIDE}")
    try:
        os.replace(path, aside)
    except FileNotFoundError:
        return "another process has set it aside"
    except OSError as error:
        return f"it is passed over and stays where it is ({error.strerror})"
    return f"it is set aside as '{aside.name}'"


def read_whole(path: str | Path, log: Log) -> Any:
    """The value in a JSON file; None where it is not there, or was damaged: then it is set aside, and the log told.

    A StoreError where it may not be read.
    """
    try:
        return read_json(path) if os.path.isfile(path) else None
    except Damaged as error:
        log(f"warning: {error}; {set_aside(Path(path))}, and made again")
        return None


def with_sum(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts with a sum of what they are as JSON."""
    return {**facts, SUM: _json_sum(json.loads(json.dumps(facts)))}


def without_sum(value: Any) -> Any:
    """A JSON value as it was before it got a sum, if it did; a ValueError where the sum is of another."""
    if not isinstance(value, dict) or SUM not in value:
        return value
    facts = {key: part for key, part in value.items() if key != SUM}
    if value[SUM] != _json_sum(facts):
        raise ValueError(f"it was changed since it was written; if that was you, delete its key '{SUM}'")
    return facts


def _json_sum(facts: Any) -> str:
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True).encode()):08x}"


def fingerprint(*parts: object) -> str:
    """Content hash (16 bytes, in hex) of plain values: numbers, strings, None, lists, tuples, dicts."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, allow_nan=False).encode(), digest_size=16).hexdigest()


def fingerprint_files(root: Path, names: list[str]) -> str:
    """Content hash of files, by relative name and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(names):
        digest.update(f"{name}\0{(root / name).stat().st_size}\0".encode())
        with open(root / name, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


@cache
def _version(name: str) -> str | None:
    """Of an installed package; its metadata are a file of some hundred lines."""
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        return version(name)
    return None


def environment() -> dict[str, Any]:
    """Versions and machine, for the record beside every result."""
    import platform

    names = ("torch", "transformers", "tokenizers", "peft", "trl", "accelerate", "numpy", "pyarrow", "datasets")
    return {
        "instdiff": __version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in names},
    }
