"""Configuration of the verbs that show a selection and hand it over."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, field_validator

from instdiff.config.base import Config
from instdiff.config.commands import parse_pairs


class ReadConfig(Config):
    """How data is read, where its keys do not say it."""

    data: str | None = None
    map: dict[str, str] | None = None
    targets: Literal["all", "last", "all+calls"] | None = None

    ALIASES: ClassVar[dict[str, str]] = {"data_path": "data"}

    @classmethod
    def aliases(cls) -> dict[str, str]:
        """Published names."""
        return cls.ALIASES

    @field_validator("map", mode="before")
    @classmethod
    def _map(cls, value: Any) -> Any:
        return parse_pairs(value, "map") if isinstance(value, str) else value


class ExplainConfig(ReadConfig):
    """``instdiff explain``."""

    format: str | None = None
    scores: str | None = None
    selection: str | None = None
    store: str | None = None
    by: str | None = None


class DiffConfig(ReadConfig):
    """``instdiff diff``."""

    format: str | None = None
    scores: list[str] = Field(default_factory=list)
    by: str | None = None
    examples: NonNegativeInt = 3

    @field_validator("scores", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ExportConfig(ReadConfig):
    """``instdiff export``; ``format`` is the trainer's, ``data_format`` that of the input."""

    format: str | None = None
    data_format: str | None = None
    source: str | None = None
    output: str | None = None
    name: str | None = None
    layout: str = "auto"
    template: str | None = None
    model: str | None = None
    license: str | None = None
    push: str | None = None
    public: bool = False

    ALIASES: ClassVar[dict[str, str]] = {"data_path": "data", "output_path": "output"}
