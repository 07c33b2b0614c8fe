"""Models that methods read and nobody has bound: of folds, of a holdout set, and saves of one training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from instdiff.config.train import TrainSettings
from instdiff.core import Log, Method, ModelRef, Settings
from instdiff.core.files import fingerprint, set_aside
from instdiff.core.signals import CrossFitted, Saves, Split, TrainedOn
from instdiff.data import Pool
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.errors import ConfigError, PlanError
from instdiff.rendering.templates import template
from instdiff.scoring.folds import groups_of, rows_outside
from instdiff.scoring.models import template_name
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store
from instdiff.store.trained import hold_trained, lock_of, trained_folder
from instdiff.training.trained_rows import TRAINED_ROWS, TrainedRows, trained_rows

Best = Callable[[Method], npt.NDArray[np.int64]]
"""Rows of the pool by a method that comes before others, best first; it trains what that method lacks."""
Of = Split | Saves | None
"""What a model is trained for: a fold, saves, or a holdout set."""
HOLDOUT = "holdout"
"""The role of a model that was trained on the rows of a holdout set."""


@dataclass(frozen=True)
class Training:
    """A model that a role wants: trained on ``rows`` from ``start``, whose template it keeps.

    ``of`` says what it is one of; it is None for the model of a holdout set. Other roles want what it was after some of
    its passes: ``saves``, in order.
    """

    role: str
    rows: Pool
    start: ModelRef
    how: TrainSettings
    seed: int
    of: Of = None
    saves: tuple[str, ...] = ()

    @property
    def split(self) -> Split | None:
        """The folds, where it is of one."""
        return self.of if isinstance(self.of, Split) else None

    def roles(self, model: ModelRef, place: Path) -> dict[str, ModelRef]:
        """What is bound when ``model`` has been trained in ``place``."""
        from instdiff.training.sft import saved_model

        saved = {role: saved_model(self.start, self.how, place, at) for at, role in enumerate(self.saves, 1)}
        return {**saved, self.role: model}


def splits(methods: Iterable[Method]) -> dict[str, Split]:
    """The split roles of methods; a ConfigError where two of them split one role in different ways."""
    found: dict[str, Split] = {}
    for signal in (signal for method in methods for signal in method.signals().values()):
        if isinstance(signal.measure, CrossFitted):
            split = signal.measure.split
            if found.setdefault(signal.model, split) != split:
                raise _other(signal.model, "other folds", found[signal.model], split)
    return found


def _other(role: str, what: str, one: Split | Saves, two: Split | Saves) -> ConfigError:
    told = " and ".join(", ".join(lines) for lines in differences(one, two))
    return ConfigError(
        f"two methods want {what} of the role '{role}': {told}; give one of them a role of another name (as held: "
        "held_1), or score them one after the other"
    )


def differences(one: Any, two: Any, name: str = "") -> tuple[list[str], list[str]]:
    """Of two settings what each says that the other does not, a line for each key."""
    if not (is_dataclass(one) and type(one) is type(two)):
        return ([f"{name}: {one}"], [f"{name}: {two}"]) if one != two else ([], [])
    both: tuple[list[str], list[str]] = [], []
    for field in fields(one):
        key = f"{name}.{field.name}".strip(".")
        for lines, more in zip(both, differences(getattr(one, field.name), getattr(two, field.name), key), strict=True):
            lines += more
    return both


def saves(methods: Iterable[Method]) -> list[Saves]:
    """The trainings of which methods read saves; a ConfigError where two train one role in different ways."""
    found: dict[str, Saves] = {}
    for signal in (signal for method in methods for signal in method.signals().values()):
        if isinstance(signal.measure, TrainedOn):
            one = signal.measure.saves
            for role, _ in one.roles:
                if found.setdefault(role, one) != one:
                    raise _other(role, "another training", found[role], one)
    return list(dict.fromkeys(found.values()))


def lacking(methods: Iterable[Method], roles: Mapping[str, ModelRef], holdout: Pool | None = None) -> dict[str, Of]:
    """The roles of methods that nobody has bound and that can be trained, with what each is of.

    Where one save of a training is not bound, none is taken for bound.
    """
    listed = list(methods)
    out: dict[str, Of] = {}
    for role, split in splits(listed).items():
        if split.given:
            continue
        out |= {part: split for part in (f"{role}/{k}" for k in range(split.folds.k)) if part not in roles}
    for kept in saves(listed):
        wanted = [role for role, _ in kept.roles]
        out |= dict.fromkeys(wanted, kept) if any(role not in roles for role in wanted) else {}
    asked = {signal.model for method in listed for signal in method.signals().values()}
    return out | ({HOLDOUT: None} if holdout is not None and HOLDOUT in asked - set(roles) else {})


def start_of(of: Of) -> str:
    """The role of the model that a training begins with."""
    return of.folds.model if isinstance(of, Split) else of.model if isinstance(of, Saves) else "base"


def check_starts(wanted: Mapping[str, Of], roles: Mapping[str, ModelRef]) -> None:
    """The role that each training begins with is bound, and none of its saves, else a PlanError."""
    for given, of in wanted.items():
        if given in roles and isinstance(of, Saves):
            other = next(role for role, _ in of.roles if role not in roles)
            raise PlanError(f"'{given}' is bound, and '{other}' of the same training is not; bind all of it, or none")
    for start in map(start_of, wanted.values()):
        if start not in roles:
            other = ", or train the base: --set METHOD.model=base" if start != "base" and "base" in roles else ""
            raise PlanError(
                f"what is missing is trained from the model of role '{start}', which is not bound; give --model "
                f"{start}=WHERE{other}"
            )


def trainings(
    methods: Iterable[Method],
    roles: Mapping[str, ModelRef],
    pool: Pool,
    settings: Settings,
    how: TrainSettings,
    seed: int,
    holdout: Pool | None,
    target: Pool | None,
    best: Best,
) -> Iterator[Training]:
    """What is to be trained before the methods can score, as ``how`` says; the holdout's model with this seed.

    Raises a PlanError where a role that a training begins with is not bound, or there is no target to train on, a
    DataError for fewer groups than folds.
    """
    outside: dict[Split, list[Pool]] = {}
    wanted = lacking(methods, roles, holdout)
    check_starts(wanted, roles)
    for role, split in wanted.items():
        if isinstance(split, Saves):
            if role == split.roles[-1][0]:
                yield _of_saves(split, roles, pool if split.of == "pool" else target, settings, how)
            continue
        if split is None:
            assert holdout is not None
            yield Training(role, holdout, _start("base", roles, settings), how, seed)
            continue
        if split not in outside:
            outside[split] = rows_outside(pool, split, best(split.before) if split.before else None)
        rows, start = outside[split][int(role.rpartition("/")[2])], _start(split.folds.model, roles, settings)
        yield Training(role, rows, start, settings_of_folds(how, split), split.seed, split)


def _start(role: str, roles: Mapping[str, ModelRef], settings: Settings) -> ModelRef:
    """The model that a training begins with; what is trained from it is read by the template of its role."""
    shown = template_name(role, roles[role], settings)
    return roles[role] if shown == settings.template else replace(roles[role], template=shown)


def _of_saves(
    kept: Saves, roles: Mapping[str, ModelRef], rows: Pool | None, settings: Settings, how: TrainSettings
) -> Training:
    *before, (last, passes) = kept.roles
    if rows is None:
        raise PlanError(f"no rows to train the model of role '{last}' on are given; --target FILE names them")
    fields = _fields(how) | dict(kept.settings)
    fields |= {"num_train_epochs": passes, "saves": tuple(after for _, after in before)}
    names = tuple(role for role, _ in before)
    return Training(last, rows, _start(kept.model, roles, settings), TrainSettings(**fields), kept.seed, kept, names)


def _fields(how: TrainSettings) -> dict[str, Any]:
    """Settings without a number of steps, which would go before that of passes."""
    fields = {key: getattr(how, key) for key in TrainSettings.model_fields} | (how.model_extra or {})
    fields.pop("max_steps", None)
    return fields


def settings_of_folds(how: TrainSettings, split: Split) -> TrainSettings:
    """The training of a fold's model: as ``how`` says, but for what the folds have of their own."""
    folds = split.folds
    fields = _fields(how) | {"num_train_epochs": folds.epochs, "saves": ()}
    if folds.learning_rate is not None:
        fields["learning_rate"] = folds.learning_rate
    if folds.lora is not None:
        fields |= {"use_lora": True, "lora_r": folds.lora, "lora_alpha": 2.0 * folds.lora}
    return TrainSettings(**fields)


def training_of_scores(given: TrainSettings | None, settings: Settings) -> TrainSettings:
    """How models are trained for scoring alone: as it is said, by default on the tokens that are scored."""
    how = given or TrainSettings()
    if "model_max_length" in how.model_fields_set:
        return how
    return how.model_copy(update={"model_max_length": settings.max_length})


def place_in_store(one: Training, settings: Settings, store: Store) -> Path:
    """Where a model goes that is trained for scoring alone, by all that it is made of."""
    from instdiff.training.sft import weights_of

    source, weights = resolve(one.start, store.memo, adapters=False), weights_of(one.rows, one.how.weights)
    layout, tokens = template(one.start.template or settings.template), load_tokenizer(source, settings.template_date)
    seen = [list(one.rows.ids), source.fingerprint, tokens.fingerprint, repr(layout), str(settings.template_date)]
    shown = map(str, (one.rows.turns, one.how.learning(), one.how.seed_of(one.seed)))
    return trained_folder(store) / fingerprint(*seen, *shown, *([] if weights is None else [weights.tolist()]))


def bind_trained(
    methods: Iterable[Method],
    roles: Mapping[str, ModelRef],
    pool: Pool,
    settings: Settings,
    store: Store,
    log: Log,
    crossfit: TrainSettings | None,
    seed: int,
    holdout: Pool | None,
    target: Pool | None,
    best: Best,
) -> dict[str, ModelRef]:
    """Roles with what the methods lack, trained into the store's folder ``trained``; what lies there is taken."""
    bound = dict(roles)
    how = training_of_scores(crossfit, settings)
    for one in trainings(methods, roles, pool, settings, how, seed, holdout, target, best):
        from instdiff.training.digests import changed
        from instdiff.training.sft import train

        place = place_in_store(one, settings, store)
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_of(place)):
            if place.is_dir() and (flaw := changed(place, store.memo)):
                log(f"warning: {flaw} of '{place}' was changed since it was trained; {set_aside(place)}")
            if not place.is_dir():
                epochs = f"{one.how.num_train_epochs:g} epochs"
                log(f"{one.role}: {one.start} is trained on {len(one.rows):,} rows, {epochs}, in '{place}'")
            model = train(one.rows, one.start, one.how, settings, place, store=store, seed=one.seed, log=log)
            bound |= one.roles(model, place)
            hold_trained(store, place)
    return bound


def check_leaks(bench: Workbench, methods: Iterable[Method]) -> None:
    """Refuse a fold's model that has seen a row or a prompt of its fold, or that does not say what it has seen.

    Raises a ConfigError that names the first such row, or a PlanError.
    """
    for role, split in splits(methods).items():
        folds, groups = bench.folds(split), groups_of(bench.pool, split.group)
        for fold in range(split.folds.k):
            part = f"{role}/{fold}"
            seen = trained_rows(bench.models[part])
            if seen is None and not bench.settings.trust_held:
                do = f"train it with `instdiff train`, leave --model {part} out so that it is trained here"
                if split.given:
                    do = f"put the {TRAINED_ROWS} beside it that `instdiff export --half {part}` wrote with its pairs"
                raise PlanError(
                    f"'{bench.models[part]}' does not say which rows it was trained on (it has no {TRAINED_ROWS}), so "
                    f"it is unknown whether it has seen fold {fold}; {do}, or say --trust-held"
                )
            if seen is not None:
                _check_fold(bench, part, seen, np.flatnonzero(folds == fold), groups, split)


def _check_fold(
    bench: Workbench,
    role: str,
    seen: TrainedRows,
    rows: npt.NDArray[np.int64],
    groups: npt.NDArray[Any],
    split: Split,
) -> None:
    ids = list(bench.pool.ids)
    known = set(seen.groups) if split.group is None else {groups[at] for at, name in enumerate(ids) if name in seen.ids}
    for at in rows.tolist():
        if ids[at] in seen.ids or groups[at] in known:
            what = "" if ids[at] in seen.ids else "another row of the same prompt as "
            do = (
                f"that `instdiff export --half {role}` wrote the pairs of" if split.given else "that never saw the fold"
            )
            more = "" if split.given else f", or leave --model {role} out so that one is trained"
            raise ConfigError(
                f"{role} ('{bench.models[role]}') was trained on {what}row {int(bench.pool.rows[at])} "
                f"(id {ids[at][:12]}…), which is in its own fold; bind a model {do}{more}"
            )
