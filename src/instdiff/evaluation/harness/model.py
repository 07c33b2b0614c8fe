"""The model under test as lm-eval asks it: ours in memory, our progress and bill, every answer kept in a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.engine.models import pick_device
from instdiff.engine.sweep import default_batch_tokens
from instdiff.evaluation.subject import Subject


def batch_rows(subject: Subject, context: int) -> int:
    """Rows at once."""
    device = pick_device(subject.settings.device).type
    budget = subject.settings.batch_tokens or default_batch_tokens(device)
    return max(1, budget // min(context, 512 if device == "cpu" else 2048))


def keeping(lm: Any, path: Path) -> Any:
    """The model with a file of the answers that it has given, to which every new one is added at once."""
    from lm_eval.api.model import CachingLM

    path.parent.mkdir(parents=True, exist_ok=True)

    class Kept(CachingLM):  # type: ignore[misc]
        """Closes its file."""

        def close(self) -> None:
            """Write what is not written yet."""
            self.dbdict.close()

    return Kept(lm, str(path))


def make_watched_class() -> Any:
    """Lm-eval's class of models, with our progress and bill."""
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):  # type: ignore[misc]
        """A causal language model that is in memory already."""

        label = ""

        def __init__(self, model: Any, tokenizer: Any, context: int, batch: int, subject: Subject) -> None:
            super().__init__(
                pretrained=model, tokenizer=tokenizer, backend="causal", max_length=context, batch_size=batch
            )
            self.subject = subject
            self.advance: Callable[[int, int], None] = lambda rows, tokens: None

        def set_cache_hook(self, hook: Any) -> None:
            super().set_cache_hook(_Told(hook, lambda text: self.advance(1, _tokens(text))))

        @contextmanager
        def _shown(self, requests: Sequence[Any]) -> Iterator[None]:
            tokens = sum(_tokens(request.args) for request in requests)
            with self.subject.progress.task(self.label, rows=len(requests), tokens=tokens) as self.advance:
                yield

        def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._shown(requests):
                return super().loglikelihood(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
            with self._shown(requests):
                return super().generate_until(requests, disable_tqdm=True)

        def _model_call(self, inps: Any, *args: Any, **kwargs: Any) -> Any:
            self.subject.spend("prompt_tokens", int(inps.numel()))
            return super()._model_call(inps, *args, **kwargs)

        def _model_generate(self, context: Any, *args: Any, **kwargs: Any) -> Any:
            out = super()._model_generate(context, *args, **kwargs)
            self.subject.spend("prompt_tokens", int(context.numel()))
            self.subject.spend("generated_tokens", int(out.numel() - context.numel()))
            return out

    return Watched


def _tokens(request: Any) -> int:
    """About as many tokens as a request has."""
    return 1 + sum(len(part) for part in request if isinstance(part, str)) // 4


@dataclass(frozen=True)
class _Told:
    """Lm-eval's hook for answers as they come, with an ear to it."""

    hook: Any
    tell: Callable[[Any], None]

    def add_partial(self, kind: str, request: Any, answer: Any) -> None:
        self.hook.add_partial(kind, request, answer)
        self.tell(request)


@contextmanager
def quietly() -> Iterator[None]:
    """Without the bars and lines of third parties; progress is shown by our own."""
    import datasets
    from lm_eval.api import model, task
    from lm_eval.models import huggingface

    modules, bars = (model, task, huggingface), model.tqdm
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, shown = [logger.level for logger in loggers], datasets.are_progress_bars_disabled()

    def silent(*args: Any, **kwargs: Any) -> Any:
        return bars(*args, **{**kwargs, "disable": True})

    try:
        datasets.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        for module in modules:
            vars(module)["tqdm"] = silent
        yield
    finally:
        for module in modules:
            vars(module)["tqdm"] = bars
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not shown:
            datasets.enable_progress_bars()
