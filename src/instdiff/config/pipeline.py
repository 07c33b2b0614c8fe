"""The parts of a pipeline's configuration, one for each stage."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveInt, field_validator, model_validator

from instdiff.config.base import Bound, Config, OpenPart, key
from instdiff.config.train import TrainSettings

PER = "The best k rows of each value of a column are chosen from, as 'source 3'; 'prompt 1' is one for each prompt."


def names(value: Any) -> list[str]:
    """``a,b``, or a list of such, as names."""
    items = [value] if isinstance(value, str) else list(value or [])
    found = [name.strip() for item in items for name in str(item).split(",")]
    return list(dict.fromkeys(name for name in found if name))


WEIGHTS = (
    "Detail of the method, as lark.weight, that rows weigh by in training; by default that of a method that is defined "
    "with weights (lark), where `train.weights` names no column. `none` is none."
)
LEAKS = "Tell which selected rows overlap the items of the suites, and the results without these items."
NEAR_DUPLICATES = "Leaves out rows that share so much of their word triples with a better row (Jaccard), as 0.8."


def weights_by(asked: str | None, train: TrainSettings, usual: str) -> str | None:
    """The detail that rows weigh by: what is ``asked`` for, or the method's ``usual`` one; None for none."""
    if asked is not None:
        return None if asked == "none" else asked
    return None if train.weights else usual or None


class WarmupPart(Config):
    """``warmup:`` of the pipeline: the random subset that the first calibration model is trained on."""

    data_path: str | None = key(None, "Rows that the warm-up subset is drawn from; by default the data.")
    sample_size: PositiveInt = key(100, "Rows that are drawn.")
    limit: PositiveInt | None = key(None, "At most so many rows of `data_path`.")
    train: TrainSettings | None = key(None, "Training settings that differ here.")


class ScorePart(Config):
    """``score:`` of the pipeline."""

    instruction_key: str | None = key(None, "Column of the instruction; the published way to write `map`.")
    input_key: str | None = key(None, "Column of the input; the published way to write `map`.")
    response_key: str | None = key(None, "Column of the response; the published way to write `map`.")
    template: str | None = key(None, "Template for scoring alone.", also="prompt_template")
    max_length: PositiveInt | None = key(None, "Tokens of prompt and response, for scoring alone.")
    max_samples: PositiveInt | None = key(None, "At most so many rows.")


class SelectPart(OpenPart):
    """``select:`` of the pipeline; keys that are not here are parameters of the method."""

    method: str = key("instructdiff", "Name, or `./mine.py:Margin`.")
    budget: str | int | None = key(
        None, "As `--budget`; or `tokens`, `rows` or `filtered`, of which `select_ratio` is the share."
    )
    per: Bound = key(None, f"{PER} The controls are bound by it too, but `full` is not.")
    grow: str | int | None = key(None, "What each round after the first adds to the budget.")
    near_duplicates: float | None = key(None, NEAR_DUPLICATES, gt=0, le=1)
    weights: str | None = key(None, f"{WEIGHTS} The controls have none.")
    select_ratio: float = key(0.1, "The share, where `budget` is none or one of the three words.")
    params: dict[str, Any] = key(dict, "The method's parameters; they may also stand beside `method`.")


class SelectTrainPart(Config):
    """``select_train:`` of the pipeline."""

    train: TrainSettings | None = key(None, "Training settings that differ from the pipeline's `train`.")


class EvalPart(OpenPart):
    """``eval:`` of the pipeline, with controls at the same token budget.

    Keys that are not here are those of ``instdiff eval``, such as ``task``, ``n``, ``judge`` or ``data_dir``.
    """

    suite: list[str] = key(
        ["heldout"], "Names of suites, of which `heldout` is response NLL on `data_path`.", min_length=1
    )
    data_path: str | None = key(None, "Rows that are held out.")
    limit: PositiveInt | None = key(None, "At most so many of them, and of the items of each task.")
    baselines: tuple[Literal["random", "longest", "full"], ...] = key(
        ("random",), "Controls that are trained at the same token budget."
    )
    seeds: tuple[int, ...] = key((0,), "Seeds of the random control.")
    train_seeds: tuple[int, ...] | None = key(
        None,
        "Seeds under which the last selection is trained and evaluated once more, beside the run's own: three in all "
        "give a verdict. By default those of `seeds` where they are three or more, else none.",
    )
    params: dict[str, Any] = key(dict, "Keys of `instdiff eval`; they may also stand beside `suite`.")

    def repeats(self, own: int) -> list[int]:
        """The seeds under which the last selection is trained beside the run's ``own``."""
        usual = self.seeds if len(self.seeds) >= 3 else ()
        seeds = usual if self.train_seeds is None else self.train_seeds
        return [seed for seed in dict.fromkeys(seeds) if seed != own]

    @model_validator(mode="before")
    @classmethod
    def _path(cls, values: Any) -> Any:
        values = dict(values)
        return {**values, "data_path": values.pop("data")} if isinstance(values.get("data"), str) else values

    @field_validator("suite", mode="before")
    @classmethod
    def _suites(cls, value: Any) -> Any:
        return names(value)
