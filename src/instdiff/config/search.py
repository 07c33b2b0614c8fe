"""``instdiff search``: which recipes, how many short trainings, judged by what."""

from __future__ import annotations

import dataclasses
from typing import Any

from pydantic import PositiveInt, field_validator

from instdiff.config.base import key
from instdiff.config.commands import parse_methods
from instdiff.config.compare import CellsConfig, Variant
from instdiff.config.pipeline import names
from instdiff.methods import METHODS

RANDOM = "random"
"""The line that every recipe is compared with."""


class SearchConfig(CellsConfig):
    """``instdiff search``."""

    output: str | None = key("runs/search", "The run folder.", metavar="DIR", also="output_dir")
    recipes: dict[str, Variant] = key(
        dict,
        "See [lines](#a-line-of-a-comparison); by default the [built-in ones](search.md#built-in-recipes), as many as "
        "`trainings` allow.",
    )
    budget: str | int = key("10% tokens", "500, 10%, '200000 tokens'; tokens give equal terms.", metavar="BUDGET")
    trainings: PositiveInt = key(30, "Trainings on chosen rows, at most; warm-ups and folds not counted.", metavar="N")
    final_seeds: int = key(5, "Of the best recipe and of random rows, on items that the search never saw.", ge=3)
    decide: list[str] = key(list, "Tasks whose mean decides; by default all tasks of the first suite.")
    heldout: PositiveInt = key(
        600, "Rows of the data that are held out where `eval.data` names none; at most a tenth of the rows."
    )
    group_by: str | None = key(None, "Column, such as the source; built-in recipes that take equal shares of it join.")
    trained_scorers: bool = key(
        True, "Whether built-in recipes may need a warm-up or fold models, which are trained first."
    )
    keep_models: bool = key(False, "True keeps the models of all cells.")

    @field_validator("decide", mode="before")
    @classmethod
    def _tasks(cls, value: Any) -> Any:
        return names(value)

    @field_validator("recipes", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return parse_methods(value)

    @field_validator("recipes")
    @classmethod
    def _equal_terms(cls, recipes: dict[str, Variant]) -> dict[str, Variant]:
        for name, recipe in recipes.items():
            if name in (RANDOM, "base"):
                raise ValueError(f"'{name}' is always there; give the recipe another name")
            own = next((key for key in ("budget", "seeds") if getattr(recipe, key) is not None), None)
            if own:
                raise ValueError(f"'{name}' has {own} of its own; a search gives all recipes the same")
        return recipes

    @property
    def budgets(self) -> tuple[str | int, ...]:
        """The only one."""
        return (self.budget,)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The first."""
        return (self.seed,)

    def warmup_seed(self, seed: int) -> int:
        """One warm-up serves all cells, so that scores are computed once."""
        return self.seed

    def lines(self) -> dict[str, Variant]:
        """Random rows, and all recipes."""
        return {RANDOM: Variant(), **self.recipes}


def built_in_recipes(config: SearchConfig) -> dict[str, Variant]:
    """Recipes of a few columns that need no label, those that promise most first."""
    likely, middle = {"perplexity": {"band": "min"}}, {"method": "perplexity", "band": "mid"}
    found: dict[str, dict[str, Any]] = {}
    if config.trained_scorers and (kind := METHODS.get("learnability")) is not None:
        fixed = {"seed": config.seed} if "seed" in {field.name for field in dataclasses.fields(kind)} else {}
        found["learnability"] = fixed
        found["learnability_rehearsing"] = {"method": "learnability", "rehearse": 0.25, **fixed}
        found["random_of_learnable"] = _random_of({"learnability": fixed})
    if config.group_by:
        found[f"random_by_{config.group_by}"] = {"method": RANDOM, "group_by": config.group_by}
        found[f"perplexity_mid_by_{config.group_by}"] = {**middle, "group_by": config.group_by}
    found |= {"perplexity_mid": middle, "random_of_likely": _random_of(likely), "ifd": {}, "longest": {}}
    if config.trained_scorers:
        found["instructdiff"] = {}
    found |= {
        "mid_and_long": {"method": "blend", "of": [{"perplexity": {"band": "mid"}}, "longest"]},
        "perplexity_max": {"method": "perplexity", "band": "max"},
        "perplexity_min": {"method": "perplexity", "band": "min"},
        "random_of_ifd": _random_of("ifd"),
        "entropy_mid": {"method": "entropy", "band": "mid"},
        "longest_of_likely": {"method": "then", "first": likely, "keep": "70%", "second": "longest"},
    }
    return {name: Variant.model_validate(values) for name, values in found.items()}


def _random_of(first: Any) -> dict[str, Any]:
    """Random rows of the upper seventy percent by a method, which is then a filter."""
    return {"method": "then", "first": first, "keep": "70%", "second": RANDOM}
