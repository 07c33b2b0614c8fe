"""Preference pairs for trainers of DPO: a prompt and two answers, as messages or as texts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from instdiff.core.files import read_json, write_json, writing
from instdiff.data import Message, Pool, Sample, Turns
from instdiff.errors import ConfigError, StoreError, did_you_mean
from instdiff.methods import SelectiveDPO
from instdiff.rendering.prompts import prompt_groups
from instdiff.rendering.templates import ChatTemplate, Template, TextTemplate
from instdiff.scoring.folds import rows_outside
from instdiff.selection.export.asked import Asked, Exported, write_config, write_jinja, write_laid
from instdiff.selection.export.layouts import (
    SPEAKERS,
    Laid,
    Layout,
    Record,
    answer_text,
    beside,
    lay,
    pair_of_messages,
    parts_of_pair,
    render_layout,
    shown_sides,
    turn_text,
    turns_of,
)
from instdiff.selection.export.models import local
from instdiff.selection.export.tokens import TRL
from instdiff.training.trained_rows import TRAINED_ROWS, text_of

SIDES = ("chosen", "rejected")
BETA = 0.1
"""That of the DPO paper, where nobody says another."""


Half = str | tuple[str, SelectiveDPO] | None
"""The role of a model of ``selective_dpo``, and the method where its parameters are not the default ones."""


def rows_outside_half(pool: Pool, half: Half) -> Pool:
    """The pairs that the model of a half is trained on; all without one.

    Raises a ConfigError for another role.
    """
    if half is None:
        return pool
    role, method = (half, SelectiveDPO()) if isinstance(half, str) else half
    found = re.fullmatch(rf"{re.escape(method.dpo)}/([0-9]+)(?:\.[0-9]+)?/([01])", role)
    if found is None:
        raise ConfigError(
            f"--half '{role}' is no role of selective_dpo; write {method.dpo}/SEED/HALF, such as {method.dpo}/0/1"
        )
    return rows_outside(pool, method.split(int(found[1])))[int(found[2])]


def with_trained_rows(exported: Exported, pool: Pool, half: Half, folder: Path) -> Exported:
    """An export with the list of its rows, which goes beside the model of a half that is trained on them."""
    if half is None:
        return exported
    role = half if isinstance(half, str) else half[0]
    with writing(path := folder / TRAINED_ROWS) as aside:
        aside.write_text(text_of(pool.ids, prompt_groups(pool, near=True), [None] * len(pool)), encoding="utf-8")
    say = f"{exported.say}\n\nput {path} beside the model that is trained on these pairs: --model {role}=FOLDER"
    return replace(exported, files=[*exported.files, path], say=say)


def only_pairs(asked: Asked) -> Asked:
    """The pairs among the rows; the log counts the others."""
    if others := int((~asked.pool.pairs).sum()):
        asked.log(f"{others:,} rows are no preference pairs and are left out")
    return replace(asked, pool=asked.pool.take(np.flatnonzero(asked.pool.pairs)))


# ── the shapes ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _pair_of_texts(
    layout: TextTemplate, how: Turns, start: str = "", end: str = ""
) -> Callable[[Sample], Record | None]:
    """``prompt``, ``chosen`` and ``rejected`` as texts under a template."""
    make = render_layout(layout, how, start, end)

    def both(sample: Sample) -> Record | None:
        chosen, rejected = (make(sample.side(name)) for name in SIDES)
        if chosen is None or rejected is None or chosen["prompt"] != rejected["prompt"]:
            return None
        return {"prompt": chosen["prompt"], "chosen": chosen["completion"], "rejected": rejected["completion"]}

    return both


def _pair_of_turns(sample: Sample, how: Turns, keys: tuple[str, str], names: dict[str, str]) -> Record | None:
    """``conversations``, and one turn on each side, for trainers that take no more; None for what has more."""
    prompt, *answers = parts_of_pair(shown_sides(sample, how))
    if any(len(turns) != 1 for turns in answers) or any(m.calls for turns in (prompt, *answers) for m in turns):
        return None

    def turn(m: Message) -> Record:
        said = answer_text(m) if m.role == "assistant" else turn_text(m)
        return dict(zip(keys, (names[m.role], said), strict=True))

    sides = {name: turn(turns[0]) for name, turns in zip(SIDES, answers, strict=True)}
    return {"conversations": list(map(turn, prompt)), **sides, **beside(sample)}


def _text_layout(asked: Asked) -> TextTemplate | None:
    """The template under which pairs are written as texts; None where they are messages."""
    wanted, layout = asked.layout, asked.layout_of_text
    if wanted not in ("auto", "messages", "text"):
        raise ConfigError(f"pairs have no layout '{wanted}'{did_you_mean(wanted, ('auto', 'messages', 'text'))}")
    if wanted == "text" and not isinstance(layout, TextTemplate):
        raise ConfigError("layout 'text' needs a text template; give --template alpaca, plain or a file")
    return layout if isinstance(layout, TextTemplate) and wanted != "messages" else None


def _write(asked: Asked, layout: Layout) -> tuple[Path, int, Laid]:
    laid, path = lay(asked.pool, [layout]), asked.free(f"{asked.name}.jsonl")
    if len(laid.unfit) == len(asked.pool):
        raise ConfigError(f"none of the {len(asked.pool):,} pairs has one answer on each side, as the trainer wants it")
    if laid.unfit:
        asked.log(f"{len(laid.unfit):,} pairs are left out: an answer is missing, or has several turns or calls")
    fit = asked.pool.take(np.setdiff1d(np.arange(len(asked.pool)), laid.unfit))
    rows = write_laid(replace(asked, pool=fit), replace(laid, unfit=()), path)
    return path, rows, laid


def _exported(
    files: list[Path], rows: int, laid: Laid, say: str, extra: dict[str, Any], command: str | None
) -> Exported:
    return Exported(files, rows, laid.layout.name, say, command, laid.changed, len(laid.unfit), extra)


# ── TRL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def trl_pairs(asked: Asked, template: Template) -> Exported:
    """A data file, a configuration for ``trl dpo``, and the command."""
    asked, text = only_pairs(asked), _text_layout(asked)
    make = _pair_of_texts(text, asked.pool.turns) if text else partial(pair_of_messages, how=asked.pool.turns)
    path, rows, laid = _write(
        asked, Layout("text" if text else "messages", make, "preference", {"chat_template_kwargs": {}})
    )
    where, revision = local(asked.model or "MODEL")
    values: dict[str, Any] = {"model_name_or_path": where, **({"model_revision": revision} if revision else {})}
    values["datasets"] = [{"path": "json", "data_files": path.absolute().as_posix(), "split": "train"}]
    values |= {"max_length": asked.limit, "beta": BETA}
    values["output_dir"] = (asked.output / f"{asked.name}-dpo").absolute().as_posix()
    config, jinja = asked.free(f"{asked.name}.trl.yaml"), None if text else write_jinja(asked)
    write_config(replace(asked, recipe=None), config, values)
    notes = _notes(asked, text, template, jinja)
    command = f"trl dpo --config {config.as_posix()}"
    say = "\n".join([f"train with:\n\n{command}", *(["", *notes] if notes else [])])
    files = [path, *([jinja] if jinja else []), config]
    return _exported(files, rows, laid, say, {"config": values}, command)


def _notes(asked: Asked, text: TextTemplate | None, template: Template, jinja: Path | None) -> list[str]:
    notes = [f"`trl dpo` takes no template file: make {jinja.as_posix()} the tokenizer's"] if jinja else []
    if asked.model is None:
        notes.append("put your model in the place of MODEL, or give --model")
    if asked.tokenizer is None:
        return [*notes, "the tokenizer is not on this machine, so it is unknown whether TRL learns what was scored"]
    differing = [_differing(asked, side, text, template) for side in SIDES]
    if None in differing or any(differing):
        notes.append("TRL makes other tokens of some of the first pairs than were scored")
    return notes


def _differing(asked: Asked, side: str, text: TextTemplate | None, template: Template) -> int | None:
    """Of how many of the first pairs TRL learns other tokens on a side; None where it cannot learn them."""
    assert asked.tokenizer is not None
    pool = asked.pool.side(side)
    if text:
        one = Layout("text", render_layout(text, pool.turns), "prompt_completion", {})
    else:

        def make(sample: Sample) -> Record:
            at = max(at for at, m in enumerate(sample.messages) if m.role == "user") + 1
            turns = turns_of(sample.messages)
            return {"prompt": turns[:at], "completion": turns[at:], **beside(sample)}

        one = Layout("prompt_completion", make, "prompt_completion", {})
    jinja = template.jinja if isinstance(template, ChatTemplate) else None
    return TRL(asked.tokenizer, jinja, asked.limit).differing(pool, one, template)


# ── LLaMA-Factory ─────────────────────────────────────────────────────────────────────────────────────────────────────

TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
TAGS |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}


def llamafactory_pairs(asked: Asked, keys_of: Callable[[Asked, Laid], dict[str, Any]]) -> Exported:
    """A data file, its entry in ``dataset_info.json``, and lines for DPO; ``keys_of`` names the template."""
    asked, text = only_pairs(asked), _text_layout(asked)
    if text and asked.tokenizer:
        hf = asked.tokenizer.hf
        start, end = "" if asked.tokenizer.bos is None else str(hf.bos_token), str(hf.eos_token or "")
        layout = Layout("text", _pair_of_texts(text, asked.pool.turns, start, end), "preference", {})
        entry: dict[str, Any] = {"columns": {name: name for name in ("prompt", *SIDES)}}
    else:
        make = partial(_pair_of_turns, how=asked.pool.turns, keys=("from", "value"), names=SPEAKERS)
        layout = Layout("sharegpt", make, "preference", {"tools": ""})
        columns = {"messages": "conversations", **{side: side for side in SIDES}}
        entry = {"formatting": "sharegpt", "columns": columns, "tags": TAGS}
    info = asked.free("dataset_info.json")
    put_entry(info, asked.name, {"file_name": f"{asked.name}.jsonl"}, trial=True)
    path, rows, laid = _write(asked, layout)
    entry["columns"] |= {"tools": "tools"} if "tools" in laid.columns else {}
    entry = {"file_name": path.name, "ranking": True, **entry}
    put_entry(info, asked.name, entry)
    values: dict[str, Any] = {"stage": "dpo", "pref_loss": "sigmoid", "pref_beta": BETA}
    values |= {"dataset_dir": asked.output.absolute().as_posix(), "dataset": asked.name}
    values |= {**keys_of(replace(asked, pool=asked.pool.side("chosen")), laid), "cutoff_len": asked.limit}
    lines = yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
    stanza = json.dumps({asked.name: entry}, indent=2, ensure_ascii=False)
    say = f"in {info}:\n\n{stanza}\n\nin the training YAML:\n\n{lines}"
    return _exported([path, info], rows, laid, say, {"stanza": entry, "training": values}, None)


def put_entry(info: Path, name: str, entry: dict[str, Any], *, trial: bool = False) -> None:
    """Add a data set to LLaMA-Factory's list, where other entries stay as they are; a ``trial`` writes nothing.

    Raises a ConfigError where the name is another data set's, a StoreError where the file is no such list.
    """
    known = read_json(info) if info.exists() else {}
    if not isinstance(known, dict):
        raise StoreError(f"'{info}' is no list of LLaMA-Factory data sets: an object of names is expected; correct it")
    old = known.get(name)
    if old is not None and (not isinstance(old, dict) or old.get("file_name") != entry["file_name"]):
        raise ConfigError(f"'{info}' has another data set '{name}' already; give --name")
    if not trial:
        write_json(info, {**known, name: entry})


# ── axolotl ───────────────────────────────────────────────────────────────────────────────────────────────────────────

_OWN = {"user": "user", "assistant": "assistant", "system": "system", "tool": "tool"}


def axolotl_pairs(asked: Asked) -> Exported:
    """A data file, and a YAML file with ``rl: dpo`` and its ``datasets:`` block."""
    asked, text = only_pairs(asked), _text_layout(asked)
    if text:
        layout = Layout("text", _pair_of_texts(text, asked.pool.turns), "preference", {})
        kind: dict[str, Any] = {"type": {f"field_{name}": name for name in ("prompt", *SIDES)}}
        kind["type"] |= {f"{name}_format": f"{{{name}}}" for name in ("prompt", *SIDES)}
    else:
        make = partial(_pair_of_turns, how=asked.pool.turns, keys=("role", "content"), names=_OWN)
        layout = Layout("messages", make, "preference", {})
        kind = {"type": "chat_template.default", "field_messages": "conversations"}
        kind |= {f"field_{name}": name for name in SIDES}
        kind["message_property_mappings"] = {"role": "role", "content": "content"}
    path, rows, laid = _write(asked, layout)
    jinja = None if text else write_jinja(asked)
    entry = {"path": path.absolute().as_posix(), "ds_type": "json", "split": "train", **kind}
    values: dict[str, Any] = {"rl": "dpo", "rl_beta": BETA, "datasets": [entry], "sequence_len": asked.limit}
    if not text:
        values["chat_template"] = "jinja" if jinja else "tokenizer_default"
        values |= {"chat_template_jinja": jinja.absolute().as_posix()} if jinja else {}
    block = asked.free(f"{asked.name}.axolotl.yaml")
    told = write_config(replace(asked, recipe=None), block, values)
    say = f"in the axolotl configuration (also in {block}):\n\n{told.rstrip()}"
    return _exported(
        [path, block, *([jinja] if jinja else [])], rows, laid, say, {"stanza": entry, "config": values}, None
    )
