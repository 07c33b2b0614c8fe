"""What all passes of a run share: models by role, numerics, templates."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ModelRef:
    """A model bound to a role: where it is and how rows are rendered for it.

    ``where`` is a local folder, a hub id or ``builtin:NAME``; ``revision`` pins a hub id; ``adapter`` is a PEFT folder
    or hub id on top. ``template`` is a template's name or file; None is the role's default.
    """

    where: str
    revision: str | None = None
    adapter: str | None = None
    template: str | None = None

    @property
    def served(self) -> bool:
        """Whether it is behind a server, so that its tokens are not known."""
        return self.where.startswith("openai:")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.where}{revision}" + (f"+{self.adapter}" if self.adapter else "")


TEMPLATE_DATE = datetime.date(2024, 7, 26)
"""The day that chat templates see which ask for the date: the one that Llama 3.2's falls back to."""

Log = Callable[[str], None]
"""Tells the user one line."""


@dataclass(frozen=True)
class Settings:
    """What all passes of a run share.

    ``max_length`` counts tokens of prompt and response; ``dtype`` is that of the weights: reductions are always fp32.
    ``workers`` are processes that score, by default one for each GPU. With ``executor`` ``ray`` shards go to the
    cluster at ``ray_address`` (``ray://HOST:10001``, ``HOST:6379`` or ``auto``; by default ``RAY_ADDRESS``, else one is
    started here), and a model that is larger than one GPU is laid over ``gpus_per_worker``.

    ``judge_concurrency`` are calls at once to a judge's server. Each is given up after ``judge_timeout`` seconds
    without a word, and made up to ``judge_tries`` times. An answer has at most ``judge_max_tokens``, by default 256.
    With ``judge_batch`` the questions go to the server's batch API.

    ``templates`` are those that were named, by role; ``*`` is that of the run, by default ``alpaca``. A chat template
    that asks for the date is told ``template_date``. ``trust_held`` takes models of folds, or of a holdout, that do not
    say which rows they were trained on.
    """

    max_length: int = 2048
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    workers: int | None = None
    judge_concurrency: int | None = None
    judge_timeout: float = 120.0
    judge_tries: int = 5
    judge_max_tokens: int | None = None
    judge_batch: bool = False
    executor: str = "local"
    ray_address: str | None = None
    gpus_per_worker: int | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    template_date: datetime.date = TEMPLATE_DATE
    trust_held: bool = False

    @property
    def template(self) -> str:
        """The template of the run."""
        return self.templates.get("*", "alpaca")


def dtype_name(dtype: object) -> str:
    """A precision as people write it."""
    return str(dtype).removeprefix("torch.")
