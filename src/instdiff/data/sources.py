"""Which files a source is: a file, a folder with or without splits, an address."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from instdiff.core.files import open_file, remote_place, remote_url
from instdiff.data.formats import Format
from instdiff.data.mapping import llama_factory_format
from instdiff.data.readers import StrPath, count_rows, holds_rows, known_kinds, reader_for
from instdiff.errors import DataError, did_you_mean

BUILTIN = Path(__file__).resolve().parent / "builtin"
_INFO = "dataset_info.json"
# What LLaMA-Factory, `datasets` and the hub put beside the data: no rows in it.
_NO_DATA = (_INFO, "dataset_infos.json", "dataset_dict.json", "state.json")
_SPLITS = {
    "train": "train(ing)?",
    "validation": "validation|valid|val|dev",
    "test": "test|testing|eval|evaluation",
}
_ABOUT = re.compile(r"(README|LICEN[CS]E|NOTICE|CITATION|CHANGELOG)\b", re.IGNORECASE)
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file to read: where it is, how it is called in messages, and its format where something beside it says so."""

    path: StrPath
    name: str
    form: Format | None = None


@dataclass
class Files:
    """The files of one source: those that are read, as the split of this name, and those left out."""

    read: list[DataFile]
    split: str = ""
    left: list[str] = field(default_factory=list)

    def report(self, counts: Mapping[str, int]) -> Iterator[str]:
        """What the log says of files that were left out, given how many records were read of the others."""
        if not self.left:
            return
        read = [f"{os.path.basename(file.name)} ({_rows(counts.get(file.name))})" for file in self.read]
        left = [f"{_base(name)}{_count(name)}" for name in self.left[:_SHOWN]]
        split = f"split {self.split}: " if self.split else ""
        yield f"{split}read {_some(read)}; left out {_some(left, len(self.left))}"


def _base(name: str) -> str:
    """The last part of a place; of a folder with its slash."""
    return os.path.basename(name.rstrip("/")) + "/" * name.endswith("/")


def _some(names: list[str], count: int = 0) -> str:
    more = max(count, len(names)) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _rows(count: int | None) -> str:
    return "not reached" if count is None else f"{count:,} row{'s' * (count != 1)}"


def _count(name: str) -> str:
    if remote_url(name) is not None or os.path.basename(name) in _NO_DATA or not reader_for(name):
        return ""
    if not os.path.isfile(name):
        return " (no file)"
    try:
        return f" ({_rows(count_rows(name))})"
    except DataError:
        return " (no rows)"


def find_files(name: str) -> Files:
    """The data files of a path or an address, of a folder with splits those of ``train`` or of ``FOLDER:SPLIT``.

    A DataError where nothing is there, or a folder has splits and no ``train``.
    """
    if name.startswith("builtin:"):
        return Files([DataFile(_builtin(name), name)])
    url = remote_url(name)
    if url is not None and url.startswith(("http://", "https://")):
        raise DataError(_web_message(url))
    place, split = (url or name), ""
    kind = _kind(place)
    if kind is None and ":" in place:
        folder, _, split = place.rpartition(":")
        if re.fullmatch(r"[\w.-]+", split) and _kind(folder) == "folder":
            return _choose(folder, *_splits(folder), split)
    if kind is None:
        raise DataError(_missing_message(Path(name), name) if url is None else _missing_url(url))
    if kind == "folder":
        return _choose(place.rstrip("/") if url else place, *_splits(place), "")
    folder, _, base = place.rpartition("/")
    return Files([DataFile(place, place, _described(folder or ".").get(base))])


def _kind(place: str) -> str | None:
    """Whether a place is a ``file``, a ``folder``, or nothing."""
    if remote_url(place) is None:
        return "folder" if os.path.isdir(place) else "file" if os.path.exists(place) else None
    system, inside = remote_place(place)
    try:
        return "file" if system.isfile(inside) else "folder" if system.isdir(inside) else None
    except Exception as error:
        raise _unreachable(place, error) from error


def _list(folder: str) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, without hidden ones."""
    if remote_url(folder) is None:
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir()) for entry in found if _is_there(entry)]
    else:
        system, place = remote_place(folder)
        try:
            entries = [
                (facts["name"].rstrip("/").rpartition("/")[2], facts["type"] == "directory")
                for facts in system.ls(place, detail=True)
            ]
        except Exception as error:
            raise _unreachable(folder, error) from error
    names = sorted(entry for entry in entries if entry[0][:1] not in (".", ""))
    return [name for name, is_folder in names if not is_folder], [name for name, is_folder in names if is_folder]


def _is_there(entry: os.DirEntry[str]) -> bool:
    if not entry.name.startswith(".") and entry.is_symlink() and not os.path.exists(entry.path):
        raise DataError(f"{entry.path} is a link to '{os.readlink(entry.path)}', which is not there; fix or remove it")
    return True


def _unreachable(url: str, error: Exception) -> DataError:
    return DataError(f"cannot read {url}: {str(error) or type(error).__name__}; check the address and your key")


def _join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if remote_url(folder) else os.path.join(folder, name)


# ── splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────

Splits = dict[str, list[str]]
"""Files by split; those of none under the empty name."""


def split_of(name: str) -> str:
    """The split that the parts of a name say, as ``datasets`` has it; empty where they say none."""
    parts = re.split(r"[-._ 0-9]+", name.lower())
    words = ((split, re.compile(f"({words})(set|data|split)?")) for split, words in _SPLITS.items())
    return next((split for split, word in words if any(map(word.fullmatch, parts))), "")


def _choose(folder: str, splits: Splits, left: list[str], asked: str) -> Files:
    if not any(splits.values()):
        folders = [name for name in left if name.endswith("/")]
        hint = f"; give one of the folders in it, such as {folders[0]}" if folders else ""
        raise DataError(f"{folder}: no data file in this folder; known kinds: {known_kinds()}{hint}")
    named = [split for split in splits if split]
    chosen = _named_split(folder, named, asked) if named or asked else ""
    entries: dict[str, dict[str, Format | None]] = {}
    read = []
    for path in splits[chosen]:
        inside, base = os.path.split(path)
        if inside not in entries:
            entries[inside] = _described(inside)
        read.append(DataFile(path, path, entries[inside].get(base)))
    others = [path for split, paths in splits.items() if split != chosen for path in paths]
    return Files(read, chosen, others + left)


def _named_split(folder: str, named: list[str], asked: str) -> str:
    """The split that is asked for, else the one to train on."""
    if (asked or "train") in named:
        return asked or "train"
    alike = [split for split in named if split_of(split) == (split_of(asked) if asked else "train")]
    if len(alike) == 1 and split_of(alike[0]):
        return alike[0]
    there = " or ".join(f"{folder}:{split}" for split in named) or f"{folder}, which has no splits"
    if asked:
        raise DataError(f"{folder} has no split '{asked}'; give {there}")
    several = "several splits to train on" if alike else "splits and none to train on"
    raise DataError(f"{folder} has {several}; give {there}")


def _splits(folder: str) -> tuple[Splits, list[str]]:
    """The data files of a folder by split, and its files without rows."""
    files, folders = _list(folder)
    if "dataset_dict.json" in files:
        names = _read_json(_join(folder, "dataset_dict.json")).get("splits") or folders
        return {name: _saved(_join(folder, name)) for name in names}, []
    if "state.json" in files and any(name.endswith(".arrow") for name in files):
        return {"": _saved(folder)}, []
    if "README.md" in files and (described := _described_splits(folder)):
        return described, []
    data, left = _data_files(folder, files)
    splits: Splits = {}
    for path in data:
        splits.setdefault(split_of(os.path.basename(path)), []).append(path)
    if data:
        return splits, left + [_join(folder, f"{name}/") for name in folders]
    if "data" in folders:
        inside, beside = _splits(_join(folder, "data"))
        return inside, left + beside + [_join(folder, f"{name}/") for name in folders if name != "data"]
    for name in folders:
        if split_of(name):
            found, beside = _data_files(_join(folder, name), _list(_join(folder, name))[0])
            splits.setdefault(name, []).extend(found)
            left += beside
        else:
            left.append(_join(folder, f"{name}/"))
    return splits, left


def _data_files(folder: str, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those of a folder's files that hold rows, and the others but for what tells of the folder."""
    data, left = list[str](), list[str]()
    for name in names:
        path = _join(folder, name)
        if not reader_for(name) or name in _NO_DATA or not (remote_url(path) or os.path.isfile(path)):
            left += [path] * (not _ABOUT.match(name))
        else:
            (left if name.endswith(".json") and not holds_rows(path) else data).append(path)
    return data, left


def _saved(folder: str) -> list[str]:
    """The files that ``save_to_disk`` wrote; others beside them are the package's own cache."""
    files, _ = _list(folder)
    state = _read_json(_join(folder, "state.json")) if "state.json" in files else {}
    listed = [str(entry["filename"]) for entry in state.get("_data_files") or [] if "filename" in entry]
    names = listed or [name for name in files if name.startswith("data-") and name.endswith(".arrow")]
    return [_join(folder, name) for name in names]


def _read_json(path: str) -> dict[str, Any]:
    try:
        with open_file(path) as file:
            found = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    return found if isinstance(found, dict) else {}


def _described_splits(folder: str) -> Splits:
    """The splits that the card of a data set names; those of its default configuration."""
    import yaml

    with open_file(_join(folder, "README.md")) as file:
        card = file.read().decode(errors="replace")
    front = re.match(r"---\s*\n(.*?)\n---", card, re.DOTALL)
    try:
        configs = (yaml.safe_load(front[1]) or {}).get("configs") if front else None
    except (yaml.YAMLError, AttributeError):
        return {}
    known = [one for one in configs or [] if isinstance(one, dict) and one.get("data_files")]
    default = [one for one in known if one.get("default") or one.get("config_name") == "default"]
    if not known:
        return {}
    described = (default or known)[0]["data_files"]
    if isinstance(described, dict):
        described = [{"split": split, "path": path} for split, path in described.items()]
    splits: Splits = {}
    for part in described if isinstance(described, list) else [described]:
        part = part if isinstance(part, dict) else {"split": "train", "path": part}
        paths = part.get("path") or []
        for pattern in [paths] if isinstance(paths, str) else paths:
            found = [path for path in _glob(folder, str(pattern)) if reader_for(path)]
            splits.setdefault(str(part.get("split", "train")), []).extend(found)
    return {split: paths for split, paths in splits.items() if paths}


def _glob(folder: str, pattern: str) -> list[str]:
    if remote_url(folder) is None:
        return sorted(os.path.join(folder, name) for name in glob.glob(pattern, root_dir=folder, recursive=True))
    system, place = remote_place(folder)
    return sorted(_join(folder, found[len(place) :].strip("/")) for found in system.glob(f"{place}/{pattern}"))


# ── what lies beside, and what is not there ───────────────────────────────────────────────────────────────────────────


def _described(folder: str) -> dict[str, Format | None]:
    """The formats that LLaMA-Factory's ``dataset_info.json`` gives to files of a folder, by their names."""
    path = os.path.join(folder, _INFO)
    if remote_url(folder) is not None or not os.path.isfile(path):
        return {}
    entries = _read_json(path).values()
    return {
        str(entry["file_name"]): llama_factory_format(entry)
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str)
    }


def _builtin(name: str) -> Path:
    data, _, part = name.removeprefix("builtin:").partition("/")
    path = BUILTIN / data / f"{part or 'train'}.jsonl"
    if not path.is_file():
        there = [f"{p.parent.name}/{p.stem}".removesuffix("/train") for p in sorted(BUILTIN.glob("*/*.jsonl"))]
        there.append("skills")
        raise DataError(f"no built-in data '{name}'{did_you_mean(name, [f'builtin:{known}' for known in there])}")
    return path


def _web_message(url: str) -> str:
    found = re.match(r"https?://huggingface\.co/datasets/([^/?#]+/[^/?#]+)", url)
    return f"{url} is a web address, which is not read: download it, or write hub:{found[1] if found else 'OWNER/NAME'}"


_NOT_EXPANDED = "wildcards and commas are not expanded; repeat --data, once for each file"


def _missing_url(url: str) -> str:
    return f"{url} is not there{f': {_NOT_EXPANDED}' if re.search(r'[*?,]', url) else '; check the address'}"


def _missing_message(path: Path, name: str) -> str:
    if re.search(r"[*?\[]", name) or any(os.path.exists(part.strip()) for part in name.split(",")):
        return f"{name} is not there: {_NOT_EXPANDED}"
    folder = path.parent
    if not folder.is_dir():
        hint = f"; for a data set on the Hugging Face hub write hub:{name}" if name.count("/") == 1 else ""
        return f"{name} is not there: no folder {folder}{hint}"
    there = {other: other.partition(".")[0] for other in sorted(os.listdir(folder))}
    near = get_close_matches(path.name.partition(".")[0], set(there.values()), n=2, cutoff=0.5)  # all end alike
    close = [other for stem in near for other in there if there[other] == stem][:3]
    return f"{name} is not there" + (f"; did you mean {' or '.join(close)}?" if close else "; check the path")
