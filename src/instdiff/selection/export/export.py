"""A selection into the format of the trainer that its user has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instdiff.core import Log
from instdiff.data import Pool
from instdiff.errors import ConfigError, did_you_mean, kind_of
from instdiff.scoring.given import given_folder, given_store
from instdiff.selection.chosen import Chosen
from instdiff.selection.export.asked import Asked, Exported
from instdiff.selection.export.formats import OF_PROMPTS, TRAINERS
from instdiff.selection.export.hub import check_push, hub, push
from instdiff.selection.export.pairs import Half, rows_outside_half, with_trained_rows
from instdiff.selection.export.prompts import RESPONSES, answered
from instdiff.selection.export.recipe import recipe_of
from instdiff.selection.record import RECORD, Found, Reading, find, found_of, rows_of
from instdiff.store import Store

if TYPE_CHECKING:
    from instdiff.scoring.drawn import Drawn

FORMATS = (*TRAINERS, "hub")


def export(
    data: Any,
    format: str,
    output: str | Path,
    *,
    source: str | list[str] | None = None,
    name: str | None = None,
    layout: str = "auto",
    template: str | None = None,
    model: str | None = None,
    license: str | None = None,
    push_to: str | None = None,
    public: bool = False,
    half: Half = None,
    responses: str | None = None,
    store: Store | str | Path | None = None,
    reading: Reading | None = None,
    limit: int | None = None,
    log: Log | None = None,
) -> Exported:
    """Write a subset in a trainer's format, with what to paste; every file is whole or absent.

    Args:
        data: a selection, or a file of rows, its record, or a run folder.
        format: one of ``FORMATS``.
        output: the folder that the files go to.
        source: the input that was selected from, where a record alone is given and the input has moved.
        name: of the data set; by default that of the folder or file.
        layout: the shape of rows, where the trainer knows several.
        template: what rows are rendered with, where the record does not say it: a name or a file.
        model: to be trained, for the command; by default the base model that the record names.
        license: of the source, for the card.
        push_to: ``hub:owner/name``.
        public: make a new repository public.
        half: ``dpo/0/1``, or this and the method: pairs to train this model on, and the list that goes beside it.
        responses: puts the ``first`` or the ``shortest`` right answer that the model drew in the place of the response.
        store: where these answers are kept; that of the scores, or the user's own.
        reading: how data is read.
        limit: the first rows of the selection alone.
        log: is told what changes.

    Raises a ConfigError for what there is not, a DataError without a selection, a StoreError where nothing is written.
    """
    repo = _check(format, folder := given_folder(output), responses, push_to, public=public, license=license)
    chosen, (found, data), said = isinstance(data, Chosen), _found(data, reading, log), log or (lambda line: None)
    rows, drawn = _answers(found, _rows(found, source, reading, limit, half, log), format, responses, store, said)
    how = _name(name, data), layout, template, model or _base_of(found), _inputs_read(found, data, source)
    asked = Asked(rows, found.record, folder, *how, recipe_of(found), said, drawn)
    made = with_trained_rows(hub(asked, license) if format == "hub" else TRAINERS[format](asked), rows, half, folder)
    return _told(_push(made, repo, folder, public), found, format, said, chosen=chosen)


def _rows(
    found: Found,
    source: str | list[str] | None,
    reading: Reading | None,
    limit: int | None,
    half: Half,
    log: Log | None,
) -> Pool:
    """The rows of a selection, or the first of them, without those of the other half."""
    return rows_outside_half(rows_of(found, source, reading, log).part(0, limit or len(found.ids)), half)


def _base_of(found: Found) -> str | None:
    """The base model that a record names."""
    where: str | None = (found.record or {}).get("models", {}).get("base", {}).get("where")
    return where


def _told(exported: Exported, found: Found, format: str, log: Log, *, chosen: bool) -> Exported:
    """Say where rows with weights were written without them; those of a ``chosen`` subset are the input's own."""
    if (found.record or {}).get("weights") and (chosen or exported.layout != "own"):
        log(f"the weights of the rows are left out of what is written for {format}: all rows count the same")
    return exported


def _answers(
    found: Found, rows: Pool, format: str, responses: str | None, store: Store | str | Path | None, log: Log
) -> tuple[Pool, Sequence[Drawn] | None]:
    """The rows, with right answers for responses where that is asked for, and what was drawn where prompts are."""
    if not responses and format not in OF_PROMPTS:
        return rows, None
    from instdiff.scoring.drawn import read_drawn  # brings torch

    drawn = read_drawn(rows, found.record, given_store(store or found.store), log)
    if not responses:
        return rows, drawn
    made = answered(rows, drawn, responses)
    log(f"{len(made):,} of {len(rows):,} rows have a right answer of the model, which is their response now")
    return made, None


def _found(data: Any, reading: Reading | None, log: Log | None) -> tuple[Found, str]:
    """The selection that is exported, and what it is called."""
    if isinstance(data, Chosen):
        return found_of(data), data.scored.name
    if not isinstance(data, str | Path):
        raise ConfigError(f"a selection, a file of rows or a run folder is exported; not {type(data).__name__}")
    return find(str(data), reading, log), str(data)


def _push(exported: Exported, repo: str | None, folder: Path, public: bool) -> Exported:
    if repo is None:
        return exported
    place = push(repo, exported, folder, public=public)
    return replace(exported, say=f"{place} has it", extra={**exported.extra, "url": place})


def _check(format: str, folder: Path, responses: str | None, push_to: str | None, **for_the_hub: object) -> str | None:
    """Refuse with a ConfigError an unknown format, an option of another, or an output that is no folder.

    Gives the repository to push to, where one is named.
    """
    if not isinstance(format, str):
        raise ConfigError(f"a format is one of {', '.join(FORMATS)}; not {kind_of(format)}")
    if format not in FORMATS:
        raise ConfigError(f"unknown export format '{format}'{did_you_mean(format, FORMATS)}")
    if responses is not None and responses not in RESPONSES:
        raise ConfigError(f"unknown responses '{responses}'{did_you_mean(responses, RESPONSES)}")
    if responses and format in OF_PROMPTS:
        raise ConfigError(f"--responses is for rows to learn, and format '{format}' has prompts alone; leave it out")
    given = next((option for option, value in {"push": push_to, **for_the_hub}.items() if value), None)
    if given and format != "hub":
        raise ConfigError(f"--{given} goes with --format hub, not with '{format}'")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"'{folder}' is a file; --output names a folder")
    return check_push(push_to, folder) if push_to else None


def _name(name: str | None, data: str) -> str:
    """A name that is fit for a file and for the lists of trainers; a ConfigError where the one given is not."""
    if name is not None:
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise ConfigError(f"'{name}' is no name for a data set: letters, digits, '_', '-' and '.' only")
        return name
    path = Path(data.removeprefix("hub:").removeprefix("builtin:").partition(":")[0])
    stem = path.resolve().parent.name if path.name == RECORD else path.name.removesuffix(f".{RECORD}")
    stem = Path(stem).stem if path.is_file() else stem
    return re.sub(r"[^\w-]+", "_", stem).strip("_") or "selected"


def _inputs_read(found: Found, data: str, source: str | list[str] | None) -> Sequence[Path]:
    """The files that are read."""
    inside = list(Path(data).iterdir()) if found.pool is not None and Path(data).is_dir() else []
    sources = [source] if isinstance(source, str) else source or []
    return [path for path in (Path(data), *found.files, *inside, *map(Path, sources)) if path.is_file()]
