"""The suite ``general``: a judge compares a model's answers with others', or rates them.

Of every comparison both orders are asked, because judges prefer a place. What a task reports:

- ``vicuna``, ``koala``, ``wizardlm``, ``self_instruct``, ``lima``: two scores from 1 to 10; an item is won, tied or
  lost by both orders together (``winrate.outcomes``). ``win_score`` is (wins - losses) / items + 1.
- ``alpaca_eval``: how much the judge prefers an answer, from the probabilities of its two choices where the server
  tells them, else 1, 0 or 0.5. The published evaluation asks in one order, drawn at random; here it is the mean of
  both. Its own reference, ``gpt4_1106_preview``, is taken where it lies in ``data_dir``.
- ``arena_hard``: five verdicts, of which the strong ones count threefold. The published interval draws games, ours
  draws questions with both their games.
- ``mt_bench``: a rating from 1 to 10 of each turn, given as a share of 10; no comparison. The model is asked the
  second turn in one message that holds the first and its answer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instdiff.core import Log
from instdiff.core.files import fingerprint, write_json, writing
from instdiff.engine.generation.backend import Prompt, Sampling
from instdiff.engine.text.judge import parse_judge
from instdiff.errors import ConfigError
from instdiff.evaluation.llm_judge.items import (
    OUTPUTS,
    Item,
    in_folders,
    prompts_file,
    read_guides,
    read_items,
    reference_for,
)
from instdiff.evaluation.llm_judge.judge import LLMJudge, Waits
from instdiff.evaluation.llm_judge.protocols import (
    TaskAnswers,
    score_arena,
    score_pairwise,
    score_preference,
    score_ratings,
)
from instdiff.evaluation.results import TaskResult
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.evaluation.task_data import choose_tasks, find_file

if TYPE_CHECKING:
    from instdiff.config.evaluate import EvalConfig


@dataclass(frozen=True)
class JudgedTask:
    """A task.

    Args:
        files: what its prompts may be called.
        judged: how the judge decides it.
        usual: what the answers that are usually compared with, or shown to the judge, may be called.
        against: whether answers are compared with others.
    """

    files: tuple[str, ...]
    judged: Callable[[TaskAnswers, LLMJudge], TaskResult]
    usual: tuple[str, ...] = ()
    against: bool = True


def _contest(name: str, *more: str) -> JudgedTask:
    return JudgedTask((f"{name}_test_set.jsonl", f"{name}.jsonl", f"{name}.json", *more), score_pairwise)


TASKS: dict[str, JudgedTask] = {
    "vicuna": _contest("vicuna", "vicuna_bench__question.jsonl"),
    "koala": _contest("koala"),
    "wizardlm": _contest("wizardlm"),
    "self_instruct": JudgedTask(
        ("sinstruct_test_set.jsonl", "self_instruct.jsonl", "user_oriented_instructions.jsonl"), score_pairwise
    ),
    "lima": _contest("lima"),
    "alpaca_eval": JudgedTask(
        ("alpaca_eval.json", "alpaca_eval.jsonl"), score_preference, ("*gpt4_1106_preview*outputs.json",)
    ),
    "arena_hard": JudgedTask(("arena_hard_prompts.jsonl", "arena_hard.jsonl"), score_arena),
    "mt_bench": JudgedTask(
        ("mt_bench__question.jsonl", "mt_bench.jsonl"), score_ratings, ("mt_bench__reference_*.jsonl",), against=False
    ),
}


@dataclass(frozen=True)
class GeneralSuite:
    """Tasks that a judge decides.

    Args:
        judge: ``openai:MODEL@URL``, or a model as everywhere.
        files: the prompts of each task that is run.
        usual: of some tasks the answers that are usually compared with.
        reference: a file, another run's answers, or a model; None takes what is usual, or what the data brings.
        limit: the first items of each task.
        sampling: of the answers, ours and a reference model's.
        waits: for the judge's server.
        judge_max_tokens: of an answer of the judge; None is what each question needs.
        judge_batch: ask by the batch API of the judge's server.
    """

    judge: str
    files: dict[str, Path]
    usual: dict[str, Path] = field(default_factory=dict)
    reference: str | None = None
    limit: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    waits: Waits = field(default_factory=Waits)
    judge_max_tokens: int | None = None
    judge_batch: bool = False

    name = "general"

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Write everything, then judge everything, so that each model is in memory once.

        Raises:
            ConfigError: there is nothing to compare with.
            DataError: a file cannot be used.
            EngineError: a model or the judge is away; what was written and judged is kept.
        """
        referee = LLMJudge(self.judge, subject, self.waits, self.judge_max_tokens, self.judge_batch)
        matches = self.matches(subject)
        place = subject.folder / "outputs" / _file_name(subject.name)
        for match in matches:
            _export(match, subject.name, place / match.name)
        subject.log(f"answers in the formats of alpaca_eval and Arena-Hard: {place}")
        return tuple(TASKS[match.name].judged(match, referee) for match in matches)

    def items(self, log: Log) -> list[BenchmarkItem]:
        """The prompts; of tasks whose turns are rated each turn."""
        out = list[BenchmarkItem]()
        for task, path in self.files.items():
            for one in read_items(path, self.limit):
                rated = [] if TASKS[task].against else list(enumerate(one.turns, 1))
                out += [BenchmarkItem(task, f"{one.id}/{place}", turn) for place, turn in rated]
                out += [] if rated else [BenchmarkItem(task, one.id, one.question)]
        return out

    def matches(self, subject: Subject) -> list[TaskAnswers]:
        """The answers of each task, ours and those that they are compared with."""
        items = {task: read_items(path, self.limit) for task, path in self.files.items()}
        ours = {task: self._write_answers(some, subject) for task, some in items.items()}
        return [self._match(task, items[task], ours[task], subject) for task in items]

    def judge_open(self, matches: Sequence[TaskAnswers], referee: LLMJudge) -> None:
        """Ask the judge everything, and keep no result."""
        for match in matches:
            TASKS[match.name].judged(match, referee)

    def _write_answers(self, items: list[Item], subject: Subject) -> list[tuple[str, ...]]:
        first = subject.generator.write([Prompt(item.question) for item in items], self.sampling)
        said: list[tuple[str, ...]] = [(answers[0],) for answers in first]
        longer = [place for place, item in enumerate(items) if len(item.turns) > 1]
        if longer:
            prompts = [Prompt(_second(items[place], said[place][0])) for place in longer]
            for place, answers in zip(longer, subject.generator.write(prompts, self.sampling), strict=True):
                said[place] = (*said[place], answers[0])
        return said

    def _match(self, task: str, items: list[Item], ours: list[tuple[str, ...]], subject: Subject) -> TaskAnswers:
        usual, where = self.usual.get(task), str(self.files[task])
        if not TASKS[task].against:
            return TaskAnswers(task, where, items, ours, None, read_guides(usual) if usual else {})
        against = reference_for(task, self.reference, items, usual, subject, self.sampling)
        return TaskAnswers(task, where, items, ours, against)


def general_suite(config: EvalConfig) -> GeneralSuite:
    """The suite as a configuration has it.

    Raises:
        ConfigError: no judge, no such task, or no file of a task.
    """
    if config.judge is None:
        raise ConfigError(
            "suite 'general' needs a judge; give judge=openai:MODEL@http://host:port/v1, or a model's folder"
        )
    if parse_judge(config.judge) is None and config.judge_batch:
        raise ConfigError(f"judge_batch is for a server, and '{config.judge}' is a model of this machine; leave it out")
    tasks = choose_tasks(list(TASKS), config.task, "general")
    files = {task: prompts_file(task, TASKS[task].files, config.data_dir, config.task_data) for task in tasks}
    folders = {task: Path(config.data_dir).expanduser() if config.data_dir else files[task].parent for task in tasks}
    usual = {task: find_file(folders[task], in_folders(TASKS[task].usual)) for task in tasks}
    return GeneralSuite(
        config.judge,
        files,
        {task: path for task, path in usual.items() if path is not None},
        config.reference,
        config.limit,
        replace(Sampling.of(config), n=1),
        Waits(config.judge_concurrency or config.concurrency, config.judge_timeout, config.judge_tries),
        config.judge_max_tokens,
        config.judge_batch,
    )


def _second(item: Item, answer: str) -> str:
    """The second turn of a conversation as one message."""
    return f"User: {item.turns[0]}\n\nAssistant: {answer}\n\nUser: {item.turns[1]}"


def _file_name(model: str) -> str:
    """A folder's name for a model, which may be a path or an address."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '_', model)[-60:]}-{fingerprint(model)[:8]}"


def _export(match: TaskAnswers, model: str, folder: Path) -> None:
    """Write a model's answers in the formats of alpaca_eval and of Arena-Hard."""
    rows: list[dict[str, Any]] = [
        {"dataset": item.group, "instruction": item.question, "output": answers[0], "generator": model}
        for item, answers in zip(match.items, match.ours, strict=True)
    ]
    write_json(folder / OUTPUTS, rows)
    lines = [
        {
            "question_id": item.id,
            "answer_id": fingerprint(model, item.id, list(answers))[:22],
            "model_id": model,
            "choices": [{"index": 0, "turns": [{"content": answer} for answer in answers]}],
            "tstamp": time.time(),
        }
        for item, answers in zip(match.items, match.ours, strict=True)
    ]
    with writing(folder / "model_answers.jsonl") as aside:
        aside.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
