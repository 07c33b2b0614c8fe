"""A folder that the Hugging Face hub shows as a data set, and putting it there when that is asked for."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from instdiff.core.files import write_json, writing
from instdiff.errors import ConfigError, StoreError
from instdiff.selection.export.asked import Asked, Exported
from instdiff.selection.export.card import DATA, MADE, card, public
from instdiff.selection.export.formats import parquet
from instdiff.selection.record import RECORD

README = "README.md"
LOOKED_AT = 1000
"""Rows whose columns the card names."""


def hub(asked: Asked, license: str | None = None) -> Exported:
    """``data/train.parquet`` and a card, and the record where there is one.

    Raises a ConfigError where somebody wrote the card that is there, a StoreError where parquet cannot hold the rows.
    """
    readme, record = asked.free(README), asked.free(RECORD)
    if readme.is_file() and MADE not in readme.read_text(encoding="utf-8", errors="replace"):
        raise ConfigError(f"'{readme}' was not written by instdiff and stays; give another --output")
    if license is None:
        asked.log("the card says that the licence of the source is unknown; --license ID states it")
    rows = parquet(asked, DATA)
    files = rows.files
    if asked.record is not None:
        write_json(record, public(asked.record))
        files = [*files, record]
    text = card(asked.record, asked.pool, columns=pq.read_schema(files[0]).names, license=license, title=asked.name)
    with writing(readme) as aside:
        aside.write_text(text, encoding="utf-8")
    say = f"{asked.output} is ready for the hub; --push hub:owner/name puts it there"
    return replace(rows, files=[*files, readme], say=say)


def repository(where: str) -> str:
    """The repository that ``hub:owner/name`` names; a ConfigError where it names none."""
    name = where.removeprefix("hub:")
    if not where.startswith("hub:") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"'--push {where}' names no place on the hub; write hub:owner/name")
    return name


def check_push(where: str, folder: Path) -> str:
    """The repository, before anything is written; a ConfigError for a bad name, no token or a network switched off."""
    from huggingface_hub import get_token
    from huggingface_hub.constants import is_offline_mode

    name = repository(where)
    ready = f"without --push the folder '{folder}' is written all the same"
    if is_offline_mode():
        raise ConfigError(f"cannot push to {name}: HF_HUB_OFFLINE is set; unset it, or {ready}")
    if not get_token():
        raise ConfigError(f"cannot push to {name}: there is no token; run `hf auth login` or set HF_TOKEN; {ready}")
    return name


def push(name: str, exported: Exported, folder: Path, *, public: bool = False) -> str:
    """Put the files of an export into a data set repository, private unless it is there or asked for otherwise.

    Raises a StoreError where the hub refuses or cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi()
    try:
        api.create_repo(name, repo_type="dataset", private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=[path.relative_to(folder).as_posix() for path in exported.files],
            commit_message=f"{exported.rows:,} rows selected by instdiff",
        )
    except (HfHubHTTPError, HFValidationError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise StoreError(
            f"cannot push to {name}: {said}. The folder '{folder}' is whole; check the token's rights and the network, "
            "then give the same command again"
        ) from None
    return f"https://huggingface.co/datasets/{name}"
