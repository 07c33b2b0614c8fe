"""The recipe for a pool, a model and a budget: short trainings among recipes, random rows always among them.

Recipes are lines of a comparison. The search judges them on one half of the held-out items, and the best recipe in the
end on the other half, with seeds of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from instdiff.config.compare import Variant
from instdiff.config.search import RANDOM, SearchConfig, built_in_recipes
from instdiff.core import Log
from instdiff.core.files import read_whole, write_record
from instdiff.core.progress import Progress, Quiet
from instdiff.errors import DataError, EngineError
from instdiff.evaluation.results import SuiteResult, TaskResult
from instdiff.evaluation.subject import Suite
from instdiff.experiments.compare import Comparison, open_cells
from instdiff.experiments.halving import Bracket, Found, deciding, gain, half_of, halve, halved, rungs_of, trainings_of
from instdiff.experiments.inputs import as_lines, configured
from instdiff.experiments.items import write_items
from instdiff.experiments.run_folder import BASE, CELL, Cell, CellResult, ComparisonFolder, alone
from instdiff.experiments.summary import BETTER, SAME, WORSE, TaskScores, devices, sample, summarize
from instdiff.experiments.tables import ComparisonResult, difference, write_comparison

FINAL_SEED = 1_000
"""Added to the run's seed: seeds of the last judgement, which the search has not seen."""
MIN_ITEMS = 2
MEAN = "mean"
"""Stands for a suite where the mean of several tasks decides."""
UNTOUCHED = (
    "The search saw one half of the items; these lines are judged on the other half, with seeds that it did not see."
)
SEEN = "These lines are judged on the half of the items that the search saw; the other half was not looked at."


@dataclass
class SearchRun(Comparison):
    """A search's run folder: a comparison whose cells come rung by rung."""

    config: SearchConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        recipes = len(self.config.recipes)
        self.rungs = rungs_of(recipes, self.config.trainings, self.config.final_seeds)
        self.halves = {side: [half_of(suite, side) for suite in self.suites] for side in (False, True)}
        self.wanted = list[Cell]()
        self.made: dict[Cell, CellResult] = {}

    def cells(self) -> Iterator[Cell]:
        """The base, and those of the rung."""
        yield Cell(BASE)
        yield from self.wanted

    def cells_of(self, names: Iterable[str], seeds: Iterable[int]) -> list[Cell]:
        """Cells of recipes and of random rows, seed by seed."""
        return [Cell(name, str(self.config.budget), seed) for seed in seeds for name in (RANDOM, *names)]

    @property
    def final_seeds(self) -> range:
        """Of the last judgement."""
        return range(first := self.config.seed + FINAL_SEED, first + self.config.final_seeds)

    def suites_of(self, cell: Cell) -> list[Suite]:
        """Of the half of the items that a cell is judged on; the base is on both, as far as suites can be halved."""
        return self.suites if cell.seed is None else self.halves[cell.seed >= self.final_seeds[0]]

    def run_cells(self, cells: list[Cell]) -> list[CellResult]:
        """Cells with what became of them; an EngineError where the base or random rows failed."""
        self.wanted = cells
        self.made |= {one.cell: one for one in self.run()}
        for one in (self.made[cell] for cell in (Cell(BASE), *cells)):
            if one.error is not None and one.cell.line in (BASE, RANDOM):
                raise EngineError(f"{one.cell}, which all recipes are compared with, failed: {one.error}")
        return [self.made[cell] for cell in cells]

    def _drop(self, later: Sequence[Cell]) -> None:
        """Models that a later rung scores by stay until the last one."""
        over = any(cell.seed == self.final_seeds[0] for cell in self.wanted)
        ahead = [] if over else self.cells_of(self.config.recipes, self.final_seeds[:1])
        super()._drop([*later, *ahead])

    def decides(self, results: Sequence[SuiteResult], *, untouched: bool) -> TaskResult:
        """The task that decides, on the half that the search sees or on the untouched one."""
        return deciding(halved(results, untouched), self.config.decide)

    def check_items(self) -> str:
        """Judge the base, and give the name of the task that decides; a DataError where half of it is too little."""
        self.run_cells([])
        for untouched in (True, False):
            found = self.decides(self.made[Cell(BASE)].results, untouched=untouched)
            if len(found.ids) < MIN_ITEMS:
                raise DataError(
                    f"{found.name} has too few items for two halves: one has {len(found.ids)}; name more held-out rows "
                    "(eval.data=FILE)"
                )
        return found.name

    def judge(self, names: Sequence[str], seeds: int) -> dict[str, Found]:
        """Train recipes with the first seeds, and compare them with random rows on the half that the search sees."""
        found = self.found(names, self.run_cells(self.rung(names, seeds)))
        gains = ", ".join(
            f"{name} {found[name]['gain']:+.3f}" for name in sorted(found, key=lambda n: -found[n]["gain"])
        )
        self.log(f"{len(names)} recipes with {seeds} seed{'s' * (seeds != 1)} against random rows: {gains}")
        return found

    def rung(self, names: Sequence[str], seeds: int) -> list[Cell]:
        """The cells of recipes with the first seeds."""
        return self.cells_of(names, range(self.config.seed, self.config.seed + seeds))

    def found(self, names: Sequence[str], outcomes: Sequence[CellResult]) -> dict[str, Found]:
        """What the search sees of recipes all of whose cells are there."""
        seen = dict[str, TaskScores]()
        for name in (RANDOM, *names):
            mine = [one for one in outcomes if one.cell.line == name]
            if all(one.error is None for one in mine):
                seen[name] = sample([self.decides(one.results, untouched=False) for one in mine])
        control = seen.pop(RANDOM)
        return {
            name: {"gain": gain(one, control), "value": one.value, "by_seed": one.by_seed, "random": control.by_seed}
            for name, one in seen.items()
        }

    def look_ahead(self) -> SearchRun:
        """The same with all cells of the search: as far as rungs are done their own, then those of the first recipes.

        Recipes train for as long as one another, so any of them stand for the better half.
        """
        ahead = list[Cell]()

        def foresee(names: Sequence[str], seeds: int) -> Mapping[str, Found]:
            ahead.extend(cells := self.rung(names, seeds))
            done = [self._read(cell) for cell in cells if (self.places.cell(cell) / CELL).is_file()]
            whole = [one for one in done if one is not None]
            if len(whole) == len(cells):
                return self.found(names, whole)
            return {name: {"gain": float(len(names) - at)} for at, name in enumerate(names)}

        bracket = halve(list(self.config.recipes), self.rungs, foresee)
        final = [] if bracket.hopeless else self.cells_of([bracket.best], self.final_seeds)
        self.wanted = list(dict.fromkeys([*ahead, *final]))
        return self


def open_search(config: SearchConfig, log: Log, progress: Progress, *, claim: bool = True) -> SearchRun:
    """A search's run folder, as ``open_cells`` has it; recipes that are not named are the built-in ones."""
    folder = ComparisonFolder(Path(config.output or ""))
    if not config.recipes and config.output and folder.begun:  # more trainings would have brought more recipes
        begun = yaml.safe_load(folder.read_config())["recipes"]
        config = config.model_copy(update={"recipes": {name: Variant(**one) for name, one in begun.items()}})
    elif not config.recipes:
        known = built_in_recipes(config)
        fits = [n for n in range(1, len(known) + 1) if trainings_of(n, config.final_seeds) <= config.trainings]
        names = list(known)[: fits[-1] if fits else 1]
        if left := list(known)[len(names) :]:
            log(f"{config.trainings} trainings are enough for {len(names)} recipes; left out: {', '.join(left)}")
        config = config.model_copy(update={"recipes": {name: known[name] for name in names}})
    return open_cells(SearchRun, config, log, progress, claim)


@alone()
def search(
    data: Any,
    model: Any = None,
    output: str | Path | None = None,
    *,
    log: Log | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> ComparisonResult:
    """Run or go on with a search.

    Args:
        data: the rows, or what ``load`` reads; or a whole configuration, without the rest.
        model: scores the rows and is trained: a folder, a hub id, or a loaded one as ``(model, tokenizer)``.
        output: the run folder.
        log: is told what happens.
        progress: shows it.
        options: keys of the configuration, such as ``budget``, ``trainings`` and ``eval``.

    Returns:
        What ``search.json`` holds: ``rungs``, ``recommended`` (a recipe, or ``random``) with its ``recipe``, the line
        of the last judgement (``final``), ``optimism``, ``cost``, a ``sentence`` that says it all, and in ``leaks``
        which selected rows overlap the items that judged them.

    Raises:
        ConfigError: something is missing or of a type that is not taken, the trainings
            are too few, or the folder holds another search.
        DataError: the data has changed since the search began, or the held-out items are too few.
        EngineError: random rows, or all recipes, failed.
        StoreError: another process works in the folder.
    """
    options |= {"model": model, "output": output, "recipes": as_lines(options.get("recipes"))}
    config = configured(SearchConfig, data, **options)
    run = open_search(config, log or (lambda line: None), progress or Quiet())
    return ComparisonResult(find_recipe(run), run.folder)


def find_recipe(run: SearchRun) -> dict[str, Any]:
    """Halve the recipes, judge the best one on the untouched half, and write what came of it."""
    task = run.check_items()
    bracket = halve(list(run.config.recipes), run.rungs, run.judge)
    outcomes = [replace(one, results=halved(one.results, untouched=False)) for one in run.made.values()]
    write_items(run.places.search_items, outcomes, {"rungs": bracket.rungs})
    if not bracket.hopeless:
        outcomes = [_untouched(run, one) for one in run.run_cells(run.cells_of([bracket.best], run.final_seeds))]
    lines = summarize(outcomes)
    mine = [line for line in lines if (line["name"], line["task"]) == (bracket.best, task)]
    told = _conclude(run, bracket, None if bracket.hopeless else mine[0])
    facts = {"data": run.config.data, "model": run.config.model, "student": run.config.student or run.config.model}
    facts |= {"terms": SEEN if bracket.hopeless else UNTOUCHED, "verdicts": told["told"]}
    overlap = _overlap(run, outcomes, untouched=not bracket.hopeless) if run.config.leaks else {}
    told, facts = told | overlap, facts | overlap
    write_comparison(run.folder, outcomes, lines, facts)
    write_record(run.places.search, told)
    return told


def _overlap(run: SearchRun, outcomes: Sequence[CellResult], *, untouched: bool) -> dict[str, Any]:
    """What the selections of the last judgement have in common with its items; nothing where that is not known."""
    own = [replace(one, results=[part for part in one.results if part.suite != MEAN]) for one in outcomes]
    found = run.find_leaks(own, run.halves[untouched])
    return {} if found is None else {"leaks": found}


def _untouched(run: SearchRun, one: CellResult) -> CellResult:
    """A cell of the last judgement on the items that the search never saw, with the mean that decides, if it is one."""
    if one.error is not None:
        raise EngineError(f"{one.cell} failed, so that the recipe cannot be judged: {one.error}")
    decides, results = run.decides(one.results, untouched=True), halved(one.results, untouched=True)
    if all(decides.name != task.name for result in results for task in result.tasks):
        results.insert(0, replace(results[0], suite=MEAN, tasks=(decides,)))
    return replace(one, results=results)


# ── what it came to ───────────────────────────────────────────────────────────────────────────────────────────────────


def _conclude(run: SearchRun, bracket: Bracket, final: dict[str, Any] | None) -> dict[str, Any]:
    """The search's record, with the recommendation in a sentence."""
    best, spent = bracket.best, _spent(run)
    good = final is not None and final["verdict"] == BETTER
    recommended = best if good else RANDOM
    told: dict[str, Any] = {
        "recommended": recommended,
        "recipe": {"method": recommended, **run.variants[recommended].model_dump(mode="json", exclude_defaults=True)},
        "best": best,
        "gain_seen": bracket.gain,
        "rungs": bracket.rungs,
        "stopped": bracket.hopeless,
        "final": final,
        "cost": spent,
        "seeds": {"first": run.config.seed, "final": list(run.final_seeds) if final else []},
    }
    sentence = _sentence(best, len(run.config.recipes), final, bracket, spent)
    lines = [sentence]
    if final is not None:
        untouched = final["diff"] if final["higher_is_better"] else -final["diff"]
        told |= {"gain_untouched": untouched, "optimism": bracket.gain - untouched}
        lines.append(
            f"The search saw {best} gain {bracket.gain:+.3f} over random rows, and the untouched half shows "
            f"{untouched:+.3f}: an optimism of {bracket.gain - untouched:+.3f}."
        )
    return {**told, "sentence": sentence, "told": lines}


def _spent(run: SearchRun) -> dict[str, Any]:
    """What the folder has cost until now."""
    cells = [one for one in run.made.values() if one.cell.line != BASE]
    records = list(run.places.trainings().values())
    known = read_whole(run.places.cost, run.log) or {}
    return {
        "trainings": len(cells),
        "train_s": round(sum(one["wall_s"] * one["batch"]["processes"] for one in records), 2),
        "score_s": known.get("seconds", 0.0),
        "score_tokens": known.get("tokens", 0),
        "unit": devices(run.settings)[0],
    }


def _sentence(best: str, recipes: int, final: dict[str, Any] | None, bracket: Bracket, spent: Mapping[str, Any]) -> str:
    took = (
        f"the search took {spent['trainings']} trainings and {spent['train_s'] + spent['score_s']:,.0f} {spent['unit']}"
    )
    if final is None:
        seeds = bracket.rungs[-1]["seeds"]
        return (
            f"Random rows are the better choice: none of {recipes} recipes beats them, the best, {best}, by "
            f"{bracket.gain:+.3f} with {seeds} seed{'s' * (seeds != 1)}; {took}."
        )
    own = sum(final[key] or 0.0 for key in ("warmup_s", "score_s"))
    what = " ".join(dict.fromkeys([final["task"], final["metric"]]))
    against = f"{what} of {final['value']:.3f}, {difference(final)} against random rows"
    beside = f"on {final['items']} items that the search never saw, with {final['seeds']} seeds each"
    if final["verdict"] == BETTER:
        return f"Choose rows by {best}: a {against} {beside}; scoring costs {own:,.0f} {spent['unit']}, and {took}."
    words = {SAME: "is not told apart from them", WORSE: "is worse"}.get(final["verdict"], "has too few seeds")
    begin = f"Random rows are the better choice: {best}, the best of {recipes} recipes, {words}"
    return f"{begin}: a {against} {beside}; {took}."
