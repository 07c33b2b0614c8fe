"""``render``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from instdiff.cli.app import command
from instdiff.cli.common import load_pool
from instdiff.cli.console import Console
from instdiff.core.display import visible, visible_json

if TYPE_CHECKING:
    from instdiff.config.commands import RenderConfig
    from instdiff.data import Pool
    from instdiff.engine.tokenizer import HFTokenizer
    from instdiff.rendering.templates import Template
    from instdiff.selection.shown import Shown

STYLES = {"context": "dim", "response": "green", "frame": "cyan"}
LEFT, RIGHT = "⟦", "⟧"


@command(
    "render",
    "commands.RenderConfig",
    "config data! model! limit row format map targets reasoning system template template_date max_length quiet json",
    "Examples:\n"
    "  instdiff render --data my.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --template chat\n"
    "  instdiff render --data my.jsonl --model Qwen/Qwen2.5-0.5B --row 17 --json",
)
def render(settings: RenderConfig, console: Console) -> None:
    """Show what a model sees and what it learns. Loads a tokenizer, no weights."""
    from instdiff.selection.shown import show

    tokenizer, layout = _tokenizer(settings, console)
    pool = _rows(settings, console)
    coloured = sys.stdout.isatty() and not console.as_json
    if not console.as_json:
        legend = "dim: context; green: response; cyan: its beginning and end, learnt too"
        console.log(legend if coloured else f"what is learnt stands between {LEFT} and {RIGHT}")
    for shown in show(pool, tokenizer, layout, settings.max_length, console.log):
        if console.as_json:
            print(visible_json(shown.to_dict()))
        else:
            _print_row(shown, coloured)


def _tokenizer(settings: RenderConfig, console: Console) -> tuple[HFTokenizer, Template]:
    from instdiff.engine.sources import find_tokenizer, tell_own_template
    from instdiff.errors import ConfigError
    from instdiff.rendering.templates import ROLE_TEMPLATES, template
    from instdiff.scoring.models import bind, settings_of, template_name

    if len(settings.model) != 1:
        named = f"; {len(settings.model)} are named" if settings.model else ""
        raise ConfigError(f"rows are rendered for one model; give --model WHERE once{named}")
    ((role, model),) = bind(settings.model).items()
    run = settings_of(settings)
    layout = template(template_name(role, model, run))
    tokenizer = find_tokenizer(model, settings.template_date)
    if role not in ROLE_TEMPLATES:
        tell_own_template(model, run, tokenizer, console.log)
    return tokenizer, layout


def _rows(settings: RenderConfig, console: Console) -> Pool:
    """The rows that are asked for by name, or the first ones."""
    from instdiff.selection.explain import place_of

    if not settings.row:
        return load_pool(settings, console, None)
    known = all(row.isdecimal() for row in settings.row)
    limit = 1 + max(map(int, settings.row)) if known else None
    if "limit" not in settings.model_fields_set:
        settings = settings.model_copy(update={"limit": limit})
    pool = load_pool(settings, console, None)
    return pool.take([place_of(pool, row) for row in settings.row])


def _print_row(shown: Shown, coloured: bool) -> None:
    from instdiff.selection.explain import WORDS

    side = f", {shown.side} side" if shown.side else ""
    head = f"row {shown.row:,}, id {shown.id[:12]}{side}"
    if shown.why is not None:
        print(f"{head}: {shown.why}, {WORDS.get(shown.why, 'nothing is learnt')}\n")
        return
    cut = ", cut at the length limit" if shown.truncated else ""
    print(f"{head}: {len(shown.ids):,} tokens, {sum(shown.target):,} learnt{cut}")
    if coloured:
        _print_coloured(shown)
    else:
        print(mark_learnt(shown.runs))
    print()


def mark_learnt(runs: Iterable[tuple[bool, str]]) -> str:
    """A text with brackets around what is learnt."""
    return "".join(f"{LEFT}{visible(text)}{RIGHT}" if learnt else visible(text) for learnt, text in runs)


def _print_coloured(shown: Shown) -> None:
    from rich.console import Console as Rich
    from rich.text import Text

    text = Text()
    for part, piece in shown.parts:
        text.append(visible(piece), STYLES[part.value])
    Rich(file=sys.stdout, highlight=False).print(text)
