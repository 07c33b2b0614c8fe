"""Suites through lm-eval: its tasks, prompts, filters and metrics, our model, item by item.

``openllm`` is the six tasks of the Open LLM Leaderboard's first version that the papers report, BBH in lm-eval's own
form (chain of thought, exact match). Tasks are lm-eval's own; where a local file is given they read it in place of the
hub. What lm-eval has computed is kept in the subject's folder, so that an interrupted run goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from instdiff.config.evaluate import EvalConfig
from instdiff.core.files import fingerprint
from instdiff.engine.forward import out_of_memory
from instdiff.engine.models import pick_device
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.sweep import default_batch_tokens
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError, DataError, PlanError, did_you_mean
from instdiff.evaluation.harness import local_data as data
from instdiff.evaluation.harness.local_data import Parts, local_file
from instdiff.evaluation.harness.multiple_choice import MED, ChoiceSuite, ChoiceTask, chat_template, share_limit
from instdiff.evaluation.results import TaskResult, distinct
from instdiff.evaluation.subject import Subject
from instdiff.evaluation.task_data import Record

SEED = 1234
"""Of the draw of examples: lm-eval's own."""
USUAL_TOKENS = 256
"""Tokens after which lm-eval cuts an answer where a task does not say."""


@dataclass(frozen=True)
class HarnessTask:
    """A task of lm-eval, or a ``group`` of them that differ in subject only.

    ``entry`` is lm-eval's name of the task, or what the names of the group's tasks start with; ``folder`` is where it
    is described, so that the other thousands need not be read. ``shots`` before each question and ``metric`` are the
    leaderboard's; ``sample`` is lm-eval's name of the metric, where it is another. ``read`` brings a row of a local
    file, called one of ``files``, to the hub's columns. ``filter`` says what is taken of an answer, where lm-eval takes
    several things. With ``own_shots`` the examples are written into the task, so that there are no more of them.
    """

    name: str
    entry: str
    folder: str
    shots: int
    metric: str
    read: Callable[[Record], Record]
    files: tuple[str, ...]
    sample: str | None = None
    filter: str = "none"
    group: bool = False
    own_shots: bool = False

    def subject(self, entry: str) -> str:
        """What one of lm-eval's tasks of the group is about."""
        return entry.removeprefix(self.entry) if self.group else ""


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
    )
}
"""Tasks that are run where they are named."""


def openllm_suite(config: EvalConfig) -> HarnessSuite:
    """The ``openllm`` suite of a configuration.

    Raises a ConfigError for a task that it does not have, a DataError where a local file is not there, a PlanError
    where lm-eval is not installed.
    """
    _require_lm_eval()
    chosen = [OPENLLM.get(name) or MORE[name] for name in _choose_tasks(config.task, OPENLLM, MORE)]
    tasks = tuple((task, _file(task, config, "openllm")) for task in chosen)
    given = config.model_fields_set
    return HarnessSuite(
        tasks,
        config.shots,
        config.limit,
        config.max_length if "max_length" in given else None,
        config.max_new_tokens if "max_new_tokens" in given else None,
    )


def med_suite(config: EvalConfig) -> ChoiceSuite:
    """The ``med`` suite of a configuration; it goes through our own sweep and does not need lm-eval.

    Raises a ConfigError for a task that it does not have, a DataError where a local file is not there.
    """
    chosen = [MED[name] for name in _choose_tasks(config.task, MED)]
    tasks = tuple((task, _file(task, config, "med")) for task in chosen)
    return ChoiceSuite("med", tasks, config.shots or 0, config.limit)


def _file(task: HarnessTask | ChoiceTask, config: EvalConfig, suite: str) -> str | None:
    return local_file(task.name, task.files, config.data_dir, config.task_data, suite)


def _choose_tasks(asked: Sequence[str], *known: dict[str, Any]) -> list[str]:
    names = [name for table in known for name in table]
    for name in asked:
        if name not in names:
            raise ConfigError(f"no task '{name}'{did_you_mean(name, names)}")
    return list(asked) or list(known[0])


def _require_lm_eval() -> None:
    if find_spec("lm_eval") is None:
        raise PlanError('the suite openllm needs lm-eval, which is missing; run: pip install "instdiff[eval]"')


# ── the suite ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class HarnessSuite:
    """Tasks of lm-eval, with their local files (None takes the hub's); the run's chat template is used where it is one.

    ``shots`` before each question are the leaderboard's by default; ``limit`` items of each task are dealt over its
    subjects. ``max_length`` are tokens of a prompt with its answer, by default the model's context; ``max_new_tokens``
    those after which an answer is cut, by default the task's own number.
    """

    tasks: tuple[tuple[HarnessTask, str | None], ...]
    shots: int | None = None
    limit: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    name: str = "openllm"

    def run(self, subject: Subject) -> tuple[TaskResult, ...]:
        """Run everything.

        Raises a DataError where a task's rows cannot be read or downloaded, a PlanError where lm-eval is not installed.
        """
        _require_lm_eval()
        source = resolve(subject.model, subject.store.memo)
        resident = subject.host.local()
        tokenizer = self._tokenizer(subject)
        chat = chat_template(subject)
        if chat is not None and chat.jinja:
            tokenizer.hf.chat_template = chat.jinja
        context = min(self.max_length or 1 << 30, tokenizer.max_length or 2048)
        key = fingerprint(
            source.fingerprint,
            str(resident.dtype),
            tokenizer.fingerprint,
            context,
            tokenizer.hf.chat_template if chat else "",
        )
        with quietly(), resident.use(source) as model:
            lm = make_watched_class()(model, tokenizer, context, batch_rows(subject, context), subject)
            with closing(keeping(lm, subject.folder / "openllm" / f"{key}.db")) as answers:
                found = [
                    self._task(task, where, answers, subject, context, chat is not None) for task, where in self.tasks
                ]
        return tuple(found)

    def _task(
        self, task: HarnessTask, where: str | None, answers: Any, subject: Subject, context: int, chat: bool
    ) -> TaskResult:
        started = time.monotonic()
        answers.lm.label = f"{self.name}: {task.name}"
        entries, samples = self._prepare(task, where, subject, context, answers.lm.max_gen_toks)
        found = _run_harness(answers, entries, samples, chat)
        subject.spend("seconds", time.monotonic() - started)
        shots = min(int(entry.config.num_fewshot) for entry in entries.values())
        return _result(task, found, {"shots": shots, "data": where or "hub", "chat_template": chat})

    def _prepare(
        self, task: HarnessTask, where: str | None, subject: Subject, context: int, usual: int
    ) -> tuple[dict[str, Any], dict[str, list[int]]]:
        """Lm-eval's tasks by their names, answers cut to the context, and the items of each that are asked."""
        entries = self._entries(task, where, subject)
        room, short = context // 2, False
        for entry in entries.values():
            if entry.OUTPUT_TYPE == "generate_until":
                own = int(entry.config.generation_kwargs.get("max_gen_toks", usual))
                most = self.max_new_tokens or own
                entry.set_config("generation_kwargs", {"max_gen_toks": min(most, room)}, update=True)
                short |= most > room
        if short:
            subject.log(f"{task.name}: answers are cut after {room} tokens, half of the model's context")
        takes = share_limit({name: len(entry.eval_docs) for name, entry in entries.items()}, self.limit)
        entries = {name: entry for name, entry in entries.items() if takes[name]}
        samples = {name: list(range(takes[name])) for name in entries}
        return entries, samples

    def requests(self, subject: Subject) -> list[tuple[str, str, int]]:
        """What is shown, what of it is weighed, and the most tokens of an answer; in no chat template.

        Raises what ``run`` does.
        """
        _require_lm_eval()
        context = min(self.max_length or 1 << 30, self._tokenizer(subject).max_length or 2048)
        out = []
        with quietly():
            for task, where in self.tasks:
                entries, samples = self._prepare(task, where, subject, context, USUAL_TOKENS)
                for name, entry in entries.items():
                    entry.build_all_requests(samples=samples[name])
                    out += [_request(one) for one in entry.instances]
        return out

    def _tokenizer(self, subject: Subject) -> HFTokenizer:
        return load_tokenizer(resolve(subject.model, subject.store.memo), subject.settings.template_date)

    def _entries(self, task: HarnessTask, where: str | None, subject: Subject) -> dict[str, Any]:
        """Lm-eval's tasks by their names, on the rows given."""
        from lm_eval import tasks

        folder = Path(str(tasks.__file__)).parent / task.folder
        manager = tasks.TaskManager(include_path=str(folder), include_defaults=False)
        names = [
            name for name in manager.all_subtasks if (name.startswith(task.entry) if task.group else name == task.entry)
        ]
        local = None if where is None else data.parts(where, task.read, subjects=task.group)
        if local is not None:
            known = {task.subject(name): name for name in names}
            unknown = [part for part in local if part not in known]
            if unknown:
                subject.log(f"{task.name}: lm-eval has no subject {', '.join(unknown)}, so these rows are left out")
            names = [name for part, name in known.items() if part in local]
            if not names:
                raise DataError(f"'{where}' has none of the subjects of {task.name}: {', '.join(known)}")
        members = [self._member(task, name, local, subject) for name in names]
        try:
            loaded = manager.load([{"group": task.name, "task": members}])["tasks"]
        except Exception as error:
            if local is not None:
                raise
            raise DataError(
                f"task '{task.name}' cannot be loaded from the hub: {' '.join(str(error).split())[:300]}; check the "
                f"network, or give its file: data.{task.name}=PATH, or data_dir"
            ) from error
        for entry in loaded.values():
            entry.set_fewshot_seed(seed=SEED)
        return {name: loaded[name] for name in names}

    def _member(self, task: HarnessTask, name: str, local: Parts | None, subject: Subject) -> dict[str, Any]:
        """What is to be different from lm-eval's own description of a task."""
        shots = task.shots if self.shots is None else self.shots
        if task.own_shots:
            shots = min(shots, task.shots)
        out: dict[str, Any] = {"task": name, "num_fewshot": shots}
        if local is None:
            return out
        splits = local[task.subject(name)]
        if not task.own_shots:
            have = len(splits.get("shots", []))
            if have < shots:
                subject.log(f"warning: {name} has {have} examples to show, not the {shots} that are asked for")
            out |= {"num_fewshot": min(shots, have), "fewshot_split": "shots" if have else None}
        return out | {
            "custom_dataset": partial(_in_memory, splits),
            "dataset_kwargs": None,
            "test_split": "test",
            "validation_split": None,
            "training_split": None,
        }


def _request(one: Any) -> tuple[str, str, int]:
    if one.request_type == "generate_until":
        return one.args[0], "", int(one.args[1]["max_gen_toks"])
    return one.args[0], one.args[1], 0


def _in_memory(splits: dict[str, list[Record]], **_: Any) -> Any:
    import datasets

    return datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})


def _run_harness(answers: Any, entries: dict[str, Any], samples: dict[str, list[int]], chat: bool) -> dict[str, Any]:
    """Lm-eval's log of every item, by task; what does not fit into memory is tried again in smaller batches."""
    from lm_eval.evaluator import evaluate

    while True:
        try:
            found = evaluate(
                lm=answers,
                task_dict={"tasks": entries, "groups": {}},
                samples=samples,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=chat,
                fewshot_as_multiturn=chat,
            )
            logged: dict[str, Any] = found["samples"]
            return logged
        except RuntimeError as error:
            if not out_of_memory(error) or answers.lm.batch_size_per_gpu == 1:
                raise
            answers.lm.batch_size_per_gpu //= 2


def _result(task: HarnessTask, logged: dict[str, Any], details: dict[str, Any]) -> TaskResult:
    """The leaderboard's metric of every item; the mean of every metric in the details."""
    ids: list[str] = []
    score: list[float] = []
    means: dict[str, list[float]] = {}
    by: dict[str, float] = {}
    for entry, samples in logged.items():
        subject = task.subject(entry)
        mine = [one for one in samples if one["filter"] == task.filter]
        own = [float(one[task.sample or task.metric]) for one in mine]
        ids += [f"{subject or task.name}:{one['doc_hash'][:16]}" for one in mine]
        score += own
        if subject and own:
            by[subject] = float(np.mean(own))
        for one in samples:
            for metric in one["metrics"]:
                name = metric if one["filter"] == "none" else f"{metric},{one['filter']}"
                means.setdefault(name, []).append(float(one[metric]))
    details = {**details, "means": {name: float(np.mean(values)) for name, values in means.items()}}
    if by:
        details["by_subject"] = by
    return TaskResult(task.name, task.metric, distinct(ids), np.array(score, np.float64), details=details)


# ── the model under test as lm-eval asks it: ours in memory, our progress and bill, every answer kept in a file ───────


def batch_rows(subject: Subject, context: int) -> int:
    """Rows at once."""
    device = pick_device(subject.settings.device).type
    budget = subject.settings.batch_tokens or default_batch_tokens(device)
    return max(1, budget // min(context, 512 if device == "cpu" else 2048))


def keeping(lm: Any, path: Path) -> Any:
    """The model with a file of the answers that it has given, to which every new one is added at once."""
    from lm_eval.api.model import CachingLM

    path.parent.mkdir(parents=True, exist_ok=True)

    class Kept(CachingLM):  # type: ignore[misc]
        """Closes its file."""

        def close(self) -> None:
            """Write what is not written yet."""
            self.dbdict.close()

    return Kept(lm, str(path))


def make_watched_class() -> Any:
    """Lm-eval's class of models, with our progress and bill."""
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):  # type: ignore[misc]
        """A causal language model that is in memory already."""

        label = ""

        def __init__(self, model: Any, tokenizer: HFTokenizer, context: int, batch: int, subject: Subject) -> None:
            super().__init__(
                pretrained=model, tokenizer=tokenizer.hf, backend="causal", max_length=context, batch_size=batch
            )
            self.subject, self.own_tokenizer = subject, tokenizer
            self.advance: Callable[[int, int], None] = lambda rows, tokens: None

        def set_cache_hook(self, hook: Any) -> None:
            super().set_cache_hook(_WatchedHook(hook, lambda text: self.advance(1, _tokens(text))))

        def apply_chat_template(self, chat_history: Sequence[Any], add_generation_prompt: bool = True) -> str:
            return render_history(self.own_tokenizer, chat_history, ask=add_generation_prompt)

        @contextmanager
        def _show(self, requests: Sequence[Any]) -> Iterator[None]:
            tokens = sum(_tokens(request.args) for request in requests)
            with self.subject.progress.task(self.label, rows=len(requests), tokens=tokens) as self.advance:
                yield

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._show(requests):
                return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._show(requests):
                return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self.subject.spend("prompt_tokens", int(inps.numel()))
            return super()._model_call(inps, *args, **kwargs)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            out = super()._model_generate(context, *args, **kwargs)
            self.subject.spend("prompt_tokens", int(context.numel()))
            self.subject.spend("generated_tokens", int(out.numel() - context.numel()))
            return out

    return Watched


def render_history(tokenizer: HFTokenizer, messages: Sequence[Mapping[str, str]], *, ask: bool) -> str:
    """A conversation as lm-eval has it, but for the date: where nothing is asked, the last message is left open."""
    try:
        text = tokenizer.render(messages, ask=ask)
    except TemplateError:  # as lm-eval has it: the template may know no system turn
        text = tokenizer.render([one for one in messages if one["role"] != "system"], ask=ask)
    if ask:
        return text
    last = messages[-1]["content"]
    last = last if last in text else last.strip()  # the template may trim it
    return text[: text.rindex(last) + len(last)]


def _tokens(request: Any) -> int:
    """About as many tokens as a request has."""
    return 1 + sum(len(part) for part in request if isinstance(part, str)) // 4


@dataclass(frozen=True)
class _WatchedHook:
    """Lm-eval's hook for answers as they come, with an ear to it."""

    hook: Any
    tell: Callable[[Any], None]

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.hook.add_partial(kind, request, answer)
        self.tell(request)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bars and lines of third parties; progress is shown by our own."""
    import datasets
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules, bars = (model, task, huggingface), model.tqdm
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, shown = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()

    def silent(*args: Any, **kwargs: Any) -> Any:
        return bars(*args, **{**kwargs, "disable": True})

    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        for module in modules:
            vars(module)["tqdm"] = silent
        yield
    finally:
        for module in modules:
            vars(module)["tqdm"] = bars
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not shown:
            datasets.enable_progress_bars()
