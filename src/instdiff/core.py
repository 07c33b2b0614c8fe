"""The nouns. Methods and engine meet here and nowhere else; nothing in this file reads or writes anything.

A method declares the columns that it needs as ``Signal``: a *measure* of a *view* of each row under a model *role*.
The planner turns signals into forward passes, the engine fills them, and the method computes with numpy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from instdiff.ragged import Ragged

Floats = npt.NDArray[np.float64]
Reasons = npt.NDArray[np.object_]
"""Per row None, or the one word that says why the row has no value."""


# ── what is read off a row ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Measure:
    """What to read; how is the engine's business."""

    needs_model: ClassVar[bool] = True


@dataclass(frozen=True)
class Nll(Measure):
    """Negative log-likelihood of each target token, in nats."""


@dataclass(frozen=True)
class Entropy(Measure):
    """Entropy of the predicted distribution over the whole vocabulary at each target token, in nats."""


@dataclass(frozen=True)
class Length(Measure):
    """Length of a part of the row, before any truncation; needs a tokenizer at most, never a forward pass."""

    part: str = "response"  # or "instruction", with its input
    unit: str = "tokens"  # or "chars", "words"
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Column(Measure):
    """A column of the input file itself, such as ``source``."""

    name: str
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Listed(Measure):
    """Whether the row is in a named list of rows, such as the warm-up subset."""

    name: str
    needs_model: ClassVar[bool] = False


# ── how a row becomes tokens ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class View:
    """How a sample becomes the tokens that a model sees, and which of them are targets."""


@dataclass(frozen=True)
class Prompted(View):
    """The response after its prompt, rendered by the role's template: the ids that training uses.

    ``score_eos`` makes the end token of each response a target too, as it is in training.
    """

    score_eos: bool = False


@dataclass(frozen=True)
class ResponseOnly(View):
    """The same response ids without the prompt.

    With ``context`` a start token stands before them (the tokenizer's BOS, or its end token where there is none), so
    that the first response token is scored as well.
    """

    context: bool = True


@dataclass(frozen=True)
class WholeText(View):
    """Prompt and response, every token a target but the first."""


@dataclass(frozen=True)
class Joint(View):
    """The published way: prompt and response are tokenised as one text, the boundary found by counting again.

    ``template`` names the published prompt; ``join`` stands between prompt and response. With ``alone`` the response
    is scored after that literal text instead of the prompt, cut to ``max_length - prompt tokens + slack`` so that both
    views score the same tokens. With ``limit`` nothing is cut: a prompt or response longer than that many tokens makes
    the row ``too_long``.
    """

    template: str
    join: str = ""
    alone: str | None = None
    slack: int = 0
    limit: int | None = None


@dataclass(frozen=True)
class Signal:
    """One column: a measure of a view under a model role. ``model`` is a role, never a path."""

    measure: Measure
    view: View = Prompted()
    model: str = "base"

    def needs(self) -> tuple[Signal, ...]:
        """Signals that must be there before this one's view can be rendered."""
        return ()


# ── what a method gets and gives ──────────────────────────────────────────────────────────────────────────────────────


class Signals:
    """The columns that a method asked for, under the names it gave them.

    ``ids`` are content hashes; ``occurrence`` counts rows with the same id in input order, so that (id, occurrence)
    tells rows apart whatever their order. ``why`` holds, per row, the reason for which some column has no value.
    """

    def __init__(self, columns: Mapping[str, Ragged | npt.NDArray[Any]], ids: list[str], why: Reasons) -> None:
        self._columns = dict(columns)
        self.ids, self.why = ids, why

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["_columns"][name]
        except KeyError:
            raise AttributeError(f"no signal {name!r}; declared are {sorted(self._columns)}") from None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def occurrence(self) -> npt.NDArray[np.int64]:
        """How many earlier rows have the same id."""
        seen: dict[str, int] = {}
        out = np.zeros(len(self.ids), np.int64)
        for row, name in enumerate(self.ids):
            out[row] = seen.get(name, 0)
            seen[name] = int(out[row]) + 1
        return out


class Scores:
    """One value per row, higher is better, NaN where the row is not eligible; beside it the numbers behind it.

    Args:
        value: float64 per row.
        why: per row the reason for a NaN. Reasons that the signals bring need not be repeated.
        details: further float64 columns, filled wherever they can be computed, also for ineligible rows.

    Raises:
        ValueError: a column has another length.
    """

    def __init__(self, value: npt.ArrayLike, why: Reasons | None = None, **details: npt.ArrayLike) -> None:
        self.value: Floats = np.asarray(value, np.float64)
        self.why: Reasons = np.full(len(self.value), None, object) if why is None else why
        self.details: dict[str, Floats] = {name: np.asarray(column, np.float64) for name, column in details.items()}
        for name, column in {"why": self.why, **self.details}.items():
            if len(column) != len(self.value):
                raise ValueError(f"score column {name!r} has {len(column)} rows, expected {len(self.value)}")

    def explained(self, signals: Signals) -> Scores:
        """The same scores with a reason for every NaN: the signals' own first, then the method's.

        Raises:
            ValueError: not one value per row.
        """
        if len(self.value) != len(signals):
            raise ValueError(f"the method gave {len(self.value)} scores for {len(signals)} rows")
        why = np.where(signals.why != None, signals.why, self.why)  # noqa: E711 - elementwise
        value = np.where(np.isfinite(self.value) & (why == None), self.value, np.nan)  # noqa: E711 - elementwise
        why[np.isnan(value) & (why == None)] = "non_finite"  # noqa: E711 - elementwise
        return Scores(value, why, **self.details)


def reasons(rows: int, **marks: npt.NDArray[np.bool_]) -> Reasons:
    """One reason per row from boolean columns; where several hold, the first named counts."""
    why = np.full(rows, None, object)
    for word, mark in reversed(marks.items()):
        why[mark] = word
    return why


@dataclass(frozen=True)
class Scored:
    """A method's part of the score table: what ``pick`` and ``select`` may look at.

    ``n_tokens`` are the scored response tokens per row, the currency of token budgets.
    """

    name: str
    method: Method
    value: Floats
    why: Reasons
    details: Mapping[str, Floats]
    ids: list[str]
    n_tokens: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.value)

    @property
    def eligible(self) -> npt.NDArray[np.bool_]:
        """Rows that have a score."""
        return np.isfinite(self.value)

    @property
    def scorable(self) -> npt.NDArray[np.bool_]:
        """Rows that could be scored: the eligible ones and those that the method itself filtered."""
        return self.eligible | np.isin(self.why, FILTERED)

    def best(self) -> npt.NDArray[np.int64]:
        """Eligible rows, best first; ties by id, then row, so that the input's order never matters."""
        order = np.lexsort((np.arange(len(self)), np.array(self.ids, dtype=object).astype(str), -self.value))
        return np.asarray(order[self.eligible[order]], np.int64)


FILTERED = ("filtered", "warmup")
"""Reasons by which a method leaves out rows that it could score; they count in a token budget's total."""


@dataclass(frozen=True)
class Method:
    """Declare signals; turn them into scores; rank.

    A method is a frozen dataclass whose fields are the paper's hyper-parameters with the paper's defaults. It is
    deterministic and uses numpy alone.
    """

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    def signals(self) -> dict[str, Signal]:
        """The columns that ``score`` reads, by the names it uses."""
        return {}

    def score(self, s: Signals) -> Scores:
        """One value per row from the signals."""
        raise NotImplementedError

    def pick(self, scored: Scored, budget: Budget) -> npt.NDArray[np.int64]:
        """Rows of the subset, best first."""
        return budget.take(scored.best(), scored)

    def params(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


# ── how much to take ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Budget:
    """How much of a ranking to take.

    Kinds: ``rows`` (a count), ``share`` (of the input's rows), ``eligible`` (share of the rows that have a score),
    ``tokens`` (a count of response tokens), ``token_share`` (of the response tokens of all scorable rows). Shares of
    rows round down; a token budget includes the row that crosses it.
    """

    amount: float
    kind: str = "share"

    def __str__(self) -> str:
        share = f"{self.amount * 100:.12g}%"
        return {
            "rows": f"{self.amount:.0f}",
            "share": share,
            "eligible": f"{share} eligible",
            "tokens": f"{self.amount:.0f} tokens",
            "token_share": f"{share} tokens",
        }[self.kind]

    def target(self, scored: Scored) -> int:
        """The budget in its own unit, rows or tokens, for these scores."""
        base = {
            "rows": None,
            "tokens": None,
            "share": len(scored),
            "eligible": int(scored.eligible.sum()),
            "token_share": int(scored.n_tokens[scored.scorable].sum()),
        }[self.kind]
        # 0.29 * 100 is 28.999...: the share is a decimal that somebody typed, and one part in 10^12 restores it.
        return int(self.amount) if base is None else int(self.amount * base * (1 + 1e-12))

    def take(self, order: npt.NDArray[np.int64], scored: Scored) -> npt.NDArray[np.int64]:
        """The head of a ranking that fits."""
        target = self.target(scored)
        if self.kind in ("rows", "share", "eligible"):
            return order[:target]
        spent = np.cumsum(scored.n_tokens[order])
        return order[: int(np.searchsorted(spent, target)) + 1] if target > 0 else order[:0]


# ── which model ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ModelRef:
    """A model bound to a role: where it is and how rows are rendered for it.

    ``where`` is a local folder, a hub id or ``builtin:NAME``; ``revision`` pins a hub id; ``adapter`` is a PEFT folder
    or hub id on top. ``template`` is a template's name or file; None is the role's default.
    """

    where: str
    revision: str | None = None
    adapter: str | None = None
    template: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.where}{revision}" + (f"+{self.adapter}" if self.adapter else "")


Log = Callable[[str], None]
"""Tells the user one line."""


@dataclass(frozen=True)
class Settings:
    """What all passes of a run share.

    ``max_length`` counts tokens of prompt and response; ``dtype`` is that of the weights: reductions are always fp32.
    """

    max_length: int = 2048
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    templates: Mapping[str, str] = field(default_factory=lambda: {"*": "alpaca"})
