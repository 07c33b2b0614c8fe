"""``doctor``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from instdiff.cli.app import command
from instdiff.cli.common import data_options, load_pool
from instdiff.cli.console import Console, table
from instdiff.cli.render import LEFT, RIGHT, mark_learnt
from instdiff.core.display import span

if TYPE_CHECKING:
    from instdiff.config.commands import DoctorConfig
    from instdiff.experiments.doctor import Diagnosis, Example

INDENT = 2
CONTEXT, LEARNT = (80, 160), (240, 80)
"""Characters of the beginning and the end of a stretch that are shown."""


@command(
    "doctor",
    "commands.DoctorConfig",
    "config data! model limit format map targets reasoning system template template_date max_length dtype device store "
    "output seed quiet json",
    "Examples:\n"
    "  instdiff doctor --data my.jsonl\n"
    "  instdiff doctor --data my.jsonl --model Qwen/Qwen2.5-0.5B --output doctor.json",
)
def doctor(settings: DoctorConfig, console: Console) -> None:
    """Look at data and model before anything is spent."""
    from instdiff.core.files import write_record
    from instdiff.experiments.doctor import diagnose
    from instdiff.scoring.models import bind, settings_of
    from instdiff.store import Store

    read = list[str]()
    pool = load_pool(settings, console, None, read.append)
    console.stage("looking at the rows")
    how = settings_of(settings), Store(settings.store)
    found = diagnose(pool, read, bind(settings.model), *how, seed=settings.seed, log=console.log, progress=console)
    following = _next(settings, found)
    facts = {**found.to_dict(), "next": following}
    if settings.output:
        write_record(settings.output, facts)
    console.result(facts, "\n\n".join(_sections(found)))
    if following:
        console.next(*following)


def _next(settings: DoctorConfig, found: Diagnosis) -> list[str]:
    """The command that goes on from here; none where the rows cannot be read again, or nobody can score them."""
    from instdiff.scoring.fit import FEW

    rows = data_options(settings)
    models = [word for role, where in settings.model.items() for word in ("--model", f"{role}={where}")]
    if not rows or (found.begin is None and not models):
        return []
    if found.begin == "longest":
        budget = "10%" if found.rows >= FEW else "50%"
        return ["select", *rows, "--method", "longest", "--budget", budget, "--output", "selected.jsonl"]
    keys = {"template", "max_length"} | ({"dtype", "device", "store"} if found.begin else set())
    given = settings.model_dump(include=keys, exclude_defaults=True)
    more = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    if found.begin is None:
        return ["render", *rows, *models, *more]
    return ["score", *rows, *models, *more, "--method", found.begin, "--output", "scores.parquet"]


def _sections(found: Diagnosis) -> Iterator[str]:
    """The diagnosis for people, the verdict last."""
    unread = [f"columns that are not read: {', '.join(found.unread)}"] if found.unread else []
    yield _section("data", [*found.read, *unread])
    yield "rows\n" + table(["", "rows", "share"], list(_counts(found)), INDENT)
    scripts = ", ".join(f"{name} {count:,}" for name, count in found.survey.scripts.items())
    yield _section("languages, by the script of their letters", [scripts])
    if found.examples:
        title = f"what the model sees, and between {LEFT} and {RIGHT} learns; template {found.template}"
        yield _section(title, [line for one in found.examples for line in _example(one)][:-1])
    if found.model:
        yield _section(f"model {found.model}", list(_model(found)))
    yield from _methods(found)
    lines = [line for at, one in enumerate(found.findings, 1) for line in (f"{at}. {one.says}", f"   -> {one.do}")]
    yield _section("verdict", lines)


def _section(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"{' ' * INDENT}{line}".rstrip() for line in lines)])


def _counts(found: Diagnosis) -> Iterator[list[Any]]:
    told, lengths = found.survey, found.lengths
    counts = {
        "copies of an earlier row": told.row_copies,
        "near copies of an earlier row": told.near_row_copies,
        "prompts of an earlier row": told.prompt_copies,
        "near copies of an earlier prompt": told.near_prompt_copies,
        "without a prompt": told.no_prompt,
        "nothing to learn": sum((told.silent if lengths is None else lengths.silent).values()),
        **({"one word to learn": told.one_word} if lengths is None else {"one token to learn": lengths.one_token}),
        **({} if lengths is None else {f"cut at {lengths.limit:,} tokens": lengths.truncated}),
    }
    yield ["rejected", found.rejected, f"{found.rejected / max(1, found.rows + found.rejected):.1%}"]
    for name, count in counts.items():
        yield [name, count, f"{count / max(1, told.rows):.1%}"]
    if told.rows < found.rows:
        yield [f"looked at, of {found.rows:,}", told.rows, f"{told.rows / found.rows:.1%}"]


def _example(one: Example) -> list[str]:
    head = f"row {one.row:,}{f', {one.side} side' if one.side else ''}"
    if one.why is not None:
        return [f"{head}: {one.why}", ""]
    counts = "" if one.tokens is None else f": {one.tokens[0]:,} tokens, {one.tokens[1]:,} learnt"
    text = mark_learnt((learnt, _clip(part, *(LEARNT if learnt else CONTEXT))) for learnt, part in one.runs)
    return [f"{head}{counts}", *(f"  {line}" for line in text.splitlines() if line.strip()), ""]


def _clip(text: str, head: int, tail: int) -> str:
    return text if len(text) <= head + tail + 10 else f"{text[:head]} … {text[-tail:]}"


def _model(found: Diagnosis) -> Iterator[str]:
    if found.lengths is not None:
        yield f"median response {found.lengths.response:,.0f} tokens, longest row {found.lengths.longest:,}"
    if (tried := found.strength) is None:
        yield "too slow on this machine for a trial of a few seconds"
    elif tried.rows:
        yield f"IFD of 1 or more in {tried.misled:.0%} of {tried.rows} random rows: there the prompt does not help"
        yield f"mean NLL per token {tried.nll:.2f} with the prompt, {tried.nll_alone:.2f} without it"


def _methods(found: Diagnosis) -> Iterator[str]:
    rows: list[list[Any]] = []
    against: dict[str, list[str]] = {}
    for fit in found.methods:
        if fit.against is not None:
            against.setdefault(fit.against, []).append(fit.name)
            continue
        time = "-" if fit.seconds is None else span(fit.seconds)
        time += f", {fit.calls:,} calls" if fit.calls else ""
        rows.append([fit.name, fit.passes, f"{time}, a training" if fit.trains else time, fit.because])
    yield f"methods that make sense; time is for {found.rows:,} rows on this machine\n" + table(
        ["method", "passes", "time", "goes by"], rows, INDENT
    )
    if against:
        lines = [f"{', '.join(names)}: {why}" for why, names in against.items()]
        yield _section("methods that do not, and why", lines)
