"""How much of a ranking to take, and how people write it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from instdiff.errors import ConfigError


class Rankable(Protocol):
    """What a budget asks of scored rows."""

    def __len__(self) -> int: ...

    @property
    def n_tokens(self) -> npt.NDArray[np.int64]:
        """Scored response tokens per row."""

    @property
    def n_thought(self) -> npt.NDArray[np.int64] | None:
        """How many of them are of a thought; None where no row has one."""

    @property
    def scorable(self) -> npt.NDArray[np.bool_]:
        """Rows that could be scored."""

    @property
    def takeable(self) -> npt.NDArray[np.bool_]:
        """Rows that may be taken."""


@dataclass(frozen=True)
class Budget:
    """How much of a ranking to take.

    Kinds: ``rows`` (a count), ``share`` (of the input's rows), ``eligible`` (share of the rows that can be taken),
    ``tokens`` (a count of response tokens), ``token_share`` (of the response tokens of all scorable rows). Shares of
    rows round down; a token budget includes the row that crosses it. With a ``part``, ``answer`` or ``thought``, tokens
    of that part of the response alone are counted.
    """

    amount: float
    kind: str = "share"
    part: str = ""

    def __str__(self) -> str:
        share = f"{self.amount * 100:.12g}%"
        return {
            "rows": f"{self.amount:.0f}",
            "share": share,
            "eligible": f"{share} eligible",
            "tokens": f"{self.amount:.0f} {self.currency}",
            "token_share": f"{share} {self.currency}",
        }[self.kind]

    @property
    def currency(self) -> str:
        """What a token budget counts, as people write it."""
        return f"{self.part} tokens".strip()

    @property
    def key(self) -> str:
        """Its unit in the names of a record's keys."""
        return self.currency.replace(" ", "_") if self.of_tokens else "rows"

    @property
    def unit(self) -> str:
        """What it counts, for people."""
        return f"{self.part or 'response'} tokens" if self.of_tokens else "rows"

    def costs(self, scored: Rankable) -> npt.NDArray[np.int64]:
        """What each row takes of a token budget."""
        if not self.part:
            return scored.n_tokens
        thought = np.zeros_like(scored.n_tokens) if scored.n_thought is None else scored.n_thought
        return thought if self.part == "thought" else scored.n_tokens - thought

    def target(self, scored: Rankable) -> int:
        """The budget in its own unit, rows or tokens, for these scores."""
        base = {
            "rows": None,
            "tokens": None,
            "share": len(scored),
            "eligible": int(scored.takeable.sum()),
            "token_share": int(self.costs(scored)[scored.scorable].sum()),
        }[self.kind]
        # 0.29 * 100 is 28.999...: the share is a decimal that somebody typed, and one part in 10^12 restores it.
        return int(self.amount) if base is None else int(self.amount * base * (1 + 1e-12))

    @property
    def of_tokens(self) -> bool:
        """Whether its unit is response tokens, not rows."""
        return self.kind in ("tokens", "token_share")

    def as_count(self, scored: Rankable) -> Budget:
        """The same amount as a count, for a part of these rows."""
        return self.count(self.target(scored))

    def count(self, amount: float) -> Budget:
        """A budget of so many rows or tokens, in the unit of this one."""
        return Budget(amount, "tokens", self.part) if self.of_tokens else Budget(amount, "rows")

    def is_filled_by(self, order: npt.NDArray[np.int64], scored: Rankable) -> bool:
        """Whether a ranking is long enough."""
        return (int(self.costs(scored)[order].sum()) if self.of_tokens else len(order)) >= self.target(scored)

    def take(self, order: npt.NDArray[np.int64], scored: Rankable) -> npt.NDArray[np.int64]:
        """The head of a ranking that fits."""
        target = self.target(scored)
        if not self.of_tokens:
            return order[:target]
        spent = np.cumsum(self.costs(scored)[order])
        return order[: int(np.searchsorted(spent, target)) + 1] if target > 0 else order[:0]


_FORM = re.compile(
    r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][0-9]+)?)\s*(%?)\s*((?:answer |thought )?tokens|rows|eligible|)\s*"
)
_EXAMPLES = "write 500, 10%, '25% eligible', '200000 tokens', '10% tokens' or '10% answer tokens'"
PUBLISHED_KINDS = {"tokens": "token_share", "rows": "share", "filtered": "eligible"}
"""The published ``budget:`` words, which give ``select_ratio`` its unit."""


def parse_budget(text: str | int | float | Budget) -> Budget:
    """``500`` rows, ``10%`` of the rows, ``25% eligible``, ``200000 tokens``, ``10% tokens``; else a ConfigError.

    ``10% answer tokens`` and ``10% thought tokens`` count that part of the responses alone.
    """
    if isinstance(text, Budget):
        return text
    found = _FORM.fullmatch(str(text))
    if found is None:
        raise ConfigError(f"budget '{text}' is not understood; {_EXAMPLES}")
    amount, percent, words = float(re.sub("[_,]", "", found[1])), found[2], found[3]
    part, _, unit = words.rpartition(" ")
    if percent:
        if not 0 < amount <= 100:
            raise ConfigError(f"budget '{text}': a share lies above 0 and up to 100 %")
        return Budget(amount / 100, {"tokens": "token_share", "eligible": "eligible"}.get(unit, "share"), part)
    if unit == "eligible":
        raise ConfigError(f"budget '{text}': 'eligible' goes with a share; {_EXAMPLES}")
    if amount < 1 or not amount.is_integer():
        raise ConfigError(f"budget '{text}' is no whole count; for a share write {amount * 100:g}%; {_EXAMPLES}")
    return Budget(amount, "tokens" if unit == "tokens" else "rows", part)


def published_budget(ratio: float, kind: str) -> Budget:
    """The published keys ``select_ratio`` and ``budget: tokens | rows | filtered``."""
    if kind not in PUBLISHED_KINDS:
        raise ConfigError(
            f"budget '{kind}': with select_ratio it is one of {', '.join(PUBLISHED_KINDS)}; else {_EXAMPLES}"
        )
    if not 0 < ratio <= 1:
        raise ConfigError(f"select_ratio {ratio} lies outside 0 to 1")
    return Budget(ratio, PUBLISHED_KINDS[kind])


def configured_budget(budget: str | int | None, ratio: float | None) -> Budget:
    """The budget of a configuration: written out, or by the published keys; 10 % of the rows where nothing is said.

    A ``budget`` that is more than a published unit goes before ``select_ratio``.
    """
    if ratio is not None and (budget is None or budget in PUBLISHED_KINDS):
        return published_budget(ratio, str(budget or "tokens"))
    return parse_budget("10%" if budget is None else budget)


def divide(amount: int, weights: Sequence[int], limits: Sequence[int]) -> list[int]:
    """A count in proportion to ``weights``, none above its limit: what one cannot use goes to the others.

    Fractions go to the largest remainders, the first of equal ones. The sum is the count, or that of the limits where
    they do not allow it.
    """
    weight, limit = np.asarray(weights, np.float64), np.asarray(limits, np.float64)
    share = np.zeros(len(weight))
    open_ = (weight > 0) & (limit > 0)
    left = min(float(amount), float(limit[open_].sum()))
    while open_.any():
        share[open_] = left * weight[open_] / weight[open_].sum()
        full = open_ & (share >= limit)
        if not full.any():
            break
        share[full], open_ = limit[full], open_ & ~full
        left -= float(limit[full].sum())
    out = np.floor(share + 1e-9).astype(np.int64)
    rest = min(amount, int(limit[(weight > 0)].sum())) - int(out.sum())
    most = np.argsort(-np.where(out < limit, share - out, -1), kind="stable")[: max(0, rest)]
    out[most] += 1
    return [int(part) for part in out]
