"""What an export is asked for, what came of it, and what they share: settings of the run, the file of rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from instdiff.core import Log, Settings
from instdiff.core.display import Shown, in_one_line, some
from instdiff.core.files import fingerprint, writing
from instdiff.data import Pool
from instdiff.data.write import write_jsonl
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import ConfigError, did_you_mean
from instdiff.rendering.templates import ChatTemplate, Template, template
from instdiff.selection.export.layouts import Laid, Layout
from instdiff.selection.export.models import tokenizer_of
from instdiff.selection.export.recipe import Recipe, Trainer

if TYPE_CHECKING:
    from instdiff.scoring.drawn import Drawn


@dataclass(frozen=True)
class Asked:
    """What an export is asked for: the selected rows in order, their record, the folder, the data set's name, a layout.

    ``template`` is what rows are rendered with; None where the record says it. ``model`` is the one to be trained; None
    where it is not known. ``recipe`` says how; None where the trainer's own defaults count. ``protected`` files must
    not be written over. The log is told what changes. ``drawn`` is what is known of the answers that a model drew to
    each row, where that was asked for.
    """

    pool: Pool
    record: dict[str, Any] | None
    output: Path
    name: str
    layout: str = "auto"
    template: str | None = None
    model: str | None = None
    protected: Sequence[Path] = ()
    recipe: Recipe | None = field(default_factory=Recipe)
    log: Log = print
    drawn: Sequence[Drawn] | None = None

    def free(self, name: str) -> Path:
        """A path in the output folder; a ConfigError where it is the input's."""
        path = self.output / name
        if any(path.resolve() == other.resolve() for other in self.protected):
            raise ConfigError(f"'{path}' is what is exported; give another --output or --name")
        return path

    @property
    def remarks(self) -> str:
        """Comments for a configuration: what the scores were made with, and whose the recipe is."""
        known = "no record says with what; max_length is the default"
        if self.record is not None:
            model, dtype = self._base.get("where", "no model"), self._settings.get("dtype")
            parts = [model, f"template {self._base.get('template')}", f"max_length {self.max_length}", dtype]
            known = ", ".join(in_one_line(str(part)) for part in parts if part)
        return f"# Scored with: {known}.\n" + (f"# {self.recipe.remark()}\n" if self.recipe else "")

    def keys_of_recipe(self, trainer: Trainer) -> dict[str, Any]:
        """What a trainer's configuration says of the recipe."""
        return self.recipe.keys(trainer) if self.recipe else {}

    @property
    def max_length(self) -> int:
        """Tokens of prompt and response in the run, or the default where there is no record."""
        return int(self._settings.get("max_length") or Settings().max_length)

    @property
    def limit(self) -> int:
        """``max_length``, or the model's context where that is known and shorter."""
        context = self.tokenizer.max_length if self.tokenizer else None
        return min(self.max_length, context or self.max_length)

    @cached_property
    def spec(self) -> str | None:
        """The template that is asked for, or that the rows were scored with, as the user wrote it."""
        named = self._base.get("template")
        return self.template or (str(named) if named else None)

    @cached_property
    def layout_of_text(self) -> Template | None:
        """That template; None where nobody has named one. Says where its file is not what rows were scored with."""
        found, known = template(self.spec) if self.spec else None, self._base.get("template_fingerprint")
        if known and not self.template and known != fingerprint(repr(found)):
            self.log(f"template '{self.spec}' has changed since these rows were scored")
        return found

    @cached_property
    def tokenizer(self) -> HFTokenizer | None:
        """That of the model to be trained; None where it is not on this machine."""
        return tokenizer_of(self.model, self._settings.get("template_date")) if self.model else None

    @property
    def _base(self) -> Mapping[str, Any]:
        base: Mapping[str, Any] = (self.record or {}).get("models", {}).get("base") or {}
        return base

    @property
    def _settings(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = (self.record or {}).get("settings") or {}
        return settings


@dataclass(frozen=True)
class Exported(Shown):
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

    def __repr__(self) -> str:
        then = f"\n  {self.command}" if self.command else ""
        return f"<Exported {self.rows:,} rows, layout {self.layout}: {some(map(str, self.files))}{then}>"


def find_layout(asked: Asked, layouts: Mapping[str, Sequence[Layout]], trainer: str) -> Sequence[Layout]:
    """The layouts that the user's word stands for; a ConfigError where the trainer has none of this name."""
    if asked.layout not in layouts:
        raise ConfigError(f"{trainer} has no layout '{asked.layout}'{did_you_mean(asked.layout, layouts)}")
    return layouts[asked.layout]


def write_laid(asked: Asked, laid: Laid, path: Path, *, may_lack: bool = False) -> int:
    """Write the data file and return its rows; says what the layout changes or cannot hold."""
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
            "its instruction, a thought or a call as text, a turn that is context), so instdiff gives them other ids "
            "when it reads the file"
        )
    written = 0

    def texts() -> Any:
        nonlocal written
        for row in laid.rows(pool):
            written += 1
            yield json.dumps(row, ensure_ascii=False)

    write_jsonl(path, texts())
    return written


def write_config(asked: Asked, path: Path, values: Mapping[str, Any]) -> str:
    """Write a trainer's configuration under its comments, and return its text."""
    text = asked.remarks + yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return text


def write_jinja(asked: Asked) -> Path | None:
    """Put the chat template beside the rows where a file was given; None where it is the tokenizer's own."""
    layout = asked.layout_of_text
    if not isinstance(layout, ChatTemplate) or layout.jinja is None:
        return None
    path = asked.free(f"{asked.name}.jinja")
    with writing(path) as aside:
        aside.write_text(layout.jinja, encoding="utf-8", newline="")
    return path
