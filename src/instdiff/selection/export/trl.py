"""TRL: a data file in the layout that learns what was scored, and a configuration for ``trl sft``."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from instdiff.data.write import write_jsonl
from instdiff.errors import ConfigError, did_you_mean
from instdiff.rendering.templates import ChatTemplate, Template, TextTemplate
from instdiff.selection.export.asked import Asked, Exported, write_config, write_jinja, write_laid
from instdiff.selection.export.axolotl import one_type
from instdiff.selection.export.layouts import (
    ALPACA,
    MESSAGES,
    PROMPT_COMPLETION,
    Layout,
    lay,
    learnt_turns,
    render_layout,
    several_turns,
)
from instdiff.selection.export.models import has_chat_template, local
from instdiff.selection.export.pairs import trl_pairs
from instdiff.selection.export.tokens import TRL, token_rows

MODEL = "MODEL"
"""Stands where no model is known."""


@dataclass(frozen=True)
class Plan:
    """What is written: a layout, or the tokens where it is None.

    ``exact`` says whether TRL learns the tokens that were scored; None where that could not be seen.
    """

    layout: Layout | None
    exact: bool | None


def trl(asked: Asked) -> Exported:
    """A data file, a configuration for ``trl sft``, and the command."""
    spec = _spec(asked)
    asked = asked if spec == asked.spec else replace(asked, template=spec)
    layout = asked.layout_of_text
    assert layout is not None
    if asked.pool.pairs.any():
        return trl_pairs(asked, layout)
    plan = _plan(asked, layout)
    done = _write_tokens(asked, layout) if plan.layout is None else _write_rows(asked, plan.layout)
    config, values = asked.free(f"{asked.name}.trl.yaml"), _config(asked, plan, done)
    write_config(asked, config, values)
    notes = _notes(asked, plan)
    if values["model_name_or_path"] == MODEL:
        notes.append(f"put your model in the place of {MODEL} in {config}, or give --model")
    command = f"trl sft --config {config.as_posix()}"
    say = "\n".join([f"train with:\n\n{command}", *(["", *notes] if notes else [])])
    return replace(done, files=[*done.files, config], say=say, command=command, extra={"config": values})


# ── which layout ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _spec(asked: Asked) -> str:
    """The template: what is asked for or was scored with, else what the model has."""
    if asked.spec and not (asked.spec == "chat" and not asked.template and _bare(asked)):
        return asked.spec
    if asked.layout == "text":
        return "alpaca"
    if not _bare(asked):
        return "chat"
    asked.log(f"{asked.model} has no chat template, so prompts are written as text with template 'alpaca'")
    return "alpaca"


def _bare(asked: Asked) -> bool:
    return asked.model is not None and has_chat_template(asked.model) is False


def _plan(asked: Asked, layout: Template) -> Plan:
    layouts = _layouts(asked, layout)
    if isinstance(layout, ChatTemplate) and asked.tokenizer:
        _check_template(asked, layout)
    if asked.layout not in ("auto", *layouts):
        if isinstance(layout, TextTemplate):
            raise ConfigError(
                f"template '{asked.spec}' makes texts, layout '{asked.layout}' has messages; give --template chat"
            )
        raise ConfigError(f"TRL has no layout '{asked.layout}'{did_you_mean(asked.layout, ['auto', *layouts])}")
    if asked.layout != "auto":
        found = layouts[asked.layout]
        return Plan(found, _check(asked, found, layout) if found else True)
    if isinstance(layout, TextTemplate):
        if asked.tokenizer and several_turns(asked.pool):
            return Plan(None, True)
        return Plan(layouts["text"], _check(asked, layouts["text"], layout))
    one = all(learnt_turns(s, asked.pool.turns) == [len(s.messages) - 1] for s in asked.pool.samples())
    if not asked.tokenizer:
        return Plan(PROMPT_COMPLETION if one else MESSAGES, None)
    for fit in [PROMPT_COMPLETION, MESSAGES] if one else [MESSAGES]:
        if _check(asked, fit, layout):
            return Plan(fit, True)
    return Plan(None, True)


def _check_template(asked: Asked, layout: ChatTemplate) -> None:
    assert asked.tokenizer is not None
    if not (layout.jinja or asked.tokenizer.hf.chat_template):
        raise ConfigError(f"{asked.model} has no chat template; give --template alpaca, plain, direct or a .jinja file")


def _layouts(asked: Asked, layout: Template) -> dict[str, Layout | None]:
    """By the names that ``--layout`` has for them; None are the tokens."""
    if isinstance(layout, ChatTemplate):
        return {"messages": MESSAGES, "prompt_completion": PROMPT_COMPLETION, "tokens": None}
    text = Layout("text", render_layout(layout, asked.pool.turns), "prompt_completion", {})
    return {"text": text, "prompt_completion": text, "tokens": None}


def _check(asked: Asked, fit: Layout | None, layout: Template) -> bool | None:
    """Whether TRL learns of the first rows what was scored; None where the tokenizer is not here to see it."""
    if asked.tokenizer is None or fit is None:
        return None
    values = any(sample.template_values for sample in asked.pool.samples())
    if fit.name != "text" and (values or not one_type(asked.pool)):
        return False  # a column of objects has the keys of all rows
    jinja = layout.jinja if isinstance(layout, ChatTemplate) else None
    return TRL(asked.tokenizer, jinja, asked.limit).differing(asked.pool, fit, layout) == 0


# ── the files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_rows(asked: Asked, layout: Layout) -> Exported:
    laid = lay(asked.pool, [layout], beside=None if layout is MESSAGES else ALPACA)
    path = asked.free(f"{asked.name}.jsonl")
    rows = write_laid(asked, laid, path, may_lack=layout.name == "text")
    return Exported([path], rows, layout.name, "", None, laid.changed, len(laid.unfit))


def _write_tokens(asked: Asked, layout: Template) -> Exported:
    if asked.tokenizer is None:
        raise ConfigError(
            f"layout 'tokens' needs the tokenizer of the model to be trained ({asked.model or 'none is named'}) on "
            "this machine; give --model"
        )
    path, left = asked.free(f"{asked.name}.jsonl"), Counter[str]()
    laid = lay(asked.pool, [MESSAGES, ALPACA])
    laid = lay(asked.pool, [MESSAGES]) if laid.changed or laid.unfit else laid
    rows = token_rows(asked.pool, asked.tokenizer, layout, asked.max_length, laid, left)
    write_jsonl(path, (json.dumps(row, ensure_ascii=False) for row in rows))
    if left.total() == len(asked.pool):
        path.unlink()
        raise ConfigError(f"none of the {len(asked.pool):,} rows has a token to learn ({_reasons(left)})")
    if left:
        asked.log(f"{left.total():,} rows have no token to learn and are left out: {_reasons(left)}")
    if laid.changed:
        asked.log(f"{laid.changed:,} rows say the same but are divided otherwise in their messages")
    return Exported([path], len(asked.pool) - left.total(), "tokens", "", None, laid.changed, left.total())


def _reasons(left: Counter[str]) -> str:
    return ", ".join(f"{word} {count:,}" for word, count in left.most_common())


def _config(asked: Asked, plan: Plan, done: Exported) -> dict[str, Any]:
    where, revision = local(asked.model or MODEL)
    values: dict[str, Any] = {"model_name_or_path": where, **({"model_revision": revision} if revision else {})}
    values["datasets"] = [{"path": "json", "data_files": done.files[0].absolute().as_posix(), "split": "train"}]
    values |= {"max_length": asked.limit, **asked.keys_of_recipe("trl")}
    if (jinja := write_jinja(asked)) is not None:
        values["chat_template_path"] = jinja.absolute().as_posix()
    if plan.layout is MESSAGES and plan.exact:
        values["assistant_only_loss"] = True
    values["output_dir"] = (asked.output / f"{asked.name}-sft").absolute().as_posix()
    return values


def _notes(asked: Asked, plan: Plan) -> list[str]:
    notes = []
    if plan.layout is None and asked.layout == "auto":
        notes.append(
            "TRL would learn other tokens of these rows than were scored, so the file has the tokens themselves"
        )
    if plan.exact is None:
        notes.append(
            "the tokenizer is not on this machine, so it is unknown whether TRL learns the tokens that were scored; "
            "give --model with its folder"
        )
    elif not plan.exact:
        notes.append("TRL learns other tokens of the first rows than were scored; --layout tokens has those")
    if plan.layout is MESSAGES and not plan.exact:
        notes.append(
            "TRL learns prompts too from messages; with --assistant_only_loss true the responses alone, where it knows "
            "which tokens of the model's chat template they are"
        )
    elif plan.layout and several_turns(asked.pool):
        notes.append("of several turns TRL learns the last response only; the others are its prompt")
    return notes
