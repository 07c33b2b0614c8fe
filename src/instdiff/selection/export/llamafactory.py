"""LLaMA-Factory: a data file, its entry in the list of data sets, and the lines of the training YAML."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import yaml

from instdiff.data import Pool, Sample, Turns
from instdiff.rendering.templates import ChatTemplate, TextTemplate, thought_in
from instdiff.selection.export.asked import Asked, Exported, find_layout, write_laid
from instdiff.selection.export.layouts import (
    ALPACA,
    SHAREGPT,
    SPEAKERS,
    Laid,
    Layout,
    Pieces,
    lay,
    learnt_turns,
    render_layout,
    several_turns,
    sharegpt,
    shown,
)
from instdiff.selection.export.llamafactory_templates import WRITTEN, Encoder, match_template
from instdiff.selection.export.pairs import TAGS, llamafactory_pairs, put_entry
from instdiff.selection.export.tokens import IGNORED, LOOKED_AT, count_differing


def llamafactory(asked: Asked) -> Exported:
    """A data file and its entry in ``dataset_info.json``, where other entries stay as they are.

    Raises a ConfigError where the name is another data set's there, a StoreError where the file is no such list.
    """
    if asked.pool.pairs.any():
        return llamafactory_pairs(asked, partial(_template_keys, learnt=Learnt(True, 0, 0)))
    learnt, text = _learnt(asked.pool), _text_layout(asked)
    if text is not None and asked.layout in ("auto", "text"):  # one response in each row
        learnt = Learnt(False, several_turns(asked.pool), learnt.none)
    laid = _lay(asked, learnt, text)
    path, info = asked.free(f"{asked.name}.jsonl"), asked.free("dataset_info.json")
    entry = _entry(laid, path.name)
    put_entry(info, asked.name, entry, trial=True)
    rows = write_laid(asked, laid, path, may_lack=laid.layout.name == "text" or learnt.none > 0)
    _say_what_differs(asked, learnt, rows, laid)
    values: dict[str, Any] = {
        "dataset_dir": asked.output.absolute().as_posix(),
        "dataset": asked.name,
        **_template_keys(asked, laid, learnt),
    }
    values |= {"cutoff_len": asked.limit, **({"mask_history": True} if learnt.last else {})}
    values |= asked.keys_of_recipe("llamafactory")
    put_entry(info, asked.name, entry)
    lines = asked.remarks + yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    stanza = json.dumps({asked.name: entry}, indent=2, ensure_ascii=False)
    say = f"in {info}:\n\n{stanza}\n\nin the training YAML:\n\n{lines}"
    extra = {"stanza": entry, "training": values}
    return Exported([path, info], rows, laid.layout.name, say, None, laid.changed, len(laid.unfit), extra)


# ── which turns are learnt ────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Learnt:
    """What the rows need of a trainer that learns all turns of a row, or with ``last`` the last one.

    ``split`` rows must become several, each of which ends at a turn that is learnt. ``none`` have nothing to learn.
    """

    last: bool
    split: int
    none: int


def _learnt(pool: Pool) -> Learnt:
    every = last = True
    cut = none = 0
    for sample in pool.samples():
        turns, answers = learnt_turns(sample, pool.turns), _answers(sample)
        none += not turns
        if turns:
            every &= turns == answers
            ends = turns == [len(sample.messages) - 1]
            last &= ends
            cut += not ends
    return Learnt(not every, 0 if every or last else cut, none)


def _answers(sample: Sample) -> list[int]:
    return [at for at, message in enumerate(sample.messages) if message.role == "assistant"]


def _pieces(how: Turns, learnt: Learnt) -> Pieces:
    def pieces(sample: Sample) -> list[Sample]:
        turns, seen = learnt_turns(sample, how), shown(sample, how)
        if not learnt.split:
            return [seen] if turns else []
        ends = [replace(seen, messages=seen.messages[: at + 1]) for at in turns]
        return [sample] if ends == [sample] else ends

    return pieces


# ── the file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _lay(asked: Asked, learnt: Learnt, text: Layout | None) -> Laid:
    layouts = {"auto": (ALPACA, SHAREGPT), "alpaca": (ALPACA,), "sharegpt": (SHAREGPT,)}
    if text is not None:
        layouts |= {"auto": (text,), "text": (text,)}
    named = find_layout(asked, layouts, "LLaMA-Factory")
    return lay(asked.pool, named, pieces=_pieces(asked.pool.turns, learnt))


def _text_layout(asked: Asked) -> Layout | None:
    """Prompts and responses as a text template writes them, with the tokens that open and close a row."""
    layout, tokenizer = asked.layout_of_text, asked.tokenizer
    if not isinstance(layout, TextTemplate) or tokenizer is None:
        return None
    start = "" if tokenizer.bos is None else str(tokenizer.hf.bos_token)
    end = str(tokenizer.hf.eos_token or "")
    return Layout("text", render_layout(layout, asked.pool.turns, start, end), "prompt_completion", {})


def _entry(laid: Laid, file_name: str) -> dict[str, Any]:
    if laid.layout.name == "text":
        return {"file_name": file_name, "columns": {"prompt": "prompt", "response": "completion"}}
    if laid.layout is ALPACA:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {name: name for name in ("system", "history") if name in laid.columns}
        return {"file_name": file_name, "columns": columns}
    columns = {"messages": "conversations"} | ({"tools": "tools"} if "tools" in laid.columns else {})
    return {"file_name": file_name, "formatting": "sharegpt", "columns": columns, "tags": TAGS}


# ── the template ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _template_keys(asked: Asked, laid: Laid, learnt: Learnt) -> dict[str, Any]:
    """``template``, and ``enable_thinking`` where answers without a thought must not learn an empty one."""
    if laid.layout.name == "text":
        return {"template": "empty"}
    layout, tokenizer = asked.layout_of_text, asked.tokenizer
    if isinstance(layout, TextTemplate):
        asked.log(
            f"no template of LLaMA-Factory writes what '{asked.spec}' writes, and {_unknown(asked)}; give --model"
        )
        return {}
    jinja = layout.jinja if layout else None
    if tokenizer is None or not (jinja or tokenizer.hf.chat_template):
        asked.log(f"template: is not set, since {_unknown(asked)}; set the name that LLaMA-Factory has for your model")
        return {}
    found = match_template(tokenizer, jinja, system=any(sample.system for sample in asked.pool.samples()))
    if found is None:
        asked.log(
            "template: is not set, since LLaMA-Factory has none that is known to write what this chat template writes; "
            "register one there and set its name, or export for TRL"
        )
        return {}
    if not found.exact:
        asked.log(f"template: {found.name} is the nearest that LLaMA-Factory has, but writes another text; {_EXACT}")
    more = _thinking(asked) if WRITTEN[found.name].thinks else {}
    if found.exact:
        _compare(asked, Encoder(WRITTEN[found.name], tokenizer, "enable_thinking" not in more), learnt)
    return {"template": found.name, **more}


def _compare(asked: Asked, encoder: Encoder, learnt: Learnt) -> None:
    """Count the first rows of which it learns other tokens than were scored; not those with tools, or in pieces."""
    few = asked.pool.part(0, LOOKED_AT)
    plain = [at for at, sample in enumerate(few.samples()) if not sample.tools and _in_turn(sample)]
    if learnt.split or not plain:
        return
    few, layout = few.take(plain), asked.layout_of_text or ChatTemplate()
    theirs = [_labelled(encoder, shown(sample, few.turns), learnt.last) for sample in few.samples()]
    compared = (few, encoder.tokenizer, layout, asked.limit, theirs)
    if count := count_differing(*compared, blank=True):
        asked.log(
            f"LLaMA-Factory learns other tokens of {count:,} of the first {len(few):,} rows than were scored; {_EXACT}"
        )
    elif count_differing(*compared):
        asked.log("LLaMA-Factory learns the line end after each answer too, which was not scored")


def _labelled(encoder: Encoder, sample: Sample, last: bool) -> tuple[list[int], list[int]]:
    roles = {spoken: role for role, spoken in SPEAKERS.items()}
    said = [(roles.get(turn["from"], "assistant"), turn["value"]) for turn in sharegpt(sample)["conversations"]]
    pairs = encoder.pairs(said)
    ids, labels = list[int](), list[int]()
    for at, (source, target) in enumerate(pairs):
        ids += source + target
        learns = not last or at + 1 == len(pairs)
        labels += [IGNORED] * len(source) + (target if learns else [IGNORED] * len(target))
    return ids, labels


def _thinking(asked: Asked) -> dict[str, Any]:
    pool = asked.pool
    thoughtful = sum(any(_thinks(pool.turns, sample)) for sample in pool.samples())
    if 0 < thoughtful < len(pool):
        asked.log(f"{len(pool) - thoughtful:,} rows have no thought: LLaMA-Factory learns an empty one there; {_EXACT}")
    return {} if thoughtful else {"enable_thinking": False}


_EXACT = "the tokens that were scored are those of `--format trl`"


def _unknown(asked: Asked) -> str:
    if asked.model is None:
        return "the model is not known"
    return f"the tokenizer of {asked.model} is not on this machine or has no chat template"


def _thinks(how: Turns, sample: Sample) -> Iterator[bool]:
    for message in shown(sample, how).messages:
        yield message.role == "assistant" and (bool(message.reasoning) or thought_in(message.content) is not None)


# ── what it reads otherwise ───────────────────────────────────────────────────────────────────────────────────────────


def _say_what_differs(asked: Asked, learnt: Learnt, rows: int, laid: Laid) -> None:
    pool, how = asked.pool, asked.pool.turns
    if learnt.split and laid.layout.name == "text":
        asked.log(f"{learnt.split:,} rows have several responses: the {len(pool):,} rows become {rows:,}, of one each")
    elif learnt.split:
        asked.log(
            f"{learnt.split:,} rows have turns that are not learnt, which LLaMA-Factory cannot say of a turn: the "
            f"{len(pool):,} rows become {rows:,}, each ends at one that is, and `mask_history: true` learns that alone"
        )
    parts = (part for sample in pool.samples() for part in laid.pieces(sample))
    if laid.layout.name != "text" and (skipped := sum(not _in_turn(part) for part in parts)):
        asked.log(
            f"{skipped:,} rows are in the file, but LLaMA-Factory leaves them out: "
            "their questions and answers do not alternate to the end"
        )
    halved = sum(any(_halved(sample, how)) for sample in pool.samples())
    if laid.layout.name != "text" and halved:
        asked.log(f"in {halved:,} rows LLaMA-Factory learns thoughts that are context here; {_EXACT}")


def _halved(sample: Sample, how: Turns) -> Iterator[bool]:
    for at in learnt_turns(sample, how):
        yield how.reasoning == "context" and any(_thinks(how, replace(sample, messages=(sample.messages[at],))))


def _in_turn(sample: Sample) -> bool:
    """Whether it keeps a row: after the system turn, question and answer must alternate to the end."""
    messages = sample.messages[1:] if sample.messages[0].role == "system" else sample.messages
    sides = {"user": 0, "tool": 0, "assistant": 1}
    alternate = all(sides.get(message.role) == at % 2 for at, message in enumerate(messages))
    return len(messages) % 2 == 0 and alternate and not any(m.content and m.calls for m in messages)
