"""Chat templates with generation marks that TRL ships for those of published models."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def training_template(jinja: str) -> str | None:
    """The installed TRL's training template for exactly this template, if there is one."""
    return _shipped().get(jinja)


@lru_cache
def _shipped() -> dict[str, str]:
    """Templates by those that they stand for; read as files, since importing TRL takes seconds."""
    spec = find_spec("trl")
    folders = [Path(place) / "chat_templates" for place in (spec.submodule_search_locations or [])] if spec else []
    pairs = (
        (file, file.with_name(f"{file.stem}_training.jinja")) for folder in folders for file in folder.glob("*.jinja")
    )
    return {own.read_text("utf-8"): other.read_text("utf-8") for own, other in pairs if other.is_file()}
