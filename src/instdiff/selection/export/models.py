"""What an export needs to know of a model without loading it."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from instdiff.data.builtin import path as builtin_path


def local(where: str) -> tuple[str, str | None]:
    """A model as transformers finds it, and its revision: folders as they are, built-in names as their folder."""
    if os.path.isdir(where):
        return where, None
    base = where.partition("+")[0]
    if base.startswith("builtin:"):
        return str(builtin_path(base.removeprefix("builtin:"))), None
    if os.path.isdir(base):
        return base, None
    name, _, revision = base.partition("@")
    return name, revision or None


def has_chat_template(where: str) -> bool | None:
    """Whether a model's tokenizer has a chat template; None where that cannot be known without a download."""
    name, revision = local(where)
    if os.path.isdir(name):
        folder = Path(name)
        if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
            return True
        return _in_config(folder / "tokenizer_config.json")
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no name that a hub could have
        for file in ("chat_template.jinja", "tokenizer_config.json"):
            found = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                return True if file.endswith(".jinja") else _in_config(Path(found))
    return None


def _in_config(path: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(json.loads(path.read_text(encoding="utf-8")).get("chat_template"))
    return False
