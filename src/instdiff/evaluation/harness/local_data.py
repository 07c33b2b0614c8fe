"""Local files of benchmarks, in the formats in which they are published, as the rows that lm-eval's tasks read.

A file is ``.jsonl``, ``.json`` (an array, or an object with the rows under one key), ``.csv``, ``.parquet``, or a
``.zip`` of CSV files as MMLU is published; a folder holds several. ``PATH[1000:]`` and ``PATH[-1000:]`` take some rows
of a file, for one that is partly trained on. Examples to show are read from the file's neighbour: ``train`` or ``dev``
in place of ``test`` in its name.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from instdiff.data.readers import reader_for
from instdiff.errors import DataError
from instdiff.evaluation.task_data import Record, locate, read_rows, split_slice

Parts = dict[str, dict[str, list[Record]]]
"""Rows by subject ('' where a task has none), then by split: ``test`` or ``shots``."""

_SPLIT = re.compile(r"(?:(?P<name>.+?)_+)?(?P<split>test|dev|val|validation|train)", re.IGNORECASE)
_SHOTS = ("dev", "train", "validation", "val")
"""Splits that examples come from, the best first."""
_TESTS = ("test", "validation", "val")
"""Splits to test on, the best first: some benchmarks keep the answers of their test split secret."""
_SUBJECTS = ("subject", "type", "task")
"""Columns that name the subject of a row."""


def local_file(
    task: str, names: Sequence[str], data_dir: str | None, task_data: Mapping[str, str], suite: str
) -> str | None:
    """The path that is given for a task, or the file or folder in ``data_dir`` that is called like it.

    A file may also lie in a folder called like the task or the suite. Raises a DataError where the path given, or the
    folder, is not there.
    """
    for name in names:
        stems = [name, *(f"{name}_{split}" for split in _TESTS)]
        places = [f"{folder}{stem}" for folder in ("", f"{suite}/", f"{name}/") for stem in stems]
        found = locate(task, [*places, *(f"{name}/{split}" for split in _TESTS)], data_dir, task_data)
        if found is None and data_dir is not None and (Path(data_dir).expanduser() / name).is_dir():
            found = str(Path(data_dir).expanduser() / name)
        if found is not None:
            return found
    return None


# ── what is in it ─────────────────────────────────────────────────────────────────────────────────────────────────────


def parts(where: str, read: Callable[[Record], Record | None], *, subjects: bool = False) -> Parts:
    """The rows of a file or folder; a DataError where a file cannot be read, or has no row of the kind.

    ``read`` brings a row to the task's own columns, or gives None for a row of another kind. With ``subjects`` the task
    has subjects, by a column or by the names of files.
    """
    path, taken = split_slice(where)
    out: Parts = {}
    for file, stem, split, rows in _tables(path, subjects):
        rows = rows[taken] if split == "test" else rows
        for number, row in enumerate(rows, 1):
            try:
                good = read(row)
            except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                raise DataError(
                    f"{file}, row {number}: not in a format that is read here ({type(error).__name__}: {error}); "
                    f"its columns: {', '.join(map(str, row))}"
                ) from None
            if good is not None:
                subject = next((str(row[key]) for key in _SUBJECTS if row.get(key)), stem) if subjects else ""
                out.setdefault(subject.replace(" ", "_"), {}).setdefault(split, []).append(good)
    if not any(splits.get("test") for splits in out.values()):
        raise DataError(f"'{where}' has no rows to test on")
    return {subject: splits for subject, splits in out.items() if splits.get("test")}


def _tables(path: Path, subjects: bool) -> Iterator[tuple[str, str, str, list[Record]]]:
    """Of each file its name, what it is called without its split, its split, and its rows."""
    if path.suffix == ".zip":
        yield from _read_zip(path)
        return
    files = [path]
    if path.is_dir():
        readable = [file for file in sorted(path.rglob("*")) if file.is_file() and reader_for(file)]
        files = [file for file in readable if subjects or _split(file)[1]]
        if not files:
            raise DataError(f"folder '{path}' has no file that is called test (.jsonl, .json, .csv or .parquet)")
    else:
        stem, dot, ending = path.name.partition(".")
        beside = [path.with_name(re.sub("(test|validation|val)$", split, stem) + dot + ending) for split in _SHOTS]
        files += [file for file in beside if file != path and file.is_file()][:1]
    splits = {file: "test" if file == path else _split(file)[1] or "test" for file in files}
    test = next((split for split in _TESTS if split in splits.values()), None)
    shots = next((split for split in _SHOTS if split in splits.values() and split != test), None)
    for file, split in splits.items():
        if split in (test, shots):
            yield str(file), _split(file)[0], "test" if split == test else "shots", [row for _, row in read_rows(file)]


def _split(file: Path) -> tuple[str, str]:
    """What a file is called, and its split: by its name, or by its folder's."""
    stem = file.name.split(".")[0]
    match = _SPLIT.fullmatch(stem)
    if match is not None:
        return match["name"] or "", match["split"].lower()
    folder = file.parent.name.lower()
    return stem, folder if folder in (*_SHOTS, "test") else ""


def _read_zip(path: Path) -> Iterator[tuple[str, str, str, list[Record]]]:
    """MMLU as it is published: ``data/test/SUBJECT_test.csv`` and ``data/dev/SUBJECT_dev.csv``, without headers."""
    try:
        with zipfile.ZipFile(path) as packed:
            for member in packed.namelist():
                name, split = _split(Path(member))
                if member.endswith(".csv") and split in ("test", "dev"):
                    text = packed.read(member).decode("utf-8-sig")
                    rows = [
                        {"question": q, "choices": own, "answer": a} for q, *own, a in csv.reader(io.StringIO(text))
                    ]
                    yield f"{path}:{member}", name, "test" if split == "test" else "shots", rows
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"cannot read '{path}': {error}") from None


# ── formats: each function brings a row to the columns of the data set on the hub ─────────────────────────────────────


def arc(row: Record) -> Record:
    """ARC: the hub's, or AI2's (``question: {stem, choices: [{text, label}]}``)."""
    asked = row["question"]
    if isinstance(asked, Mapping):
        options: Iterable[Mapping[str, str]] = asked["choices"]
        choices = {key: [str(option[key]) for option in options] for key in ("text", "label")}
        asked = asked["stem"]
    else:
        choices = {key: list(row["choices"][key]) for key in ("text", "label")}
    return {"question": asked, "choices": choices, "answerKey": _one_of(choices["label"], row["answerKey"])}


def openbookqa(row: Record) -> Record:
    """OpenBookQA: the hub's, or AI2's, which is as in ARC."""
    found = arc(row if "question" in row else {**row, "question": row["question_stem"]})
    return {"question_stem": found.pop("question"), **found}


def hellaswag(row: Record) -> Record:
    """HellaSwag: the hub's, which is also the published one."""
    text = {key: str(row[key]) for key in ("ctx_a", "ctx_b", "activity_label")}
    endings = list(row["endings"])
    return {**text, "endings": endings, "label": str(_below(len(endings), int(row["label"])))}


def mmlu(row: Record) -> Record:
    """MMLU: the hub's (``choices`` and a number as ``answer``), or columns A to D and a letter."""
    choices = list(row["choices"]) if "choices" in row else [row[letter] for letter in "ABCD"]
    answer = row["answer"]
    number = "ABCD".index(answer) if isinstance(answer, str) and answer in "ABCD" else int(answer)
    if len(choices) != 4:
        raise ValueError(f"{len(choices)} choices, not 4")
    return {"question": str(row["question"]), "choices": choices, "answer": _below(4, number)}


def truthfulqa(row: Record) -> Record:
    """TruthfulQA: the hub's, the published ``mc_task.json`` (answers to labels), or the published CSV.

    The CSV gives answers between semicolons; the right ones stand first, as on the hub.
    """
    if "mc2_targets" in row:
        found = {key: row[key] for key in ("mc1_targets", "mc2_targets")}
        targets = {
            key: dict(value) if "labels" in value else {"choices": list(value), "labels": list(value.values())}
            for key, value in found.items()
        }
        return {"question": row["question"], **targets}
    right, wrong = _between(row["Correct Answers"]), _between(row["Incorrect Answers"])
    best = row["Best Answer"].strip()
    return {
        "question": row["Question"].strip(),
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": right + wrong, "labels": [1] * len(right) + [0] * len(wrong)},
    }


def _between(text: str) -> list[str]:
    found = list(dict.fromkeys(part.strip() for part in text.split(";") if part.strip()))
    if not found:
        raise ValueError("no answers between the semicolons")
    return found


def bbh(row: Record) -> Record:
    """BIG-Bench Hard: ``input`` and ``target``, published as one JSON file a subject with the rows in ``examples``."""
    return {"input": str(row["input"]), "target": str(row["target"])}


def gsm8k(row: Record) -> Record:
    """GSM8K: the hub's, which is also the published one."""
    return {"question": row["question"], "answer": row["answer"]}


def winogrande(row: Record) -> Record:
    """WinoGrande: the hub's, which is also the published one."""
    return {key: str(row[key]) for key in ("sentence", "option1", "option2", "answer")}


def medqa(row: Record) -> Record:
    """MedQA with four options: the hub's (``sent1``, ``ending0``, ..., ``label``), or the published one."""
    if "sent1" in row:
        endings, asked, label = [str(row[f"ending{number}"]) for number in range(4)], row["sent1"], int(row["label"])
    else:
        endings, asked = [str(row["options"][letter]) for letter in "ABCD"], row["question"]
        label = "ABCD".index(row["answer_idx"])
    return {"sent1": asked, **{f"ending{n}": text for n, text in enumerate(endings)}, "label": _below(4, label)}


def medmcqa(row: Record) -> Record:
    """MedMCQA as on the hub: ``cop`` counts from 0, and is -1 where the answer is kept secret."""
    number = int(row["cop"])
    if number > 3:
        raise ValueError(f"cop {number}: options are counted from 0 here, not from 1")
    return {**{key: str(row[key]) for key in ("question", "opa", "opb", "opc", "opd")}, "cop": number}


def _below(count: int, number: int) -> int:
    if not 0 <= number < count:
        raise ValueError(f"answer {number} is none of the {count}")
    return number


def _one_of(known: Sequence[str], answer: str) -> str:
    if answer.strip() not in known:
        raise ValueError(f"answer '{answer}' is none of {', '.join(known)}")
    return answer.strip()
