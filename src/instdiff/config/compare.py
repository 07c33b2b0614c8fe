"""``instdiff compare``: which methods, budgets and seeds, trained how, judged by what."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, field_validator

from instdiff.config.base import Bound, Config, OpenPart, key
from instdiff.config.commands import (
    HOLDOUT,
    TARGET,
    DataConfig,
    ExecutorConfig,
    RunConfig,
    check_role_names,
    parse_methods,
)
from instdiff.config.pipeline import LEAKS, NEAR_DUPLICATES, PER, WEIGHTS, WarmupPart
from instdiff.config.train import TrainSettings

Baseline = Literal["random", "longest", "full"]
BASELINES: tuple[Baseline, ...] = ("random", "longest", "full")
"""What every comparison has beside the base model."""


class Variant(OpenPart):
    """One line of a comparison; keys that are not here are parameters of its method."""

    method: str | None = key(None, "Name or `file.py:Class`; by default the name of the line.")
    params: dict[str, Any] = key(dict, "The method's parameters.")
    rounds: PositiveInt = key(1, "How often rows are scored, selected and trained on.")
    rebind: str = key("calibrated", "The role that a round's model takes in the next one.")
    train_from: Literal["base", "last"] = key(
        "base", "`base` trains every round from the start, `last` goes on from the round before (dynamic re-selection)."
    )
    models: dict[str, str] = key(dict, "Bound to roles for this line alone, such as a smaller `base` for scoring.")
    warmup: PositiveInt | str | None = key(None, "Rows of the warm-up, or `10%`; by default the comparison's own.")
    limit: PositiveInt | None = key(None, "The first rows of the pool alone.")
    seeds: tuple[int, ...] | None = key(None, "By default the comparison's own.")
    budget: str | int | None = key(None, "By default the comparison's own.")
    group_by: str | None = key(None, "Column of the input; the same share of each of its values is taken.")
    near_duplicates: float | None = key(None, NEAR_DUPLICATES, gt=0, le=1)
    weights: str | None = key(None, WEIGHTS)
    per: Bound = key(None, "The best k rows of each value of a column, as 'prompt 1'; by default the comparison's own.")

    @field_validator("models")
    @classmethod
    def _roles(cls, models: dict[str, str]) -> dict[str, str]:
        check_role_names(models)
        return models


class CellsConfig(DataConfig, RunConfig, ExecutorConfig):
    """What commands share that train lines on equal terms and judge them."""

    model: str | None = key(
        None, "Base model; scores the rows, and is trained unless there is a `student`.", also="base_model"
    )
    student: str | None = key(None, "Is trained on what `model` chose.")
    models: dict[str, str] = key(dict, "Of further roles.")
    target: str | None = key(None, TARGET, metavar="FILE")
    holdout: str | None = key(None, HOLDOUT, metavar="FILE")
    per: Bound = key(None, f"{PER} So it is for every line but `full`.", metavar="COLUMN k", words=2)
    output: str | None = key(None, "The run folder.", metavar="DIR", also="output_dir")
    train: TrainSettings = key(TrainSettings, "The same for every line.")
    steps: Literal["epochs", "equal"] = key(
        "epochs",
        "`epochs` trains every subset for as many passes; `equal` for as many optimizer steps as the first random "
        "subset of the budget takes.",
    )
    warmup: WarmupPart = key(WarmupPart, "For a calibrated model: see [warmup](#warmup-of-the-pipeline).")
    eval: dict[str, Any] = key(dict, "Keys of `instdiff eval`.")
    keep_models: bool = key(True, "False removes models as soon as no later cell begins with them.")
    leaks: bool = key(True, LEAKS)
    strict: bool = key(False, "A cell that fails ends the run.")
    cells_at_once: PositiveInt | None = key(
        None, "Cells trained and evaluated side by side; by default one for each core where the model is small."
    )
    records: str | None = key(
        None, "Keeps each finished cell in a file; a cell that is there and made of the same is done.", metavar="DIR"
    )


class CompareConfig(CellsConfig):
    """``instdiff compare``."""

    method: dict[str, Variant] = key(
        dict, "Names, comma-separated or repeated; see [lines](#a-line-of-a-comparison).", also="methods"
    )
    budgets: tuple[str | int, ...] = key(
        ("10% tokens",),
        "500, 10%, '200000 tokens'; tokens give equal terms; may repeat.",
        metavar="BUDGET",
        also="budget",
    )
    seeds: tuple[int, ...] = key((0, 1, 2), "Of draws, warm-up and training.")
    random_seeds: int = key(3, "How many seeds the random baseline has at least, three or more.", ge=3)
    baselines: tuple[Baseline, ...] = key(BASELINES, "That are always there; the base model is too.")
    near_duplicates: float | None = key(
        None, f"{NEAR_DUPLICATES} Of all lines but the baselines.", metavar="X", gt=0, le=1
    )
    headroom: bool = key(
        False, "Only the base, random rows and the lines of `oracle`, to see whether there is anything to gain."
    )
    by: str | None = key(None, "A column, such as the source; the shares of its values in every selection are told.")

    @field_validator("method", mode="before")
    @classmethod
    def _methods(cls, value: Any) -> Any:
        return parse_methods(value)

    @field_validator("budgets", "seeds", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str | int) else value

    @field_validator("seeds", "budgets")
    @classmethod
    def _some(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        if not value or len(set(value)) < len(value):
            raise ValueError("at least one, each of them once")
        return value

    def warmup_seed(self, seed: int) -> int:
        """Of the warm-up that calibrates cells with a seed: the same, so that intervals hold what warm-ups vary."""
        return seed

    def lines(self) -> dict[str, Variant]:
        """All lines by name, baselines first; the random baseline has seeds enough."""
        near = {"near_duplicates": self.near_duplicates}
        mine = {
            n: one.model_copy(update=near) if one.near_duplicates is None else one for n, one in self.method.items()
        }
        named: dict[str, Variant] = {**dict.fromkeys(self.baselines, Variant()), **mine}
        if "random" in self.baselines and named["random"].seeds is None:
            more = range(max(self.seeds) + 1, max(self.seeds) + 1 + max(0, self.random_seeds - len(self.seeds)))
            named["random"] = named["random"].model_copy(update={"seeds": (*self.seeds, *more)})
        return named


class DemoConfig(Config):
    """``instdiff demo``."""

    output: str = key("instdiff-demo", "The run folder.", metavar="DIR")
    device: str = key("auto", "cpu, cuda, cuda:1, mps, or auto.")
