"""Whether 95 % intervals over seeds and items hold 95 % of truths, and how often a family has a false verdict.

No line differs from the control. A score is the item's own in its line, which all seeds share, plus what its seed adds;
answers of 0 and 1 are drawn with the probability whose logit that sum is. A family is 20 lines and one control.

    python benchmarks/coverage.py --json benchmarks/results/coverage-2-cores.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from common import arguments, finish

from instdiff.core import Floats
from instdiff.evaluation.statistics import estimate

LINES, FAMILIES, QUICK, BLOCK = 20, 5000, 100, 25
LEVEL = 0.05


@dataclass(frozen=True)
class Case:
    """A cell of the grid: spreads of seeds, of an item's own score in one line, and of the rest are in points.

    ``control_sd`` is the control's spread of seeds where it is another one; ``wide`` lines have three times the
    spread, and coverage is theirs alone. Of ``answers`` the spreads are in logits, and ``common_sd`` is that of items
    in all lines alike.
    """

    name: str
    items: int
    seeds: int
    control_seeds: int
    seed_sd: float
    item_sd: float
    rest_sd: float = 0.0
    control_sd: float | None = None
    wide: int = 0
    answers: bool = False
    common_sd: float = 0.0
    weighted: bool = False


CASES = [
    Case("scores", 300, 3, 5, 0.03, 0.25),
    Case("scores", 300, 5, 3, 0.03, 0.25),
    Case("scores", 300, 3, 5, 0.03, 0.50),
    Case("scores", 300, 5, 3, 0.03, 0.50),
    Case("scores", 300, 3, 3, 0.03, 0.25),
    Case("scores", 300, 3, 3, 0.03, 0.10),
    Case("scores", 100, 3, 5, 0.03, 0.07),
    Case("scores", 100, 5, 3, 0.03, 0.07),
    Case("scores with a rest of 0.2", 300, 3, 5, 0.015, 0.10, 0.2),
    Case("scores of weighted items", 300, 3, 3, 0.03, 0.25, weighted=True),
    Case("control's seeds spread twice as much", 300, 3, 3, 0.03, 0.10, control_sd=0.06),
    Case("control's seeds spread half as much", 300, 3, 3, 0.03, 0.10, control_sd=0.015),
    Case("5 of 20 lines spread three times as much", 300, 3, 3, 0.03, 0.10, wide=5),
    Case("answers, seeds alike", 300, 3, 3, 0.0, 0.0, answers=True, common_sd=1.0),
    Case("answers", 300, 3, 3, 0.3, 0.0, answers=True, common_sd=1.0),
    Case("answers, items differ by line, seeds alike", 300, 3, 3, 0.0, 1.0, answers=True, common_sd=1.0),
    Case("answers, items differ by line", 300, 3, 3, 0.3, 1.0, answers=True, common_sd=1.0),
    Case("answers, items differ by line", 300, 3, 5, 0.3, 1.0, answers=True, common_sd=1.0),
]


def simulate(case: Case, families: int, seed: int = 0) -> dict[str, Any]:
    """Coverage of differences and of the lines' own intervals, and the share of families with a false verdict."""
    rng = np.random.default_rng([seed, CASES.index(case)])
    sums = np.zeros(3)
    truth = 0.5 if case.answers else 0.0  # of answers by symmetry of the logits
    for size in _blocks(families):
        weight = rng.lognormal(0, 0.7, case.items) if case.weighted else np.ones(case.items)
        common = rng.normal(0, 1, (size, 1, 1, case.items)) * case.common_sd
        sd = np.full(LINES, case.seed_sd)
        sd[: case.wide] *= 3
        lines = _scores(case, rng, sd, case.seeds, common)
        control_sd = case.seed_sd if case.control_sd is None else case.control_sd
        control = _scores(case, rng, np.array([control_sd]), case.control_seeds, common)
        gap, own = estimate(lines, weight, control), estimate(lines, weight)
        asked = slice(case.wide or None)
        sums[0] += ((gap.low <= 0) & (gap.high >= 0))[:, asked].mean(1).sum()
        sums[1] += ((own.low <= truth) & (own.high >= truth))[:, asked].mean(1).sum()
        # Holm's correction holds a test exactly where the smallest p passes its first step.
        sums[2] += (gap.p.min(1) * LINES <= LEVEL).sum()
    coverage, single, family = (sums / families).tolist()
    return {
        **asdict(case),
        "families": families,
        "coverage": coverage,
        "own_coverage": single,
        "false_families": family,
    }


def _blocks(families: int) -> Iterator[int]:
    for start in range(0, families, BLOCK):
        yield min(BLOCK, families - start)


def _scores(case: Case, rng: np.random.Generator, sd: Floats, seeds: int, common: Floats) -> Floats:
    """[families, lines, seeds, items]."""
    shape = len(common), len(sd), seeds, case.items
    score: Floats = common + rng.normal(0, 1, (*shape[:3], 1)) * sd[:, None, None]
    score = score + rng.normal(0, 1, (*shape[:2], 1, case.items)) * case.item_sd
    if case.answers:
        return (rng.random(shape) < 1 / (1 + np.exp(-score))).astype(np.float64)
    return score + rng.normal(0, 1, shape) * case.rest_sd if case.rest_sd else score


def main() -> None:
    args = arguments(families=FAMILIES)
    families = QUICK if args.quick else args.families
    finish(args, [simulate(case, families) for case in CASES])


if __name__ == "__main__":
    main()
