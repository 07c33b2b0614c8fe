"""axolotl: messages with its chat template strategy, or Alpaca rows under a text template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from instdiff.data import Message, Pool, Sample, Turns
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import ChatTemplate, learns_answer, learns_calls, thought_in
from instdiff.selection.export.asked import Asked, Exported, find_layout, write_config, write_jinja, write_laid
from instdiff.selection.export.axolotl_labels import Strategy
from instdiff.selection.export.layouts import PLAIN_ALPACA, Laid, Layout, lay, shown, with_tool_objects
from instdiff.selection.export.models import RENDER_ERRORS, has_chat_template
from instdiff.selection.export.pairs import axolotl_pairs
from instdiff.selection.export.tokens import LOOKED_AT, count_differing

_KEYS = ("reasoning_content", "tool_calls", "tool_call_id", "name")


def axolotl(asked: Asked) -> Exported:
    """A data file, and a YAML file with its ``datasets:`` block and what goes with it."""
    if asked.pool.pairs.any():
        return axolotl_pairs(asked)
    pool, chat = asked.pool, _chat_layout(asked.pool)
    layouts = {"auto": (PLAIN_ALPACA, chat), "alpaca": (PLAIN_ALPACA,), "messages": (chat,)}
    named = find_layout(asked, layouts, "axolotl")
    if asked.layout == "auto" and _under_chat(asked):
        named = (chat,)
    laid = lay(pool, named, pieces=_pieces(asked))
    path, block = asked.free(f"{asked.name}.jsonl"), asked.free(f"{asked.name}.axolotl.yaml")
    rows = write_laid(asked, laid, path)
    values: dict[str, Any] = {"datasets": [_entry(laid, path.absolute().as_posix(), pool)]}
    if laid.layout is chat:
        values |= _template_keys(asked)
        _say_what_differs(asked)
        _compare(asked, laid, values.get("eot_tokens", []))
    values |= {"sequence_len": asked.limit, **asked.keys_of_recipe("axolotl")}
    text = write_config(asked, block, values)
    say = f"in the axolotl configuration (also in {block}):\n\n{text.rstrip()}"
    extra = {"stanza": values["datasets"][0], "config": values}
    return Exported([path, block], rows, laid.layout.name, say, None, laid.changed, extra=extra)


def _under_chat(asked: Asked) -> bool:
    """Whether rows are rendered by a chat template: that of the run, else the model's own."""
    if asked.layout_of_text is not None:
        return isinstance(asked.layout_of_text, ChatTemplate)
    return asked.model is not None and has_chat_template(asked.model) is True


def _chat_layout(pool: Pool) -> Layout:
    make = partial(with_tool_objects, targets=pool.targets, text=not one_type(pool))
    return Layout("messages", make, "messages", {})


def one_type(pool: Pool) -> bool:
    """Whether a column can hold the arguments of all calls, and gives back what was put in."""
    arguments = [call.arguments for sample in pool.samples() for m in sample.messages for call in m.calls]
    try:
        return bool(pa.array(arguments).to_pylist() == arguments)
    except (pa.ArrowException, OverflowError):
        return False


def _entry(laid: Laid, path: str, pool: Pool) -> dict[str, Any]:
    entry: dict[str, Any] = {"path": path, "ds_type": "json", "split": "train"}
    if laid.layout is PLAIN_ALPACA:
        return entry | {"type": "alpaca"}
    turns = [turn for row in laid.rows(pool) for turn in row["messages"]]
    there = [key for key in _KEYS if any(key in turn for turn in turns)]
    entry |= {
        "type": "chat_template",
        "field_messages": "messages",
        "message_property_mappings": {key: key for key in ("role", "content", *there)},
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    entry |= {"message_field_training": "train"} if any("train" in turn for turn in turns) else {}
    return entry | ({"field_tools": "tools"} if "tools" in laid.columns else {})


def _template_keys(asked: Asked) -> dict[str, Any]:
    """The template, and the tokens that end a turn where they are not the tokenizer's end token."""
    jinja = write_jinja(asked)
    keys: dict[str, Any] = {"chat_template": "jinja" if jinja else "tokenizer_default"}
    keys |= {"chat_template_jinja": jinja.absolute().as_posix()} if jinja else {}
    ends = _ends(asked)
    return keys | ({"eot_tokens": ends} if ends else {})


def _ends(asked: Asked) -> list[str]:
    tokenizer, layout = asked.tokenizer, _chat_template(asked)
    if tokenizer is None or not (layout.jinja or tokenizer.hf.chat_template):
        return []
    rows = training_rows(asked.pool.part(0, LOOKED_AT), tokenizer, layout, asked.max_length)
    last = {int(rows.ids[at][-1]) for at in range(len(rows)) if len(rows.ids[at]) and not rows.truncated[at]}
    ends = sorted((last & tokenizer.specials) - {tokenizer.eos})
    return [str(token) for token in tokenizer.hf.convert_ids_to_tokens(ends)]


def _compare(asked: Asked, laid: Laid, ends: list[str]) -> None:
    """Count the first rows of which axolotl learns other tokens than were scored."""
    layout, tokenizer = _chat_template(asked), asked.tokenizer
    if tokenizer is None or not (layout.jinja or tokenizer.hf.chat_template):
        return
    few = asked.pool.part(0, LOOKED_AT)
    known = frozenset(tokenizer.hf.convert_tokens_to_ids(ends)) | (
        {tokenizer.eos} if tokenizer.eos is not None else set()
    )
    strategy = Strategy(tokenizer, layout.jinja, known)
    theirs = [strategy.learn(row["messages"], row.get("tools")) for row in laid.rows(few)]
    compared = (few, tokenizer, layout, asked.limit, theirs)
    if count := count_differing(*compared, blank=True):
        asked.log(
            f"axolotl learns other tokens of {count:,} of the first {len(few):,} rows than were scored; "
            "the tokens that were scored are those of `--format trl`"
        )
    elif count_differing(*compared):
        asked.log("axolotl learns white space around answers too, which was not scored")


def _chat_template(asked: Asked) -> ChatTemplate:
    return asked.layout_of_text if isinstance(asked.layout_of_text, ChatTemplate) else ChatTemplate()


def _pieces(asked: Asked) -> Any:
    how, folds = asked.pool.turns, asked.pool.turns.system == "fold" and _refuses_system(asked)

    def pieces(sample: Sample) -> list[Sample]:
        seen = shown(sample, how)
        return [fold(seen) if folds else seen]

    return pieces


def _refuses_system(asked: Asked) -> bool:
    layout, tokenizer = asked.layout_of_text, asked.tokenizer
    if tokenizer is None or not isinstance(layout, ChatTemplate):
        return False
    said = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    try:
        tokenizer.render(said, jinja=layout.jinja)
    except RENDER_ERRORS:
        return True
    return False


def fold(sample: Sample) -> Sample:
    """The system text before the first user turn's, two line ends between."""
    turns = [m for m in sample.messages if m.role != "system"]
    at = next((at for at, m in enumerate(turns) if m.role == "user"), None)
    if at is None or not sample.system:
        return sample
    turns[at] = replace(turns[at], content=f"{sample.system}\n\n{turns[at].content}")
    return replace(sample, messages=tuple(turns))


def _say_what_differs(asked: Asked) -> None:
    """Count the rows of which axolotl learns another part: it learns a turn whole, or not at all."""
    how = asked.pool.turns
    both = sum(any(_halved(sample, how)) for sample in asked.pool.samples())
    if both:
        asked.log(
            f"axolotl learns a turn whole or not at all: in {both:,} rows it learns a call or a thought that is "
            "context here; --targets all+calls and --reasoning learn score what it learns"
        )
    if any(sample.template_values for sample in asked.pool.samples()):
        asked.log("axolotl has one chat_template_kwargs for all rows; those of the rows are in the file, but not read")


def _halved(sample: Sample, how: Turns) -> Iterator[bool]:
    for at, turn in enumerate(sample.messages):
        answer, calls = (learns(sample.messages, at, how.targets) for learns in (learns_answer, learns_calls))
        yield answer and bool(turn.calls) and not calls
        yield (answer or calls) and how.reasoning == "context" and _thinks(turn)


def _thinks(turn: Message) -> bool:
    return bool(turn.reasoning) or thought_in(turn.content) is not None
