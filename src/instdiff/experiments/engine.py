"""The engine of experiments: score, select, train, evaluate, and again; what is whole is not done again."""

from __future__ import annotations

import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock

from instdiff.config.compare import Variant
from instdiff.config.evaluate import EvalConfig
from instdiff.config.train import TrainSettings
from instdiff.core import Budget, Log, Method, ModelRef, Scored, Settings
from instdiff.core.files import fingerprint, read_json, read_whole, set_aside
from instdiff.core.progress import Progress, Recorded, learnt
from instdiff.core.sums import file_sum
from instdiff.data import Pool
from instdiff.engine.models import pick_device
from instdiff.engine.sources import resolve
from instdiff.evaluation.evaluator import make_subject, run_suites
from instdiff.evaluation.results import SuiteResult, read_results
from instdiff.evaluation.subject import Suite
from instdiff.experiments import run_folder
from instdiff.experiments.run_folder import Cell
from instdiff.experiments.side_by_side import cells_at_once
from instdiff.methods import Random
from instdiff.scoring.crossfit import Best, Training, trainings
from instdiff.scoring.scorer import score
from instdiff.scoring.table import ScoreTable
from instdiff.selection.chosen import WEIGHT, WEIGHTS
from instdiff.selection.record import RECORD, ROWS, SCORES, places, tell_changed, write_selection
from instdiff.selection.selector import select
from instdiff.store import Store
from instdiff.store.parquet import is_whole
from instdiff.training.digests import changed
from instdiff.training.sft import train, trained_model, weights_of

Roles = Mapping[str, ModelRef]
Scores = tuple[Scored, dict[str, Any]]
"""A method's scores, and what their table says of models and settings."""


@dataclass(frozen=True)
class Round:
    """A selection and the model trained on it; ``facts`` are rows, tokens and what the training took.

    The training began with the model ``start``.
    """

    number: int
    folder: Path
    record: dict[str, Any]
    model: ModelRef
    facts: dict[str, Any]
    start: ModelRef


def mark_of(rows: Pool, start: ModelRef, how: TrainSettings, seed: int) -> str:
    """The fingerprint of all that a training is made of."""
    weights = weights_of(rows, how.weights)
    own = [*([start.template] if start.template else []), *([] if weights is None else [weights.tolist()])]
    return fingerprint(list(rows.ids), str(start), how.learning(), how.seed_of(seed), *own)


@dataclass
class Engine(ABC):
    """What the lines of an experiment share.

    ``pool`` are the rows that are scored, ``warmup`` those that warm-up subsets are drawn from, ``target`` those that
    targeted methods match. ``suites`` evaluate models, as ``eval_config`` says.
    """

    config: Any
    folder: Path
    pool: Pool
    warmup: Pool
    target: Pool | None
    settings: Settings
    store: Store
    eval_config: EvalConfig | None
    suites: list[Suite]
    log: Log
    progress: Progress
    holdout: Pool | None = None
    """The rows that a model of that role is trained on."""
    student: ModelRef = field(init=False)
    beside: bool = field(default=False, init=False)
    """Whether other processes work on the same run."""
    _makers: dict[Path, Callable[[], ModelRef]] = field(default_factory=dict, init=False)
    _trusted: set[Path] = field(default_factory=set, init=False)
    """Trained models whose weights this process has written or read."""
    _counted: dict[str, ScoreTable] = field(default_factory=dict, init=False)

    def at_once(self, left: int) -> int:
        """How many of the cells that are ``left`` go side by side.

        Those of one process are not told what a host of several models is.
        """
        asked: int | None = self.config.cells_at_once
        if asked is not None:
            return min(asked, max(1, left))
        if pick_device(self.settings.device).type != "cpu" or (self.settings.workers or 1) > 1:
            return 1
        return cells_at_once(resolve(self.student, self.store.memo).parameters, torch.get_num_threads(), left)

    def record_event(self, name: str, **facts: Any) -> None:  # noqa: B027 - not every run has a log
        """Keep what a stage came to, where the run has a log."""

    @abstractmethod
    def score_round(self, cell: Cell, number: int, roles: Roles) -> Scores:
        """A round's scores by its models."""

    @abstractmethod
    def budget_of(self, cell: Cell, number: int) -> Budget:
        """A round's budget."""

    def group_by(self, cell: Cell) -> str | None:
        """The column of which each value gives the same share, if any."""
        return None

    def near_duplicates(self, cell: Cell) -> float | None:
        """The similarity from which near copies are left out of a selection, if any are."""
        return None

    def per(self, cell: Cell) -> str | None:
        """A column and how many rows of each of its values may be taken, if anything bounds that."""
        return None

    def weights(self, cell: Cell) -> str | None:
        """The detail of the method that a cell's rows weigh by in training, if any does."""
        return None

    def weighted(self, cell: Cell, how: TrainSettings) -> TrainSettings:
        """Training settings with the weights of a cell's rows, where its method gives them."""
        return how if self.weights(cell) is None else how.model_copy(update={"weights": WEIGHT})

    @abstractmethod
    def place_of(self, cell: Cell, number: int) -> Path:
        """Where a round's selection goes."""

    @abstractmethod
    def model_of(self, cell: Cell, number: int, mark: str) -> Path:
        """Where a round's model goes, which is made of what has this fingerprint."""

    @abstractmethod
    def place_of_trained(self, asked: Training, mark: str) -> Path:
        """Where a model goes that methods score by."""

    def run_rounds(
        self, cell: Cell, variant: Variant, roles: Roles, how: TrainSettings, seed: int, label: str = ""
    ) -> Iterator[Round]:
        """Score, select, train, and again with the new model in the role that the variant rebinds.

        Models are trained as ``how`` says, with the seed. The log calls rounds by a ``label``, where there is one.
        """
        start = self.student
        for number in range(1, variant.rounds + 1):
            place = self.place_of(cell, number)
            record = self.select(cell, number, roles)
            if label:
                self.record_event(f"{label} {number}", **record["counts"], excluded=record["excluded"])
            name = partial(self.model_of, cell, number)
            model, facts = self.train(self.rows_of(record), start, how, seed, name, place)
            facts = {"rows": len(record["rows"]), "tokens": record["counts"]["selected_tokens"], **facts}
            yield Round(number, place, record, model, facts, start)
            roles = {**roles, variant.rebind: model}
            start = model if variant.train_from == "last" else start

    def rows_of(self, record: Mapping[str, Any]) -> Pool:
        """The rows of a selection, with their weights where it has any."""
        rows = self.pool.take(places(self.pool, record["ids"], record["rows"]))
        return rows.with_column(WEIGHT, record[WEIGHTS]) if WEIGHTS in record else rows

    def repeat(self, done: Round, how: TrainSettings, seed: int, place: Path, model: Path) -> Round:
        """A round's selection trained with another seed: a round in ``place`` whose model lies in ``model``."""
        trained, facts = self.train(self.rows_of(done.record), done.start, how, seed, lambda mark: model)
        return replace(done, folder=place, model=trained, facts={**done.facts, **facts})

    def lacking(
        self, roles: Roles, pool: Pool, seed: int, methods: Mapping[str, Method], best: Best
    ) -> Iterator[Training]:
        """The models that methods score by and that are trained for them: of folds, of a holdout, and saves."""
        return trainings(
            methods.values(), roles, pool, self.settings, self.config.train, seed, self.holdout, self.target, best
        )

    def crossfit(
        self, methods: Mapping[str, Method], roles: Roles, pool: Pool, seed: int
    ) -> tuple[dict[str, ModelRef], dict[str, float]]:
        """Roles with the models that the methods lack, and the seconds that each took with all that came before it."""
        bound, seconds, earlier = dict(roles), dict[str, float](), 0.0

        def best(before: Method) -> npt.NDArray[np.int64]:
            nonlocal earlier
            made, took = self.crossfit({"before": before}, roles, pool, seed)
            began = time.monotonic()
            table = self.score({"before": before}, made, pool=pool)
            earlier += sum(took.values()) + time.monotonic() - began
            return table["before"].best()

        for one in self.lacking(roles, pool, seed, methods, best):
            name = partial(self.place_of_trained, one)
            model, facts = self.train(one.rows, one.start, one.how, one.seed, name)
            bound |= one.roles(model, run_folder.model_folder(model))
            seconds |= dict.fromkeys(one.saves, 0.0)
            seconds[one.role], earlier = facts["train_s"] + earlier, 0.0
        return bound, seconds

    def score(self, methods: dict[str, Method], roles: Roles, *, stage: str = "", **options: Any) -> ScoreTable:
        """Scores of the pool, with ``options`` of ``scorer.score``; the log calls it a ``stage``."""
        for model in roles.values():
            self.restore(model)
        progress, listed = Recorded(self.progress), options.pop("listed", {"warmup": [], "selected": []})
        listed |= {"holdout": self.holdout.ids} if self.holdout is not None else {}
        shared: dict[str, Any] = {"settings": self.settings, "store": self.store, "target": self.target}
        shared |= {"pool": self.pool, "listed": listed, "log": self.log, "progress": progress} | options
        table = score(methods=methods, models=dict(roles), **shared)
        self.record_event(stage, **progress.facts())
        return table.counted_by(self.counted(shared["pool"]))

    def counted(self, pool: Pool) -> ScoreTable:
        """A pool with its response tokens as the student reads them: budgets of all lines are of these."""
        key, how = pool.fingerprint, dict[str, Any](settings=self.settings, store=self.store)
        if key not in self._counted:
            table = score(pool, {"random": Random()}, {"base": self.student}, **how)
            # Without the way back to the rendered rows, which are large.
            self._counted[key] = replace(table, scored={"random": replace(table["random"], recall=None)})
        return self._counted[key]

    def select(self, cell: Cell, number: int, roles: Roles) -> dict[str, Any]:
        """The record of a round's selection; made of its scores, where it is not there yet."""
        place = self.place_of(cell, number)
        record = self.selected(place)
        if record is None:
            (scored, meta), pool = self.score_round(cell, number, roles), self.pool
            if len(scored) < len(pool):  # a limit is of the first rows
                pool = pool.take(range(len(scored)))
            how: dict[str, Any] = {"per": self.per(cell), "group_by": self.group_by(cell), "meta": meta}
            how |= {"near_duplicates": self.near_duplicates(cell)}
            chosen = select(pool, scored, self.budget_of(cell, number), **how)
            if (detail := self.weights(cell)) is not None:
                chosen = chosen.with_weights(detail)
            for line in filter(None, (chosen.shortfall(), chosen.idle())):
                self.log(f"warning: {line}")
            write_selection(place, chosen)
            record = chosen.record()
        return record

    def selected(self, place: Path) -> dict[str, Any] | None:
        """The record of a selection, where it is there and whole; its rows are written again where they are not.

        A damaged record or score file is set aside, so that the rows are selected again.
        """
        scored = is_whole(place / SCORES, self.log)
        record: dict[str, Any] | None = read_whole(place / RECORD, self.log)
        if record is None or not scored:
            return None
        if tell_changed(record, place / ROWS):
            self.keep_rows(self.rows_of(record), place / ROWS)
        return record

    def keep_rows(self, rows: Pool, path: Path) -> None:
        """Write rows for the user, unless the file is there and holds them; another one is set aside."""
        if path.is_file():
            with tempfile.TemporaryDirectory() as folder:
                rows.to_jsonl(wanted := Path(folder, path.name))
                if file_sum(path) == file_sum(wanted):
                    return
            self.log(f"warning: '{path}' was changed since it was written; {set_aside(path)}, and made again")
        rows.to_jsonl(path)

    def _alone(self, place: Path) -> AbstractContextManager[Any]:
        """Keeps other processes from training the same model meanwhile."""
        if not self.beside:
            return nullcontext()
        place.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(place.parent / f".{place.name}.lock")

    def train(
        self,
        rows: Pool,
        start: ModelRef,
        how: TrainSettings,
        seed: int,
        name: Callable[[str], Path],
        beside: Path | None = None,
    ) -> tuple[ModelRef, dict[str, Any]]:
        """A model trained on rows, and what that took; its name is written ``beside`` the selection."""
        mark = mark_of(rows, start, how, seed)
        place = name(mark)
        if beside is not None:
            run_folder.RunFolder(self.folder).name_model(beside, place, self.log)

        def record(facts: dict[str, Any]) -> None:
            learning = learnt(read_json(place / run_folder.TRAINING))
            self.record_event(f"trained {place.relative_to(self.folder)}", **facts, **learning)

        def make() -> ModelRef:
            base = self.restore(start)
            options: dict[str, Any] = {"store": self.store, "seed": seed, "log": self.log, "say": record}
            options["strict"] = self.config.strict
            if not (place / run_folder.TRAINING).is_file():
                self._trusted.add(place)
            return train(rows, base, how, self.settings, place, **options)

        self._makers[place] = make
        with self._alone(place):
            finished = self._is_whole(place) and mark.startswith(
                place.name
            )  # else the training looks if it is the same
            model = trained_model(start, how, place) if finished else make()
        took = read_json(place / run_folder.TRAINING)
        return model, {
            "steps": took["steps"],
            "train_s": round(took["wall_s"] * took["batch"]["processes"], 2),
            "train_tokens": took["target_tokens"],
            "model": place.name,
        }

    def suites_of(self, cell: Cell) -> list[Suite]:
        """What a cell's model is judged by."""
        return self.suites

    def evaluate(
        self, model: ModelRef, name: str, place: Path, suites: Sequence[Suite] | None = None
    ) -> list[SuiteResult]:
        """What each suite finds of a model, item by item; what was found before is read."""
        suites = self.suites if suites is None else suites
        paths = {suite.name: place / f"{suite.name}.json" for suite in suites}
        left = [suite for suite in suites if read_whole(paths[suite.name], self.log) is None]
        if left:
            assert self.eval_config is not None
            # The base is evaluated as the models are that are trained from it.
            precision = {"dtype": "float32"} if self.eval_config.dtype == "auto" else {}
            config = self.eval_config.model_copy(update=precision)
            progress = Recorded(self.progress)
            subject = make_subject(self.restore(model), config, self.store, name=name, log=self.log, progress=progress)
            run_suites(left, [paths[suite.name] for suite in left], subject, config)
            self.record_event(f"judged {name}", **progress.facts())
        return [read_results(path) for path in paths.values()]

    def restore(self, model: ModelRef) -> ModelRef:
        """A model with its weights: one that was dropped, or is not what was trained, is trained once more."""
        place = run_folder.model_folder(model)
        if place not in self._makers:
            return model
        if run_folder.is_dropped(place):
            self.log(f"{place} was dropped (keep_models: false) and is needed again; it is trained once more")
            shutil.rmtree(place)
        if not self._is_whole(place, again=place not in self._trusted):
            self._makers[place]()
        self._trusted.add(place)
        return model

    def _is_whole(self, place: Path, *, again: bool = False) -> bool:
        """Whether a training is finished; what is not as it was written is set aside."""
        if not (place / run_folder.TRAINING).is_file():
            return False
        flaw = changed(place, self.store.memo, again=again)
        if flaw is not None:
            self.log(
                f"warning: {flaw} of '{place}' was changed since it was trained; {set_aside(place)}, and trained again"
            )
        return flaw is None
