"""Benchmark prompts, and the reference answers to compare against."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.engine.text.judge import parse_judge
from instdiff.errors import ConfigError, DataError
from instdiff.evaluation.subject import Subject, make_generator
from instdiff.evaluation.task_data import locate, read_rows
from instdiff.scoring.models import parse_model

Record = Mapping[str, Any]
IDS = ("question_id", "id", "idx", "uid")
QUESTIONS = ("instruction", "Instruction", "prompt", "text", "question", "conversations")
OUTPUTS = "model_outputs.json"
"""A task's answers in the format of alpaca_eval, which can be another run's reference."""


@dataclass(frozen=True)
class Item:
    """One thing that is asked.

    Args:
        id: its own, or its place in the file.
        turns: what the user says; one or two turns.
        group: category or data set.
        output: an answer that the data brings.
        author: of that answer.
    """

    id: str
    turns: tuple[str, ...]
    group: str = ""
    output: str | None = None
    author: str = ""

    @property
    def question(self) -> str:
        """The first turn."""
        return self.turns[0]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def prompts_file(task: str, names: Sequence[str], data_dir: str | None, task_data: Mapping[str, str]) -> Path:
    """The file of a task: the one that is given for it, else one of these names in ``data_dir`` or a folder of it.

    Raises:
        ConfigError: no place is given, or it has no such file.
        DataError: the place is not there.
    """
    found = locate(task, in_folders(names), data_dir, task_data)
    if found is not None:
        return Path(found)
    if data_dir is None:
        raise ConfigError(
            f"task '{task}' needs its prompts; give data_dir=FOLDER with {names[0]} in it, or data.{task}=FILE"
        )
    raise ConfigError(f"'{data_dir}' has none of {', '.join(names)} for task '{task}'; give data.{task}=FILE")


def in_folders(names: Sequence[str]) -> list[str]:
    """Names of files, each also in any folder."""
    return [place for name in names for place in (name, f"*/{name}")]


def read_items(path: Path, limit: int | None = None) -> list[Item]:
    """The prompts in a file of any of the published formats.

    Raises:
        DataError: a row has no prompt, or two rows have the same id.
    """
    items = []
    for line, row in read_rows(path)[:limit]:
        turns = turns_of(row)
        if not turns:
            raise DataError(f"{path}:{line}: no prompt; a row needs one of {', '.join(('turns', *QUESTIONS))}")
        output = _output(row)
        items.append(
            Item(
                str(next((row[key] for key in IDS if row.get(key) is not None), line - 1)),
                turns,
                str(row.get("category") or row.get("dataset") or row.get("Skill") or ""),
                output,
                str(row.get("generator") or "the answers in the data") if output is not None else "",
            )
        )
    if not items:
        raise DataError(f"'{path}' has no rows")
    name, count = Counter(item.id for item in items).most_common(1)[0]
    if count > 1:
        raise DataError(f"'{path}' has the id '{name}' {count} times")
    return items


def turns_of(row: Record) -> tuple[str, ...]:
    """What the user says in a row, turn by turn; an instruction's input stands on the line after it."""
    turns = row.get("turns")
    if isinstance(turns, list) and turns:
        return tuple(_content(turn) for turn in turns)
    said = next((row[key] for key in QUESTIONS if row.get(key)), None)
    if isinstance(said, list) and said:
        said = said[0].get("value", said[0].get("content")) if isinstance(said[0], Mapping) else said[0]
    if not said:
        return ()
    instance = _instance(row)
    given = row.get("input") or instance.get("input")
    return (f"{said}\n{given}" if given else str(said),)


def _output(row: Record) -> str | None:
    found = row.get("output", _instance(row).get("output"))
    return None if found is None else str(found)


def _instance(row: Record) -> Record:
    """Self-Instruct has input and output one level down."""
    instances = row.get("instances")
    return instances[0] if isinstance(instances, list) and instances and isinstance(instances[0], Mapping) else {}


# ── references ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Reference:
    """Answers to compare with.

    Args:
        name: whose they are.
        answers: of each item; None where there is none.
    """

    name: str
    answers: list[str | None]


def reference_for(
    task: str, where: str | None, items: list[Item], usual: Path | None, subject: Subject, sampling: Sampling
) -> Reference:
    """The answers that a task's are compared with.

    Args:
        task: for messages, and the folder of its answers in another run's.
        where: a file, a folder of another run's answers, or a model that writes them; None takes what is usual.
        items: what is asked.
        usual: the file that is usual for the task, where there is one.
        subject: whose answers they are compared with; the model's answers are kept where its are.
        sampling: of a model's answers.

    Raises:
        ConfigError: there is nothing to compare with.
        DataError: a file has no answer to any of the items.
    """
    if where is None and usual is None:
        answers = [item.output for item in items]
        if all(answer is None for answer in answers):
            raise ConfigError(
                f"task '{task}' compares with other answers; give reference=FILE in alpaca_eval's format, or a model"
            )
        return Reference(next(item.author for item in items if item.output is not None), answers)
    path = usual if where is None else _file(Path(where).expanduser(), task)
    if path is None:
        assert where is not None
        name, write = _model(where, subject)
        return Reference(name, [written[0] for written in write([Prompt(item.question) for item in items], sampling)])
    name, found = _from_file(path)
    answers = [found.get(item.id, found.get(_plain(item.question))) for item in items]
    if all(answer is None for answer in answers):
        raise DataError(f"'{path}' has no answer to any of the {len(items)} prompts of task '{task}'")
    return Reference(name, answers)


def _file(path: Path, task: str) -> Path | None:
    """The file that a place means; None where it is a model."""
    if path.is_file():
        return path
    if path.suffix in (".json", ".jsonl"):
        raise ConfigError(f"the reference '{path}' is not there")
    return next((place for place in (path / task / OUTPUTS, path / OUTPUTS) if place.is_file()), None)


def is_model(where: str) -> bool:
    """Whether a reference is a model that writes, and no place with answers."""
    path = Path(where).expanduser()
    return path.suffix not in (".json", ".jsonl") and not path.is_file() and not any(path.glob(f"**/{OUTPUTS}"))


def _from_file(path: Path) -> tuple[str, dict[str, str]]:
    """Whose answers a file has, and these by instruction, or by the question's id in the format of Arena-Hard."""
    rows = read_rows(path)
    if rows and "choices" in rows[0][1]:
        found = {name: turns[0] for name, turns in read_guides(path).items() if turns}
        return str(rows[0][1].get("model_id") or path.stem), found
    found, author = {}, path.stem
    for line, row in rows:
        turns, output = turns_of(row), _output(row)
        if not turns or output is None:
            raise DataError(f"{path}:{line}: a reference needs 'instruction' and 'output'")
        found[_plain(turns[0])] = output
        author = str(row.get("generator") or author)
    return author, found


def read_guides(path: Path) -> dict[str, tuple[str, ...]]:
    """Right answers by the question's id, turn by turn.

    Raises:
        DataError: the file is in another format.
    """
    found = {}
    for line, row in read_rows(path):
        try:
            found[str(row["question_id"])] = tuple(_content(turn) for turn in row["choices"][0]["turns"])
        except (KeyError, IndexError, TypeError):
            raise DataError(f"{path}:{line}: needs 'question_id' and 'choices' with 'turns'") from None
    return found


def _content(turn: Any) -> str:
    return str(turn["content"] if isinstance(turn, Mapping) else turn)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _model(where: str, subject: Subject) -> tuple[str, Callable[[Sequence[Prompt], Sampling], list[list[str]]]]:
    """A second model: what it is called, and how it writes."""
    served = parse_judge(where) is not None
    # The template of the model under test need not be that of a server's model, which has its own.
    settings = replace(subject.settings, templates={}) if served else subject.settings
    generator = make_generator(
        where if served else "hf",
        replace(subject, model=parse_model(where), settings=settings),
        spend=lambda what, amount: subject.spend(f"reference_{what}", amount),
    )
    return generator.name, generator.write
