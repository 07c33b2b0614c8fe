"""What an export needs to know of a model, without its weights."""

from __future__ import annotations

import datetime
import json
import os
from contextlib import suppress
from pathlib import Path

from jinja2 import TemplateError

from instdiff.core import ModelRef
from instdiff.core.settings import TEMPLATE_DATE
from instdiff.data.builtin import path as builtin_path
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError

RENDER_ERRORS = (TemplateError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What chat templates raise."""
_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]
"""What of a model's repository is not weights."""


def local(where: str) -> tuple[str, str | None]:
    """A model as transformers finds it, and its revision: folders as they are, built-in names as their folder."""
    if os.path.isdir(where):
        return os.path.abspath(where), None
    base = where.partition("+")[0]
    if base.startswith("builtin:"):
        return str(builtin_path(base.removeprefix("builtin:"))), None
    if os.path.isdir(base):
        return os.path.abspath(base), None
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


def tokenizer_of(where: str, template_date: str | None = None) -> HFTokenizer | None:
    """The tokenizer of a model that lies on this machine; None where it does not, or cannot be read."""
    name, revision = local(where)
    if not os.path.isdir(name):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

        try:
            name = snapshot_download(name, revision=revision, allow_patterns=_FILES, local_files_only=True)
        except (LocalEntryNotFoundError, HFValidationError, OSError):
            return None
    from instdiff.engine.sources import Source, load_tokenizer  # brings torch

    date = datetime.date.fromisoformat(template_date) if template_date else TEMPLATE_DATE
    with suppress(EngineError):
        return load_tokenizer(Source(ModelRef(where), Path(name)), date)
    return None
