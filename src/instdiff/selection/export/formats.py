"""One function for each trainer: write its data file, and say what to paste."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from instdiff.core import Log
from instdiff.core.files import read_json, write_json, writing
from instdiff.data import Pool
from instdiff.data.write import write_jsonl
from instdiff.errors import ConfigError, StoreError, did_you_mean
from instdiff.rendering.templates import TextTemplate, template
from instdiff.selection.export.layouts import (
    ALPACA,
    MESSAGES,
    PLAIN_ALPACA,
    PROMPT_COMPLETION,
    SHAREGPT,
    Laid,
    Layout,
    has_calls,
    lay,
    out_of_turn,
    render_layout,
    several_turns,
    with_tool_objects,
)
from instdiff.selection.export.models import has_chat_template, local
from instdiff.selection.export.tabular import write_parquet

MODEL = "MODEL"
"""Stands where no model is known."""


@dataclass(frozen=True)
class Asked:
    """What an export is asked for: the selected rows in order, their record, the folder, the data set's name, a layout.

    ``template`` is for TRL: ``chat``, or a text template; None decides by the model. ``model`` is the one to be
    trained; None where it is not known. ``protected`` files must not be written over. The log is told what changes.
    """

    pool: Pool
    record: dict[str, Any] | None
    output: Path
    name: str
    layout: str = "auto"
    template: str | None = None
    model: str | None = None
    protected: Sequence[Path] = ()
    log: Log = print

    def free(self, name: str) -> Path:
        """A path in the output folder; a ConfigError where it is the input's."""
        path = self.output / name
        if any(path.resolve() == other.resolve() for other in self.protected):
            raise ConfigError(f"'{path}' is what is exported; give another --output or --name")
        return path


@dataclass(frozen=True)
class Exported:
    """What was written, and how many rows of which layout.

    ``say`` is what to do with it, for people; ``command`` trains on it, where there is one. ``changed`` rows have the
    same text, but divided otherwise; ``left_out`` rows are those that the layout cannot hold.
    """

    files: list[Path]
    rows: int
    layout: str
    say: str
    command: str | None = None
    changed: int = 0
    left_out: int = 0
    extra: dict[str, Any] = field(default_factory=dict)


def _find_layout(asked: Asked, layouts: Mapping[str, Sequence[Layout]], trainer: str) -> Sequence[Layout]:
    if asked.layout not in layouts:
        raise ConfigError(f"{trainer} has no layout '{asked.layout}'{did_you_mean(asked.layout, layouts)}")
    return layouts[asked.layout]


def _write(asked: Asked, laid: Laid, path: Path, *, may_lack: bool = False) -> int:
    """Write the data file; says what the layout changes or cannot hold."""
    pool, layout = asked.pool, laid.layout
    if laid.unfit and not may_lack:
        row = int(pool.rows[laid.unfit[0]])
        raise ConfigError(
            f"layout '{layout.name}' cannot hold {len(laid.unfit):,} of {len(pool):,} rows, the first is row {row} "
            "(tools, a missing response or turns of one side in a row); give --layout auto"
        )
    if len(laid.unfit) == len(pool):
        raise ConfigError(f"none of the {len(pool):,} rows has a response to learn")
    if laid.unfit:
        asked.log(f"{len(laid.unfit):,} rows without a response to learn are left out")
    if laid.changed:
        asked.log(
            f"{laid.changed:,} rows say the same but are divided otherwise in layout '{layout.name}' (an input after "
            "its instruction, a call as text), so instdiff gives them other ids when it reads the file"
        )
    write_jsonl(path, (json.dumps(row, ensure_ascii=False) for row in laid.rows(pool)))
    return len(pool) - len(laid.unfit)


# ── LLaMA-Factory ─────────────────────────────────────────────────────────────────────────────────────────────────────

TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}


def llamafactory(asked: Asked) -> Exported:
    """A data file and its entry in ``dataset_info.json``, where other entries stay as they are.

    Raises a ConfigError where the name is another data set's there, a StoreError where the file is no such list.
    """
    layouts = {"auto": (ALPACA, SHAREGPT), "alpaca": (ALPACA,), "sharegpt": (SHAREGPT,)}
    laid = lay(asked.pool, _find_layout(asked, layouts, "LLaMA-Factory"))
    path, info = asked.free(f"{asked.name}.jsonl"), asked.free("dataset_info.json")
    entry = _entry(laid, path.name)
    known = _read_dataset_info(info)
    old = known.get(asked.name)
    if old is not None and (not isinstance(old, dict) or old.get("file_name") != path.name):
        raise ConfigError(f"'{info}' has another data set '{asked.name}' already; give --name")
    rows = _write(asked, laid, path)
    if skipped := out_of_turn(asked.pool):
        asked.log(
            f"{skipped:,} rows are in the file, but LLaMA-Factory leaves them out: "
            "their questions and answers do not alternate to the end"
        )
    write_json(info, {**known, asked.name: entry})
    history = "\nmask_history: true" if asked.pool.targets == "last" and several_turns(asked.pool) else ""
    say = (
        f"in {info}:\n\n{json.dumps({asked.name: entry}, indent=2, ensure_ascii=False)}\n\nin the training YAML:\n\n"
        f"dataset_dir: {asked.output}\ndataset: {asked.name}{history}"
    )
    return Exported([path, info], rows, laid.layout.name, say, None, laid.changed, extra={"stanza": entry})


def _entry(laid: Laid, file_name: str) -> dict[str, Any]:
    if laid.layout is ALPACA:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        columns |= {name: name for name in ("system", "history") if name in laid.columns}
        return {"file_name": file_name, "columns": columns}
    columns = {"messages": "conversations"} | ({"tools": "tools"} if "tools" in laid.columns else {})
    return {"file_name": file_name, "formatting": "sharegpt", "columns": columns, "tags": TAGS}


def _read_dataset_info(info: Path) -> dict[str, Any]:
    if not info.exists():
        return {}
    known = read_json(info)
    if not isinstance(known, dict):
        raise StoreError(f"'{info}' is no list of LLaMA-Factory data sets: an object of names is expected; mend it")
    return known


# ── axolotl ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def axolotl(asked: Asked) -> Exported:
    """A data file, and a YAML file with its ``datasets:`` block."""
    pool = asked.pool
    # Roles say which turns are learnt where that is all assistant turns; else every turn says it of itself.
    flags = pool.targets != "all" or has_calls(pool)
    make = partial(with_tool_objects, targets=pool.targets if flags else None)
    chat = Layout("messages", make, "messages", {})
    layouts = {"auto": (PLAIN_ALPACA, chat), "alpaca": (PLAIN_ALPACA,), "messages": (chat,)}
    laid = lay(pool, _find_layout(asked, layouts, "axolotl"))
    path, block = asked.free(f"{asked.name}.jsonl"), asked.free(f"{asked.name}.axolotl.yaml")
    rows = _write(asked, laid, path)
    entry: dict[str, Any] = {"path": path.as_posix(), "ds_type": "json", "split": "train"}
    if laid.layout is chat:
        entry |= {
            "type": "chat_template",
            "field_messages": "messages",
            "message_property_mappings": {"role": "role", "content": "content"},
            "roles_to_train": [] if flags else ["assistant"],
            "train_on_eos": "turn",
        }
        entry |= {"message_field_training": "train"} if flags else {}
        entry |= {"field_tools": "tools"} if "tools" in laid.columns else {}
    else:
        entry["type"] = "alpaca"
    text = yaml.safe_dump({"datasets": [entry]}, sort_keys=False, allow_unicode=True)
    with writing(block) as aside:
        aside.write_text(text, encoding="utf-8")
    say = f"in the axolotl configuration (also in {block}):\n\n{text.rstrip()}"
    return Exported([path, block], rows, laid.layout.name, say, None, laid.changed, extra={"stanza": entry})


# ── TRL ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def trl(asked: Asked) -> Exported:
    """A data file, a configuration for ``trl sft``, and the command."""
    laid = _lay_for_trl(asked)
    path, config = asked.free(f"{asked.name}.jsonl"), asked.free(f"{asked.name}.trl.yaml")
    rows = _write(asked, laid, path, may_lack=laid.layout.name == "text")
    where, revision = local(asked.model or MODEL)
    values: dict[str, Any] = {
        "model_name_or_path": where,
        **({"model_revision": revision} if revision else {}),
        "datasets": [{"path": "json", "data_files": path.as_posix(), "split": "train"}],
        "output_dir": (asked.output / f"{asked.name}-sft").as_posix(),
    }
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    notes = []
    if laid.layout is MESSAGES:
        notes.append(
            "TRL learns prompts too from messages; with --assistant_only_loss true the responses alone, where it knows "
            "which tokens of the model's chat template they are"
        )
    elif several_turns(asked.pool) and asked.pool.targets != "last":
        notes.append("of several turns TRL learns the last response only; the others are its prompt")
    if where == MODEL:
        notes.append(f"put your model in the place of {MODEL} in {config}, or give --model")
    with writing(config) as aside:
        aside.write_text(text, encoding="utf-8")
    command = f"trl sft --config {config.as_posix()}"
    say = "\n".join([f"train with:\n\n{command}", *(["", *notes] if notes else [])])
    return Exported(
        [path, config], rows, laid.layout.name, say, command, laid.changed, len(laid.unfit), {"config": values}
    )


def _lay_for_trl(asked: Asked) -> Laid:
    spec = asked.template or _template_for(asked)
    if spec != "chat":
        layout = template(spec)
        if not isinstance(layout, TextTemplate):
            raise ConfigError(f"template '{spec}' is a chat template; give --template chat, and the file to TRL itself")
        if asked.layout not in ("auto", "text", "prompt_completion"):
            raise ConfigError(
                f"template '{spec}' makes texts, layout '{asked.layout}' has messages; give --template chat"
            )
        return lay(asked.pool, [Layout("text", render_layout(layout), "prompt_completion", {})], beside=ALPACA)
    layouts = {"messages": MESSAGES, "prompt_completion": PROMPT_COMPLETION}
    if asked.layout == "auto":
        one = asked.pool.targets == "last" or not several_turns(asked.pool)
        first = lay(asked.pool, [PROMPT_COMPLETION], beside=ALPACA)
        return first if one and not first.unfit else lay(asked.pool, [MESSAGES])
    named = _find_layout(asked, {name: [layout] for name, layout in layouts.items()}, "TRL")
    return lay(asked.pool, named, beside=ALPACA if asked.layout == "prompt_completion" else None)


def _template_for(asked: Asked) -> str:
    if asked.layout == "text":
        return "alpaca"
    if asked.model is None or has_chat_template(asked.model) is not False:
        return "chat"
    named = (asked.record or {}).get("models", {}).get("base", {}).get("template")
    chosen = str(named) if named and named != "chat" else "alpaca"
    asked.log(f"{asked.model} has no chat template, so prompts are written as text with template '{chosen}'")
    return chosen


# ── as they are ───────────────────────────────────────────────────────────────────────────────────────────────────────


def jsonl(asked: Asked) -> Exported:
    """The input's own rows; a ConfigError where a layout is asked for."""
    _own_layout(asked, "jsonl")
    path = asked.free(f"{asked.name}.jsonl")
    asked.pool.to_jsonl(path)
    return Exported([path], len(asked.pool), "own", f"{path} has the rows as they are in the input")


def parquet(asked: Asked, name: str | None = None) -> Exported:
    """The input's own rows, or messages where parquet would change them; a ConfigError where a layout is asked for."""
    _own_layout(asked, "parquet")
    path = asked.free(name or f"{asked.name}.parquet")
    layout, changed = write_parquet(asked.pool, path)
    if layout != "own":
        asked.log("parquet has one type for each column, which would change these rows: they are written as messages")
    if changed:
        asked.log(f"{changed:,} rows say the same but are divided otherwise, so instdiff gives them other ids")
    how = "as they are in the input" if layout == "own" else "as messages"
    return Exported([path], len(asked.pool), layout, f"{path} has the rows {how}", None, changed)


def _own_layout(asked: Asked, format: str) -> None:
    if asked.layout not in ("auto", "own"):
        raise ConfigError(f"format '{format}' keeps the rows as they are; --layout '{asked.layout}' is for trainers")


TRAINERS: dict[str, Callable[[Asked], Exported]] = {
    "llamafactory": llamafactory,
    "axolotl": axolotl,
    "trl": trl,
    "jsonl": jsonl,
    "parquet": parquet,
}
