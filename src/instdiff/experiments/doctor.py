"""What is to be known of data and a model before anything is spent, and what to do about it."""

from __future__ import annotations

import html
import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from instdiff.core import Log, ModelRef, Prompted, Settings
from instdiff.core.display import html_table, in_one_line, span
from instdiff.core.progress import Progress
from instdiff.data import Pool
from instdiff.data.formats import FORMATS
from instdiff.data.load import as_pool, load
from instdiff.errors import InstDiffError
from instdiff.methods import METHODS
from instdiff.rendering.survey import Survey, survey
from instdiff.rendering.templates import ROLE_TEMPLATES, Kind, TextTemplate, template, text_segments, why_nothing
from instdiff.scoring.fit import FEW, WEAK, Fit, first_choice, fits, with_trained
from instdiff.scoring.given import given_models, given_settings, given_store
from instdiff.scoring.models import template_name
from instdiff.selection.diff import GROUPS, MOST_GROUPS
from instdiff.store import Store

if TYPE_CHECKING:
    from instdiff.engine.speed import Machine
    from instdiff.scoring.strength import Strength
    from instdiff.scoring.workbench import Workbench

MOST_ROWS = 50_000
"""Rows of a larger pool that are looked at, drawn at random."""
SAMPLE_ROWS = 300
"""Rows on which costs are counted."""
SHOWN_ROWS, FINDINGS = 3, 5
TEXTS = ("judge", "embedder")
"""Roles of models that read no tokens."""


@dataclass(frozen=True)
class Example:
    """A row as a model sees it: its text in stretches, each with whether it is learnt, or in ``why`` why nothing is.

    ``tokens`` are all and the learnt ones, None without a tokenizer. ``side`` is that of a preference pair.
    """

    row: int
    runs: tuple[tuple[bool, str], ...]
    why: str | None = None
    tokens: tuple[int, int] | None = None
    side: str | None = None


@dataclass(frozen=True)
class Lengths:
    """Tokens under the model's template. ``response`` is the median of those that are learnt, ``longest`` a whole row.

    ``truncated`` rows are longer than ``limit``, which is never above the ``context`` of the model; ``one_token`` rows
    teach one token. ``silent`` are rows without a token to learn, by the reason.
    """

    response: float
    longest: int
    truncated: int
    limit: int
    context: int | None
    one_token: int
    silent: dict[str, int]


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it."""

    says: str
    do: str


@dataclass(frozen=True)
class Diagnosis:
    """All of it. ``read`` are the lines that reading the data told; ``unread`` are columns that are not read.

    ``survey`` is of all rows, or of as many drawn at random. What needs a model is None without one, and ``strength``
    where the model is too slow for a trial. ``findings`` are at most five, the weightiest first; ``begin`` is the
    method to begin with, None where no row can be scored.
    """

    origin: str
    rows: int
    rejected: int
    format: str
    read: tuple[str, ...]
    unread: tuple[str, ...]
    survey: Survey
    examples: tuple[Example, ...]
    model: str | None
    template: str
    lengths: Lengths | None
    strength: Strength | None
    methods: tuple[Fit, ...]
    findings: tuple[Finding, ...]
    begin: str | None

    def __repr__(self) -> str:
        lines = [f"  {at}. {one.says}: {one.do}" for at, one in enumerate(self.findings, 1)]
        by = f" with {self.model}" if self.model else ""
        return "\n".join([f"<Diagnosis of {self.rows:,} rows from {in_one_line(self.origin)}{by}", *lines]) + ">"

    def _repr_html_(self) -> str:
        """What a notebook shows: the findings."""
        head = html.escape(repr(self).splitlines()[0].removeprefix("<"))
        return f"<p>{head}</p>{html_table(['finding', 'what to do'], [[f.says, f.do] for f in self.findings])}"

    def to_dict(self) -> dict[str, Any]:
        """As plain values; numbers that are none are null."""
        facts = asdict(self)
        if self.strength is not None:
            facts["strength"] = {
                key: None if math.isnan(value) else value for key, value in asdict(self.strength).items()
            }
        return facts


def doctor(
    data: Any,
    model: Any = None,
    *,
    settings: Settings | None = None,
    store: Any = None,
    seed: int = 42,
    log: Log | None = None,
    progress: Progress | None = None,
    **over: Any,
) -> Diagnosis:
    """Look at data, and at a model's way with them, before anything is spent.

    ``data`` are rows, or what ``load`` reads. ``model`` is the base, or a mapping from roles to models; the rest is as
    of ``score``. Without a model nothing is loaded but the rows. With one a few rows are scored and kept in the store.

    Raises:
        ConfigError: a value has a type that is not taken.
        DataError: the data cannot be read, or have no rows.
        EngineError: the model cannot be loaded or run.
    """
    read = list[str]()
    pool = as_pool(data) if isinstance(data, Pool) or hasattr(data, "to_pool") else load(data, log=read.append)
    kept = given_store(store)
    models, how = given_models(model, kept), given_settings(settings, **over)
    return diagnose(pool, read, models, how, kept, seed=seed, log=log, progress=progress)


def diagnose(
    pool: Pool,
    read: Sequence[str],
    models: Mapping[str, ModelRef],
    settings: Settings,
    store: Store,
    *,
    seed: int = 42,
    log: Log | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """The same for rows that are read, and models by role."""
    rng = np.random.default_rng(seed)
    seen = pool if len(pool) <= MOST_ROWS else pool.take(np.sort(rng.choice(len(pool), MOST_ROWS, replace=False)))
    at = np.sort(rng.choice(len(seen), min(SHOWN_ROWS, len(seen)), replace=False))
    told, role = survey(seen), next((role for role in ("base", *models) if role in models and role not in TEXTS), None)
    layout = template_name(role or "base", models.get(role or ""), settings)
    chat, lengths, strength, pairs = layout == "chat", None, None, bool(seen.pairs.any())
    if role is None:
        found = list(fits(models, len(pool), None, chat, pairs, told.traces > 0))
        examples = _examples(seen.take(at), layout)
    else:
        from instdiff.engine.speed import Machine
        from instdiff.scoring.scorer import workbench
        from instdiff.scoring.strength import try_model

        bench = workbench(seen, {}, models, settings, store, log=_once(log))
        lengths, examples = _lengths(bench, role), _rendered(bench, role, at)
        machine, chat = Machine(bench.device), bool(bench.tokenizer(role).chat_template)
        strength = try_model(bench, role, machine, seed, progress)
        misled = strength.misled if strength is not None else None
        known = list(fits(models, len(pool), misled, chat, pairs, told.traces > 0))
        found = _with_costs(known, bench, role, machine, len(pool))
    silent = told.silent if lengths is None else lengths.silent
    begin = first_choice(found) if sum(silent.values()) < len(seen) else None
    untold = chat and role not in (None, *ROLE_TEMPLATES) and "*" not in settings.templates
    named = None if role is None else str(models[role])
    about = pool.origin, len(pool), len(pool.rejected), pool.format, tuple(read), _unread(seen)
    findings = _findings(pool, told, lengths, strength, untold, next((one for one in found if one.name == begin), None))
    return Diagnosis(*about, told, examples, named, layout, lengths, strength, tuple(found), findings, begin)


def _once(log: Log | None) -> Log:
    """Tells each line once: the same rows are rendered for several ends."""
    told = set[str]()

    def tell(line: str) -> None:
        if log is not None and line not in told:
            told.add(line)
            log(line)

    return tell


def _with_costs(found: list[Fit], bench: Workbench, role: str, machine: Machine, rows: int) -> list[Fit]:
    """The same with what they cost on so many rows, counted on a few of the bench; what the store has is not free.

    Rows that the ``role`` cannot score cost nothing.
    """
    from instdiff.experiments.cost import Unmade
    from instdiff.scoring.cost import StageCost, count_passes, stage_of_passes
    from instdiff.scoring.workbench import Workbench

    scorable, out = bench.render(role, Prompted()).scorable, []
    if not len(scorable):
        return found
    at = scorable[np.linspace(0, len(scorable) - 1, min(SAMPLE_ROWS, len(scorable))).astype(np.int64)]
    times = rows / len(bench.pool) * len(scorable) / len(at)
    methods = {fit.name: METHODS[fit.name]() for fit in found if fit.against is None and fit.passes}
    with tempfile.TemporaryDirectory() as folder:
        roles, blank = with_trained(methods.values(), bench.models), Store(folder, memo=bench.store.memo)
        mine = Workbench(bench.pool.take(at), roles, bench.settings, blank, log=lambda line: None)
        mine.sources |= bench.sources
        for trained in mine.models.keys() - bench.models.keys():
            base = bench.source("base")
            mine.sources[trained] = Unmade(base.ref, base.folder, number=len(mine.sources))
        for fit in found:
            if method := methods.get(fit.name):
                try:
                    passes = count_passes(mine, {fit.name: method})
                    lines = stage_of_passes("", mine, passes, machine, times=times)
                except InstDiffError as error:
                    fit = replace(fit, against=str(error))
                else:
                    total = sum(lines, StageCost("", "", count=0))
                    fit = replace(fit, tokens=total.tokens, calls=total.calls, seconds=total.seconds)
            out.append(fit)
    return out


# ── what is shown ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _unread(pool: Pool) -> tuple[str, ...]:
    """Columns of the rows that their format does not read; none where a map says which it reads."""
    keys = list(dict.fromkeys(key for row in pool.head(MOST_GROUPS) for key in row))
    forms = [FORMATS.get(name) for name in pool.format.split("+")]
    used = {key for form in forms if form is not None for key in form.keys_used(keys)}
    return tuple(key for key in keys if key not in used) if all(forms) else ()


def _examples(pool: Pool, name: str) -> tuple[Example, ...]:
    """Rows under a text template; a chat template is the tokenizer's, and there is none."""
    layout = template(name)
    if not isinstance(layout, TextTemplate):
        return ()
    out = []
    for row, sample in zip(pool.rows.tolist(), pool.samples(), strict=True):
        for side in ("chosen", "rejected") if sample.rejected else (None,):
            shown = sample.side(side) if side else sample
            parts = text_segments(shown, layout, pool.turns)
            runs = tuple((part.kind is Kind.RESPONSE, part.text) for part in parts if part.text)
            why = why_nothing(shown, pool.targets)
            out.append(Example(row, () if why else runs, why, side=side))
    return tuple(out)


def _rendered(bench: Workbench, role: str, at: Any) -> tuple[Example, ...]:
    from instdiff.selection.shown import show

    shown = show(bench.pool.take(at), bench.tokenizer(role), bench.template(role), bench.settings.max_length, bench.log)
    return tuple(Example(one.row, tuple(one.runs), one.why, (len(one.ids), sum(one.target)), one.side) for one in shown)


def _lengths(bench: Workbench, role: str) -> Lengths:
    renderer, rows = bench.renderer(role), bench.render(role, Prompted()).tokens
    context, limit = bench.tokenizer(role).max_length, bench.settings.max_length
    limit, said = min(limit, context or limit), renderer.lengths("response")
    whole = renderer.tokenised.parts(bench.template(role), limit).counts()
    return Lengths(
        response=float(np.median(said)),
        longest=int(whole.max(initial=0)),
        truncated=int(rows.truncated.sum()),
        limit=limit,
        context=context,
        one_token=int((said == 1).sum()),
        silent=dict(Counter(str(word) for word in rows.reason if word is not None).most_common()),
    )


# ── what is to be done about it ───────────────────────────────────────────────────────────────────────────────────────

SHARE, LONG_S = 0.01, 4 * 3600.0
"""Of the rows, from which a flaw is worth a finding; and seconds of scoring."""


def _findings(
    pool: Pool,
    told: Survey,
    lengths: Lengths | None,
    strength: Strength | None,
    untold: bool,
    begin: Fit | None,
) -> tuple[Finding, ...]:
    """The weightiest first. A weight is the share of the rows that it is about, more where they are lost."""
    found = [*_of_rows(pool, told, told.rows), *_of_tokens(told, lengths, told.rows), *_of_model(strength, untold)]
    found += _of_traces(told)
    if begin is not None and (begin.seconds or 0) > LONG_S:
        says = f"`{begin.name}` takes about {span(begin.seconds or 0)} on this machine for all rows"
        found.append((0.5, says, "take a smaller model, which ranks much like a large one, a GPU, or --shards"))
    if len(pool) < FEW:
        found.append((0.02, f"{len(pool):,} rows are few", f"a tenth is {len(pool) // 10:,}; take a larger --budget"))
    if not found:
        first = begin.name if begin is not None else "longest"
        found = [(0.0, "nothing stands in the way", f"begin with `{first}`, and compare it with random rows")]
    return tuple(Finding(says, do) for _, says, do in sorted(found, key=lambda one: -one[0])[:FINDINGS])


def _share(count: int, of: int) -> str:
    return f"{count:,} of {of:,} rows ({count / max(1, of):.1%})"


def _of_rows(pool: Pool, told: Survey, seen: int) -> Iterator[tuple[float, str, str]]:
    if pool.rejected:
        of = len(pool) + len(pool.rejected)
        first = f"fix or drop them; the first is {pool.rejected[0]}"
        yield 3 * len(pool.rejected) / of, f"{_share(len(pool.rejected), of)} cannot be read", first
    if (copies := told.row_copies + told.near_row_copies) >= SHARE * seen:
        do = "rank by `then` with `cosine_filter` second, which leaves copies out; likelihood cannot tell them apart"
        yield copies / seen, f"{_share(copies, seen)} are copies or near copies of an earlier row", do
    if (asked := told.prompt_copies + told.near_prompt_copies - copies) >= 5 * SHARE * seen:
        do = "hold out whole prompts, not rows, where you split the data"
        yield asked / seen / 4, f"{_share(asked, seen)} ask what an earlier row asks, and answer otherwise", do
    scripts = {name: count for name, count in told.scripts.items() if name != "no letters" and count >= SHARE * seen}
    if len(scripts) > 1:
        do = "see that the model knows them all; --group-by COLUMN takes the same share of each"
        names = ", ".join(f"{name} {count / seen:.1%}" for name, count in scripts.items())
        yield 1 - max(scripts.values()) / seen, f"rows are written in several scripts: {names}", do
    column = next((name for name in GROUPS if name in (pool.head(1) or [{}])[0]), None)
    if column is not None:
        do = f"--group-by {column} takes the same share of each; a score of one kind can empty a source"
        yield 0.03, f"there is a column '{column}'", do


def _of_tokens(told: Survey, lengths: Lengths | None, seen: int) -> Iterator[tuple[float, str, str]]:
    silent = told.silent if lengths is None else lengths.silent
    if silent:
        words = ", ".join(f"{count:,} {word}" for word, count in silent.items())
        do = "see one with `instdiff render --row N`; no method scores them, and docs/quickstart.md has the words"
        do = "--targets all+calls learns calls; what is marked as not learnt stays so" if "no_target" in silent else do
        yield 3 * sum(silent.values()) / seen, f"{_share(sum(silent.values()), seen)} teach nothing: {words}", do
    short, unit = (told.one_word, "word") if lengths is None else (lengths.one_token, "token")
    if short >= 5 * SHARE * seen:
        do = "IFD leaves out a single token; rank labels by `perplexity`, or --group-by their task"
        yield short / seen, f"{_share(short, seen)} teach a single {unit}", do
    if lengths is not None and lengths.truncated >= SHARE * seen:
        do = f"give --max-length {lengths.longest + 1}, the longest row"
        if lengths.longest > (lengths.context or lengths.longest):
            do = f"the model's context of {lengths.context:,} tokens is the limit: shorten them, or take another model"
        yield lengths.truncated / seen, f"{_share(lengths.truncated, seen)} are cut at {lengths.limit:,} tokens", do


def _of_traces(told: Survey) -> Iterator[tuple[float, str, str]]:
    """What to take for rows with thoughts, by whether their problems have several."""
    if told.traces < SHARE * told.rows or not told.traces:
        return
    says = f"{_share(told.traces, told.rows)} have a reasoning trace"
    if told.answered_again:
        says += f", {told.answered_again:,} of them to a problem that an earlier one solves"
        yield 0.3, says, "choose among the traces of a problem: --method rsr,lark,lalp and --per prompt 1"
    else:
        do = "`rsr`, `lark` and `lalp` compare several of a problem; between problems take `hes` or `longest`"
        yield 0.04, f"{says}, one to each problem", do


def _of_model(strength: Strength | None, untold: bool) -> Iterator[tuple[float, str, str]]:
    if strength is not None and strength.misled >= WEAK / 2:
        weak = strength.misled >= WEAK
        says = f"the prompt does not help the model in {strength.misled:.0%} of {strength.rows} rows (IFD of 1 or more)"
        do = "IFD leaves these out; a stronger model keeps more"
        do = "see that --template is the model's, and take a stronger model, or a method without one" if weak else do
        yield 2 * strength.misled if weak else strength.misled / 4, says, do
    if untold:
        do = "add --template chat where the model is tuned for chats; a base model is read with the default"
        yield 0.05, "the tokenizer has a chat template, and no template is named", do
