"""Suites through lm-eval: its tasks, prompts, filters and metrics, our sweep and generator, item by item.

``openllm`` is the six tasks of the Open LLM Leaderboard's first version that the papers report, BBH in lm-eval's own
form (chain of thought, exact match), and any other task of lm-eval that is named; ``med`` is medical questions. Where a
local file is given a task reads it in place of the hub.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from instdiff.config.evaluate import EvalConfig
from instdiff.core import Log
from instdiff.errors import ConfigError, DataError, did_you_mean, require
from instdiff.evaluation.harness import local_data as data
from instdiff.evaluation.harness.language_model import SweepLM
from instdiff.evaluation.harness.local_data import Parts, local_file
from instdiff.evaluation.harness.number_choices import GSM8K_CHOICE
from instdiff.evaluation.results import TaskResult, distinct
from instdiff.evaluation.subject import BenchmarkItem, Subject
from instdiff.evaluation.task_data import Record

SEED = 1234
"""Of the draw of examples: lm-eval's own."""
LIKELIHOODS = {
    "perplexity": ("nll", 1.0),
    "word_perplexity": ("nll_per_word", 1.0),
    "byte_perplexity": ("nll_per_byte", 1.0),
    "bits_per_byte": ("bits_per_byte", math.log(2)),
}
"""Metrics of lm-eval that are made of an item's log-likelihood: what the item's own score is, and its unit in nats."""


OF_GROUPS = {"task", "group", "task_alias", "group_alias", "aggregate_metric_list", "metadata"}
"""What a group may say of a member that does not change the task."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval, or a ``group`` of them that differ in subject only.

    ``entry`` is lm-eval's name of the task, or what the names of the group's tasks start with; ``folder`` is where it
    is described, so that the other thousands need not be read. ``shots`` before each question and ``metric`` are the
    leaderboard's, or None for lm-eval's own; ``sample`` is lm-eval's name of the metric, where it is another. ``read``
    brings a row of a local file, called one of ``files``, to the hub's columns. ``filter`` says what is taken of an
    answer, where lm-eval takes several things. With ``own_shots`` the examples are written into the task, so that there
    are no more of them. ``only`` are the subjects of a group, where they are not all. Of ``lettered`` options, A to D,
    the first examples are shown, and the details say which letters were chosen. ``changes`` are what is different from
    lm-eval's description of the task.
    """

    name: str
    entry: str
    folder: str | None
    shots: int | None
    metric: str | None
    read: Callable[[Record], Record]
    files: tuple[str, ...]
    sample: str | None = None
    filter: str = "none"
    group: bool = False
    own_shots: bool = False
    only: tuple[str, ...] = ()
    lettered: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)

    def subject(self, entry: str) -> str:
        """What one of lm-eval's tasks of the group is about."""
        return entry.removeprefix(self.entry) if self.group else ""

    def entries(self) -> list[str]:
        """Lm-eval's names of the tasks."""
        manager = _manager(self.folder)
        if self.folder is None:
            return list(dict.fromkeys(_leaves(manager.task_index, self.name)))
        if not self.group:
            return [self.entry]
        names = [name for name in manager.all_subtasks if name.startswith(self.entry)]
        return [name for name in names if not self.only or self.subject(name) in self.only]


OPENLLM = {
    task.name: task
    for task in (
        HarnessTask("arc_challenge", "arc_challenge", "arc", 25, "acc_norm", data.arc, ("arc_challenge", "arc")),
        HarnessTask("hellaswag", "hellaswag", "hellaswag", 10, "acc_norm", data.hellaswag, ("hellaswag",)),
        HarnessTask("mmlu", "mmlu_", "mmlu/default", 5, "acc", data.mmlu, ("mmlu",), group=True),
        HarnessTask(
            "truthfulqa",
            "truthfulqa_mc2",
            "truthfulqa",
            0,
            "mc2",
            data.truthfulqa,
            ("truthfulqa", "mc_task"),
            sample="acc",
            own_shots=True,
        ),
        HarnessTask(
            "bbh",
            "bbh_cot_fewshot_",
            "bbh/cot_fewshot",
            3,
            "exact_match",
            data.bbh,
            ("bbh",),
            filter="get-answer",
            group=True,
            own_shots=True,
        ),
        HarnessTask("gsm8k", "gsm8k", "gsm8k", 5, "exact_match", data.gsm8k, ("gsm8k",), filter="strict-match"),
    )
}
MORE = {
    task.name: task
    for task in (
        HarnessTask("winogrande", "winogrande", "winogrande", 5, "acc", data.winogrande, ("winogrande",)),
        HarnessTask("openbookqa", "openbookqa", "openbookqa", 0, "acc_norm", data.openbookqa, ("openbookqa",)),
        HarnessTask(
            "gsm8k_choice", "gsm8k", "gsm8k", 0, "acc", data.gsm8k, ("gsm8k_choice", "gsm8k"), changes=GSM8K_CHOICE
        ),
    )
}
"""Tasks that are run where they are named, beside all of lm-eval's own."""
MEDICAL = (
    "anatomy",
    "clinical_knowledge",
    "college_biology",
    "college_medicine",
    "medical_genetics",
    "professional_medicine",
)
_LETTERS: dict[str, Any] = {"sample": "acc", "lettered": True}
MED = {
    task.name: task
    for task in (
        HarnessTask(
            "medqa", "medqa_4options", "medqa", 0, "accuracy", data.medqa, ("medqa", "medqa_4options"), **_LETTERS
        ),
        HarnessTask("medmcqa", "medmcqa", "medmcqa", 0, "accuracy", data.medmcqa, ("medmcqa",), **_LETTERS),
        HarnessTask(
            "mmlu_medical",
            "mmlu_",
            "mmlu/default",
            0,
            "accuracy",
            data.mmlu,
            ("mmlu_medical", "mmlu_med", "mmlu"),
            group=True,
            only=MEDICAL,
            **_LETTERS,
        ),
    )
}


def openllm_suite(config: EvalConfig) -> HarnessSuite:
    """The ``openllm`` suite of a configuration.

    Raises a ConfigError for a task that lm-eval does not have, a DataError where a local file is not there, a PlanError
    where lm-eval is not installed.
    """
    return _suite("openllm", config, OPENLLM, {**OPENLLM, **MORE}, any_task=True)


def med_suite(config: EvalConfig) -> HarnessSuite:
    """The ``med`` suite of a configuration: questions with options A to D. Raises what ``openllm_suite`` does."""
    return _suite("med", config, MED, MED, any_task=False)


def _suite(
    name: str, config: EvalConfig, usual: dict[str, HarnessTask], known: dict[str, HarnessTask], *, any_task: bool
) -> HarnessSuite:
    require("lm_eval", f"the suite {name}")
    chosen = []
    for asked in config.task or usual:
        task = known.get(asked) or (_find(asked) if any_task else None)
        if task is None:
            raise ConfigError(f"no task '{asked}'{did_you_mean(asked, known)}")
        chosen.append((task, local_file(task.name, task.files, config.data_dir, config.task_data, name)))
    given = config.model_fields_set
    return HarnessSuite(
        tuple(chosen),
        config.shots,
        config.limit,
        config.max_length if "max_length" in given else None,
        config.max_new_tokens if "max_new_tokens" in given else None,
        name,
        config.unsafe,
    )


def _find(name: str) -> HarnessTask | None:
    """A task, a group or a tag of lm-eval by its name there."""
    with quietly():
        entry = _manager(None).task_index.get(name)
    if entry is None:
        return None
    several = entry.kind.name in ("GROUP", "TAG")
    return HarnessTask(name, "" if several else name, None, None, None, dict, (name,), group=several)


@cache
def _manager(folder: str | None) -> Any:
    """Lm-eval's tasks: those of a folder, or all thousands of them."""
    from lm_eval import tasks

    if folder is None:
        return tasks.TaskManager()
    return tasks.TaskManager(include_path=str(Path(str(tasks.__file__)).parent / folder), include_defaults=False)


def _leaves(index: dict[str, Any], name: str) -> Iterator[str]:
    """The tasks of a group or a tag, of the groups in it too."""
    entry = index.get(name)
    if entry is None:
        raise ConfigError(f"lm-eval describes task '{name}' inside a group, by which it cannot be run; name the others")
    if entry.kind.name not in ("GROUP", "TAG"):
        yield name
        return
    yield from _members(index, name, sorted(entry.tags) if entry.kind.name == "TAG" else entry.cfg["task"])


def _members(index: dict[str, Any], group: str, members: list[Any]) -> Iterator[str]:
    for one in members:
        if isinstance(one, str):
            yield from _leaves(index, one)
            continue
        if set(one) - OF_GROUPS:
            raise ConfigError(f"the group '{group}' of lm-eval changes tasks that are in it; name these one by one")
        below = one.get("task") or one["group"]
        yield from _members(index, group, [below] if isinstance(below, str) else below)


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HarnessSuite:
    """Tasks of lm-eval, with their local files (None takes the hub's); the run's chat template is used where it is one.

    ``shots`` are examples before each question, by default the task's own number; ``limit`` is the number of items of
    each task, dealt over its subjects. ``max_length`` are tokens of a prompt with its answer, by default the model's
    context; ``max_new_tokens`` those after which an answer is cut, by default the task's own number. ``unsafe`` lets
    tasks run what the model has written.
    """

    tasks: tuple[tuple[HarnessTask, str | None], ...]
    shots: int | None = None
    limit: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    name: str = "openllm"
    unsafe: bool = False

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Run everything.

        Raises a DataError where a task's rows cannot be read or downloaded, a ConfigError for one that cannot be run.
        """
        lm = self.model(subject)
        with quietly(), closing(lm):
            return tuple(self._task(task, where, lm) for task, where in self.tasks)

    def model(self, subject: Subject) -> SweepLM:
        """The model as lm-eval asks it."""
        return SweepLM(subject, self.max_length, self.max_new_tokens, self.name)

    def requests(self, lm: SweepLM) -> list[Any]:
        """All that a model is asked, as lm-eval has it. Raises what ``run`` does."""
        out: list[Any] = []
        with quietly():
            for task, where in self.tasks:
                entries, samples = self._prepare(task, where, lm.subject.log)
                for name, entry in entries.items():
                    how = {"chat_template": lm.apply_chat_template, "tokenizer_name": lm.tokenizer_name}
                    entry.build_all_requests(samples=samples[name], **_chat(lm), **(how if lm.chat else {}))
                    out += [one for one in entry.instances for _ in range(one.repeats)]
        return out

    def items(self, log: Log) -> list[BenchmarkItem]:
        """What lm-eval's tasks ask, without examples."""
        out = list[BenchmarkItem]()
        with quietly():
            for task, where in self.tasks:
                entries, samples = self._prepare(task, where, log)
                # Where a task makes its rows of others, each look at `eval_docs` makes all of them.
                docs = [
                    (name, doc) for name, one in entries.items() for doc in islice(one.eval_docs, len(samples[name]))
                ]
                ids = distinct([_id(task, name, _hash(doc)) for name, doc in docs])
                said = [_said(entries[name], doc) for name, doc in docs]
                out += [BenchmarkItem(task.name, name, text) for name, text in zip(ids, said, strict=True)]
        return out

    def _task(self, task: HarnessTask, where: str | None, lm: SweepLM) -> TaskResult:
        from lm_eval.evaluator import evaluate

        lm.task, before = task.name, lm.truncated
        entries, samples = self._prepare(task, where, lm.subject.log)
        found = evaluate(
            lm=lm,
            task_dict={"tasks": entries, "groups": {}},
            samples=samples,
            bootstrap_iters=0,
            log_samples=True,
            confirm_run_unsafe_code=self.unsafe,
            **_chat(lm),
        )
        shots = min(int(entry.config.num_fewshot or 0) for entry in entries.values())
        details = {"shots": shots, "data": where or "hub", "chat_template": lm.chat is not None}
        return _result(task, entries, found, details | {"truncated": lm.truncated - before})

    def _prepare(self, task: HarnessTask, where: str | None, log: Log) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """Lm-eval's tasks by their names, and the items of each that are asked."""
        entries = self._entries(task, where, log)
        takes = share_limit({name: len(entry.eval_docs) for name, entry in entries.items()}, self.limit)
        entries = {name: entry for name, entry in entries.items() if takes[name]}
        return entries, {name: list(range(takes[name])) for name in entries}

    def _entries(self, task: HarnessTask, where: str | None, log: Log) -> dict[str, Any]:
        """Lm-eval's tasks by their names, on the rows given."""
        names = task.entries()
        local = None if where is None else data.parts(where, task.read, subjects=task.group)
        if local is not None:
            known = {task.subject(name): name for name in names}
            unknown = [part for part in local if part not in known]
            if unknown and not task.only:
                log(f"{task.name}: lm-eval has no subject {', '.join(unknown)}, so these rows are left out")
            names = [name for part, name in known.items() if part in local]
            if not names:
                raise DataError(f"'{where}' has none of the subjects of {task.name}: {', '.join(known)}")
        members = [self._member(task, name, local, log) for name in names]
        try:
            loaded = _manager(task.folder).load([{"group": task.name, "task": members}])["tasks"]
        except Exception as error:
            said = " ".join(str(error).split())[:300]
            if local is not None:
                raise DataError(
                    f"task '{task.name}' cannot read '{where}': {said}; rows need the hub's columns"
                ) from error
            raise DataError(
                f"task '{task.name}' cannot be loaded from the hub: {said}; check the network, or give its file: "
                f"data.{task.name}=PATH, or data_dir"
            ) from error
        for entry in loaded.values():
            entry.set_fewshot_seed(seed=SEED)
        return {name: loaded[name] for name in names}

    def _member(self, task: HarnessTask, name: str, local: Parts | None, log: Log) -> dict[str, Any]:
        """What is to be different from lm-eval's own description of a task."""
        described = _manager(task.folder).task_index[name].cfg
        if described.get("doc_to_image") or described.get("doc_to_audio"):
            raise ConfigError(f"task '{name}' shows images or sounds, which models here do not take; leave it out")
        if described.get("unsafe_code") and not self.unsafe:
            raise ConfigError(
                f"task '{name}' runs what the model has written, and lm-eval does not isolate it; the suite code does, "
                "or give --unsafe"
            )
        out: dict[str, Any] = {"task": name, **task.changes}
        if task.lettered:
            out["fewshot_config"] = {"sampler": "first_n"}
        shots = task.shots if self.shots is None else self.shots
        if shots is None and local is not None:
            shots = described.get("num_fewshot") or 0
        if shots is None:
            return out
        if task.own_shots:
            shots = min(shots, task.shots or 0)
        out["num_fewshot"] = shots
        if local is None:
            return out
        splits = local[task.subject(name)]
        if not (task.own_shots or (described.get("fewshot_config") or {}).get("samples")):
            have = len(splits.get("shots", []))
            if have < shots:
                log(f"warning: {name} has {have} examples to show, not the {shots} that are asked for")
            out |= {"num_fewshot": min(shots, have), "fewshot_split": "shots" if have else None}
        return out | {
            "custom_dataset": partial(_in_memory, splits),
            "dataset_kwargs": None,
            "test_split": "test",
            "validation_split": None,
            "training_split": None,
        }


def _chat(lm: SweepLM) -> dict[str, bool]:
    return {"apply_chat_template": lm.chat is not None, "fewshot_as_multiturn": lm.chat is not None}


def _in_memory(splits: dict[str, list[Record]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


def share_limit(sizes: dict[str, int], limit: int | None) -> dict[str, int]:
    """How many items of each subject are taken, so that they are ``limit`` in all and as even as can be."""
    if limit is None or limit >= sum(sizes.values()):
        return dict(sizes)
    out, left = {}, limit
    for place, name in enumerate(sorted(sizes, key=lambda name: sizes[name])):
        out[name] = min(sizes[name], left // (len(sizes) - place))
        left -= out[name]
    return {name: out[name] for name in sizes}


# ── results ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _result(task: HarnessTask, entries: dict[str, Any], found: Any, details: dict[str, Any]) -> TaskResult:
    """The metric's value of every item; the mean of every metric in the details."""
    ids: list[str] = []
    items: list[tuple[float, float, str | None]] = []
    means: dict[str, list[float]] = {}
    by: dict[str, float] = {}
    mine: list[dict[str, Any]] = []
    for name, samples in found["samples"].items():
        subject, (metric, kept) = task.subject(name), _metric(task, entries[name], samples[0])
        own = [one for one in samples if one["filter"] == kept]
        ids += [_id(task, name, one["doc_hash"]) for one in own]
        scored = [_item(metric, one) for one in own]
        if subject and any(why is None for _, _, why in scored):
            by[subject] = float(np.nanmean([score for score, _, _ in scored]))
        items, mine = items + scored, mine + own
        _add_means(means, samples, found["results"][name])
    better = next(iter(entries.values())).higher_is_better().get(metric, True)
    details = {**details, "means": {name: float(np.mean(values)) for name, values in means.items()}}
    details |= {"by_subject": by} if by else {}
    details |= _letters(mine) if task.lettered else {}
    score, weight, reason = (list(column) for column in zip(*items, strict=True))
    return TaskResult(
        task.name,
        task.metric or LIKELIHOODS.get(metric, (metric,))[0],
        distinct(ids),
        np.array(score, np.float64),
        None if set(weight) == {1.0} else np.array(weight, np.float64),
        reason,
        better if task.metric is None else True,
        details,
    )


def _id(task: HarnessTask, entry: str, mark: str) -> str:
    """An item's id, by the hash of its row."""
    return f"{task.subject(entry) or task.name}:{mark[:16]}"


def _hash(doc: Record) -> str:
    """The hash of a row as lm-eval's results have it."""
    from lm_eval.utils import handle_non_serializable, hash_string

    text = json.dumps(doc, indent=2, default=handle_non_serializable, ensure_ascii=False)
    return str(hash_string(text))


def _said(entry: Any, doc: Record) -> str:
    """What is asked in a row; of tasks that ask in several ways, all its texts."""
    text = entry.doc_to_text(doc)
    return text if isinstance(text, str) else " ".join(value for value in doc.values() if isinstance(value, str))


def _metric(task: HarnessTask, entry: Any, sample: dict[str, Any]) -> tuple[str, str]:
    """Lm-eval's names of the metric that is the score, and of what is taken of an answer."""
    if task.metric is not None:
        return task.sample or task.metric, task.filter
    there = [name for name in entry.higher_is_better() if name in sample["metrics"]] or sample["metrics"]
    return next((name for name in there if _item(name, sample)[2] != "of_all_items"), there[0]), sample["filter"]


def _item(metric: str, sample: dict[str, Any]) -> tuple[float, float, str | None]:
    """An item's score and weight, or why there is none: BLEU, for one, is of all items together."""
    value, logs = sample[metric], _logs(sample)
    if not np.isfinite(logs).all():
        return math.nan, 1.0, "non_finite"
    if len(logs) > 1 and sample["target"] == -1:
        return math.nan, 1.0, "no_answer"
    if metric in LIKELIHOODS:
        total, count = value if isinstance(value, tuple) else (value, 1)
        return -total / max(count, 1) / LIKELIHOODS[metric][1], float(count), None
    if isinstance(value, Real | np.bool_):
        return float(value), 1.0, None
    return math.nan, 1.0, "of_all_items"


def _logs(sample: dict[str, Any]) -> Any:
    """Log-likelihoods that the model gave, one for each of an item's options; none where it wrote."""
    said = [reply[0] for reply in sample["resps"] if not isinstance(reply[0], str)]
    return np.array([one[0] if isinstance(one, tuple) else one for one in said], np.float64)


def _add_means(means: dict[str, list[float]], samples: list[dict[str, Any]], told: dict[str, Any]) -> None:
    """Of every metric the items' values, or lm-eval's own number where they have none."""
    for name in sorted({(metric, one["filter"]) for one in samples for metric in one["metrics"]}):
        values = [one[name[0]] for one in samples if one["filter"] == name[1]]
        if not all(isinstance(value, Real | np.bool_) for value in values):
            values = [value for value in [told.get(",".join(name))] if isinstance(value, Real)]
        if values:
            means.setdefault(name[0] if name[1] == "none" else ",".join(name), []).extend(map(float, values))


def _letters(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean probability of the right one among the options, and how often each letter is the likeliest."""
    known = [(_logs(one), one["target"]) for one in samples if _item("acc", one)[2] is None]
    held = [np.exp(logs - logs.max()) for logs, _ in known]
    sure = [float(one[target] / one.sum()) for one, (_, target) in zip(held, known, strict=True)]
    chose = Counter("ABCD"[int(one.argmax())] for one in held)
    chosen = {letter: chose[letter] for letter in "ABCD"}
    return {"answer_probability": float(np.mean(sure)) if sure else None, "chosen": chosen}


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bars and lines of third parties; progress is shown by our own."""
    import datasets
    from lm_eval.api import task

    bars, loggers = task.tqdm, [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, shown = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()
    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        task.tqdm = partial(bars, disable=True)
        yield
    finally:
        task.tqdm = bars
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not shown:
            datasets.enable_progress_bars()
