"""What can be asked of a row: a *measure* of a *view* under a model *role*."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from instdiff.core.columns import Signals
from instdiff.errors import ConfigError

if TYPE_CHECKING:
    from instdiff.core.method import Method

# ── rows in folds ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Folds:
    """How rows are split, and how the model of each fold is trained: on what lies outside the fold.

    There are ``k`` folds. Training makes ``epochs`` passes, from the model of the role ``model``, over the ``fraction``
    of those rows; ``lora`` is the rank of adapters in place of all weights. ``learning_rate`` replaces the run's.
    With several ``rounds`` the models are trained again, each round on the best ``keep`` of the rows by the last one.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    k: int = 2
    epochs: float = 8
    model: str = "base"
    lora: int | None = None
    fraction: float = 1.0
    learning_rate: float | None = None
    rounds: int = 1
    keep: float = 0.5

    def __post_init__(self) -> None:
        shares = 0 < self.fraction <= 1 and 0 < self.keep <= 1
        if self.k < 2 or not self.epochs > 0 or not shares or (self.lora or 1) < 1 or self.rounds < 1:
            given = f"k: {self.k}, epochs: {self.epochs:g}, lora: {self.lora}, fraction: {self.fraction:g}"
            raise ConfigError(
                f"folds {{{given}, rounds: {self.rounds}, keep: {self.keep:g}}} do not fit; k is 2 or more, epochs lie "
                "above 0, lora is none or 1 or more, rounds 1 or more, and fraction and keep lie above 0 and up to 1"
            )


@dataclass(frozen=True)
class Split:
    """The rows of a pool in folds; rows that share a prompt, or a value of the column ``group``, share a fold.

    Where a method comes ``before``, models are trained on the best ``folds.keep`` by it of the rows outside their fold.
    Models that are ``given`` are never trained here.
    """

    folds: Folds
    seed: int = 42
    group: str | None = None
    before: Method | None = None
    given: bool = False


@dataclass(frozen=True)
class Saves:
    """A training on the rows ``of`` the pool or of the ``target``, of which a role's model is kept after some passes.

    ``roles`` are these with their passes, in order; the training ends with the last. It begins with the model of the
    role ``model``. ``settings`` are keys of training settings that go before those of the run, with their values.
    """

    roles: tuple[tuple[str, float], ...]
    settings: tuple[tuple[str, Any], ...] = ()
    of: str = "target"
    model: str = "base"
    seed: int = 42


# ── what is read off a row ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Measure:
    """What to read; how is the engine's business."""

    needs_model: ClassVar[bool] = True
    of_text: ClassVar[bool] = False
    """Whether it is read off text by an embedder or judge, and not off tokens."""

    @property
    def also(self) -> tuple[str, ...]:
        """Roles that it needs beside the signal's own."""
        return ()


@dataclass(frozen=True)
class Nll(Measure):
    """Negative log-likelihood of each target token, in nats."""


@dataclass(frozen=True)
class Entropy(Measure):
    """Entropy of the predicted distribution over the whole vocabulary at each target token, in nats."""


@dataclass(frozen=True)
class MeanNll(Measure):
    """Mean negative log-likelihood of a row's target tokens, in nats: one value for each row that the model sees."""


@dataclass(frozen=True)
class Top1(Measure):
    """1 for each target token that is the model's most likely one, else 0."""


@dataclass(frozen=True)
class Rank(Measure):
    """Rank of each target token: 1 + the entries of the vocabulary with a strictly larger logit, at most ``clip``."""

    clip: int = 100


@dataclass(frozen=True)
class Brier(Measure):
    """Brier score of each target token y: 1 - 2 p(y) + the sum over the vocabulary of p(v)^2; from 0 to 2.

    With ``likeliest`` p is renormalised over so many of the likeliest tokens, and p(y) is 0 where y is not among them.
    """

    likeliest: int | None = None


@dataclass(frozen=True)
class Choice(Measure):
    """Log-probability, in nats over the whole vocabulary, of each option as the token after the row.

    Each option must be one token there; ``ids`` are filled in with the model's tokenizer.
    """

    options: tuple[str, ...]
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pooled(Measure):
    """The hidden states of a layer pooled over all tokens of a row: as many values as the model is wide.

    ``how``: ``mean``, ``last`` (token) or ``weighted`` (token t of T weighs t / (1 + ... + T)). Layer -1 is the last,
    after its norm.
    """

    how: str = "mean"
    layer: int = -1


@dataclass(frozen=True)
class Neurons(Measure):
    """Magnitude of each neuron of a layer's MLP (the input of its down projection), over a row's marked tokens.

    ``over``: ``max``, ``mean`` or ``last``. Layers count from 0; a fraction below 1 is one of the depth, rounded down:
    0.5 is layer 14 of 28.
    """

    layer: int | float
    over: str = "max"


@dataclass(frozen=True)
class GradSketch(Measure):
    """A sketch of the gradient of a row's mean NLL by the output embedding: ``buckets`` times ``width`` values.

    Inner products of sketches have those of the gradients as their expectation; ``seed`` draws them.
    """

    buckets: int = 128
    width: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Embedding(Measure):
    """The vector that a text embedder gives a row; ``pooling`` replaces the model's own (``mean``, ``cls``)."""

    pooling: str | None = None
    of_text: ClassVar[bool] = True


@dataclass(frozen=True)
class Judged(Measure):
    """A number that a judge writes about a row, between ``low`` and ``high``; no value where it writes none."""

    low: float
    high: float
    of_text: ClassVar[bool] = True


RIGHT, WRONG, CUT, UNVERIFIED = 1, 0, -1, -2
"""What is known of an answer; one that its length cut counts as wrong, and one without a verdict as not drawn."""


@dataclass(frozen=True)
class Solved(Measure):
    """Which of the answers ``first`` to ``last`` to a posed prompt are right: a word for each, such as ``RIGHT``.

    Answers are drawn at a ``temperature`` from the ``top_p`` of the probability, end at a text of ``stop``, and have
    at most ``max_tokens``. An answer depends on what the model sees, the ``seed`` and its number alone. ``judge`` is
    the role of the model that says which are right, where none of the verifiers of this machine does.
    """

    first: int
    last: int
    temperature: float = 0.7
    top_p: float = 1.0
    max_tokens: int = 512
    stop: tuple[str, ...] = ()
    seed: int = 42
    judge: str | None = None
    of_text: ClassVar[bool] = True

    @property
    def also(self) -> tuple[str, ...]:
        """The judge, where there is one."""
        return () if self.judge is None else (self.judge,)

    @property
    def draws(self) -> int:
        """Answers to each prompt."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Classified(Measure):
    """The logit that a sequence-classification head gives a label, by its name or number: one value for each row.

    The text is read without special tokens in chunks of 512, and the row's value is their mean, weighted by tokens.
    """

    label: str | int
    of_text: ClassVar[bool] = True


@dataclass(frozen=True)
class Text(Measure):
    """The text of a row, or of a part of it (``row``, ``instruction``, ``response``); needs no model.

    ``source`` is the input's own row, as JSON.
    """

    part: str = "row"
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Length(Measure):
    """Length of a part of the row, before any truncation; needs a tokenizer at most, never a forward pass.

    A ``thought`` and an ``answer`` are the two parts of a response with reasoning.
    """

    part: str = "response"  # or "thought", "answer", "instruction", with its input, or "row" in turns
    unit: str = "tokens"  # or "chars", "words", "steps", "turns": questions with their answer
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Column(Measure):
    """A column of the input file itself, such as ``source``."""

    name: str
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Labels(Measure):
    """The labels that each row has in a column of the input: a tuple of texts, each once, empty where it has none.

    ``of`` the ``labels`` it is all of them, by name.
    """

    column: str
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Number(Measure):
    """A number that each row has: under ``path``, which may be dotted, in the input or in the records of a ``file``.

    Records are joined ``by`` the column ``id`` of rows and records, or by their lines. ``FILE.parquet:METHOD`` are the
    scores of a method, and ``FILE.parquet:METHOD.DETAIL`` one of its details. Null or absent is ``no_value``, and what
    is not finite ``non_finite``.
    """

    path: str
    file: str | None = None
    by: str = "id"
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Leak(Measure):
    """What a ``report`` of ``instdiff decontaminate`` says of a row, 0 where it does not name the row.

    ``what``: ``hit`` is 1 for a row that overlaps an item; ``coverage`` and ``jaccard`` are of the item that it
    overlaps most; ``copy`` is 1 for a near copy of another row that stays.
    """

    what: str = "hit"
    report: str = ""
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Listed(Measure):
    """Whether the row is in a named list of rows, such as the warm-up subset."""

    name: str
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class TrainedOn(Listed):
    """Whether the row is one that the model of the role ``name`` was trained on.

    Where nobody has bound the roles of ``saves``, they are trained; the rows for that count in any case.
    """

    saves: Saves


@dataclass(frozen=True)
class Group(Measure):
    """A text that rows share which have one prompt; with ``near`` whatever its case, punctuation and blanks.

    Where ``column`` is named, its value stands for the prompt in the rows that have one.
    """

    column: str | None = None
    near: bool = False
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Fold(Measure):
    """The number of a row's fold, from 0."""

    split: Split
    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class CrossFitted(Measure):
    """Another measure, of each row by the model of its fold: the role names a model for each, as ``held/0``."""

    measure: Measure
    split: Split
    needs_model: ClassVar[bool] = False

    def parts(self, signal: Signal) -> tuple[Signal, ...]:
        """The columns of the folds, by their models."""
        return tuple(
            replace(signal, measure=self.measure, view=Folded(signal.view, self.split, k), model=f"{signal.model}/{k}")
            for k in range(self.split.folds.k)
        )


@dataclass(frozen=True)
class Neighbours(Measure):
    """The rows that stand before each row in a ``Demonstrated`` view: their numbers, nearest first, -1 for none.

    Of an ``Anchors`` view the ids of the anchors.
    """

    needs_model: ClassVar[bool] = False


@dataclass(frozen=True)
class Contends(Measure):
    """Whether a row is in a ``Contested`` view."""

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
class Side(View):
    """The prompted view of one side of a preference pair, ``chosen`` or ``rejected``; other rows are ``no_pair``.

    A pass has both sides at once, so that the prompt that they share is computed once.
    """

    name: str


@dataclass(frozen=True)
class Sides(View):
    """Both sides of each pair, side by side: two rows for each sample. Methods ask for a ``Side``."""


@dataclass(frozen=True)
class ResponseOnly(View):
    """The same response ids without the prompt.

    With ``context`` a start token stands before them, so that the first response token is scored as well: BOS where the
    tokenizer adds it, else what parts documents (``<|endoftext|>`` if there is one), never a token that opens a turn.
    """

    context: bool = True


@dataclass(frozen=True)
class WholeText(View):
    """Prompt and response, every token a target but the first; with ``end`` the end token of the last response too."""

    end: bool = False


@dataclass(frozen=True)
class Joint(View):
    """The published way: prompt and response are tokenised as one text, the boundary found by counting again.

    ``template`` names the published prompt; ``join`` stands between prompt and response. With ``alone`` the response
    is scored after that literal text instead of the prompt, cut to ``max_length - prompt tokens + slack`` so that both
    views score the same tokens; a slack of None is 1 where the tokenizer adds a start token, else 0. With ``limit``
    nothing is cut: a prompt or response longer than that many tokens makes the row ``too_long``.
    """

    template: str
    join: str = ""
    alone: str | None = None
    slack: int | None = 0
    limit: int | None = None


@dataclass(frozen=True)
class PromptOnly(View):
    """The prompt without a response; the tokens of the instruction and its input are marked."""


@dataclass(frozen=True)
class Posed(View):
    """The prompt alone, and what says whether an answer to it is right.

    ``verifier`` is ``math``, ``code``, ``exact``, ``judge``, or ``auto``, which goes by the row. The right answer
    stands in the column ``answer``; where none is named, in the one of that name, else it is the row's response.
    """

    verifier: str = "auto"
    answer: str | None = None


@dataclass(frozen=True)
class Words(View):
    """Plain text, as embedders take it: ``instruction`` (all of a user, with the input), ``response``, ``row`` (both).

    ``first`` is the first user turn with its input.
    """

    part: str = "instruction"


@dataclass(frozen=True)
class EachLabel(View):
    """The labels of a column, each once and by name, as text: as many rows as there are labels.

    Signals of it are ``of`` the ``labels``.
    """

    column: str


@dataclass(frozen=True)
class Asked(View):
    """A question about the row, from a file of prompts: ``prompt`` names the file, ``number`` the prompt in it.

    With ``turn`` it is about one question and its answer alone, counted from 0.
    """

    prompt: str
    number: int = 0
    turn: int | None = None


@dataclass(frozen=True)
class Noisy(View):
    """Another view with noise on its input embeddings (T-SHIRT, section 3).

    Uniform in +-``alpha`` / sqrt(n d), with n the tokens of the row's prompted view and d the embedding size. The noise
    of a response token depends on the row, ``seed``, ``draw`` and its place in the response, so that it is the same in
    every view that shows the response. A token before the row's text (BOS) gets none where ``view`` has no prompt.
    """

    view: View
    draw: int
    alpha: float = 5.0
    seed: int = 42


@dataclass(frozen=True)
class Demonstrated(View):
    """The prompted view after ``shots`` whole other rows as demonstrations (MIWV, eq. 6).

    ``retrieval`` chooses them: ``embedding`` (the nearest by cosine of the vectors ``by``), ``bm25`` or ``random``. The
    nearest stands last; where it is too long, the context loses its beginning. The nearest are found exactly, and
    ``approximate`` by an index; where nobody says which, an exact search that would take hours is refused.
    """

    by: Signal | None
    shots: int = 1
    retrieval: str = "embedding"
    approximate: bool | None = None
    seed: int = 42


@dataclass(frozen=True)
class Windowed(View):
    """The steps of a response, each after the prompt and ``k`` steps before it: a row for each step of a sample.

    A step is a sentence or a line, or with the ``unit`` ``paragraph`` what stands between empty lines. Where a
    ``share`` is given, it says how many of the steps before are shown, and not ``k``. Targets are the step's
    tokens. Steps of one turn do not show those of another otherwise than as its prompt.
    """

    k: int = 4
    unit: str = "sentence"
    share: float | None = None


@dataclass(frozen=True)
class Anchored(View):
    """Every row as the demonstration before each of ``count`` anchor rows (NUGGETS): ``count`` rows for each sample.

    Anchors are the rows nearest to the centres of ``count`` clusters of the vectors ``by``, cut to ``limit`` tokens.
    Targets are the anchor's response. Rows whose prompt alone is that long are no anchors; with ``long`` they are
    found like others and then left out, so that there are fewer. ``start`` and ``stop`` name a part of the anchors.
    """

    by: Signal
    count: int = 100
    limit: int = 200
    seed: int = 0
    long: bool = False
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class Anchors(View):
    """The anchor rows of the ``Anchored`` view with the same fields, alone: as many rows as there are anchors."""

    by: Signal
    count: int = 100
    limit: int = 200
    seed: int = 0
    long: bool = False


class Race(Protocol):
    """Decides which rows go on."""

    def signals(self) -> dict[str, Signal]:
        """The columns by which it decides."""

    def contenders(self, s: Signals) -> npt.NDArray[np.bool_]:
        """Per row whether it goes on."""


@dataclass(frozen=True)
class Contested(View):
    """Another view, but of those rows alone that go on by what earlier passes found of all."""

    view: View
    race: Race


@dataclass(frozen=True)
class Folded(View):
    """Another view, of the rows of one fold alone."""

    view: View
    split: Split
    fold: int


@dataclass(frozen=True)
class Signal:
    """One column: a measure of a view under a model role. ``model`` is a role, never a path.

    ``of`` is ``pool``, ``target`` for the rows that targeted methods match, or ``labels`` for those of a column. A row
    that lacks an ``optional`` one may have a score all the same.
    """

    measure: Measure
    view: View = Prompted()
    model: str = "base"
    of: str = "pool"
    optional: bool = False

    def needs(self) -> tuple[Signal, ...]:
        """Signals that must be there before this one's view can be rendered."""
        if isinstance(self.measure, CrossFitted):
            return self.measure.parts(self)
        if isinstance(self.view, Contested):
            asked = (signal for signal in self.view.race.signals().values() if signal.measure.needs_model)
            return (*asked, *replace(self, view=self.view.view).needs())
        by = getattr(self.view, "by", None)
        return () if by is None else (by,)
