"""Answers, written by whatever writes them, and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instdiff.core import Log, ModelRef, Settings
from instdiff.core.files import fingerprint
from instdiff.core.progress import Progress
from instdiff.engine.generation.backend import Backend, GenerationRequest, Prompt, Sampling
from instdiff.engine.models import Resident
from instdiff.engine.text.judge import Answer, parse_judge
from instdiff.errors import ConfigError, did_you_mean
from instdiff.store.answers import AnswerCache

KINDS = ("hf", "vllm", "openai:MODEL@http://host:port/v1")
Spend = Callable[[str, float], None]
"""Told what was spent and how much of it."""


class Generator:
    """Writes answers that are not there yet.

    The bill counts every answer that is used, also those of an earlier run: what an evaluation costs does not depend
    on how often it was interrupted.

    Args:
        backend: writes.
        folder: where answers are kept.
        spend: is told tokens and seconds.
        log: is told what happens.
        progress: shows it.
    """

    def __init__(self, backend: Backend, folder: Path, spend: Spend, log: Log, progress: Progress) -> None:
        self.backend, self.name, self.log, self.progress = backend, backend.name, log, progress
        self.fingerprint, self._spend = backend.fingerprint, spend
        self.written = answers_in(folder, backend.fingerprint)

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        """Of each prompt the texts of its ``n`` answers, empty where none came."""
        return [[answer.text or "" for answer in row] for row in self.answers(prompts, sampling)]

    def answers(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Answer]]:
        """Of each prompt its ``n`` answers; at temperature 0 they are the same, and one is written."""
        rows = self.requests(prompts, sampling)
        every = {one.key: one for row in rows for one in row}
        lacking = [one for one in every.values() if one.key not in self.written]
        got: dict[str, Answer] = {}
        if lacking:
            got = self._write(lacking, sampling, len(every) - len(lacking))
        found = {key: self.written[key][-1] if key in self.written else got[key] for key in every}
        self._account(list(found.values()))
        answers = [[found[one.key] for one in row] for row in rows]
        return [row * (sampling.n // len(row)) for row in answers]

    def requests(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[GenerationRequest]]:
        """Of each prompt the answers that are different: one at temperature 0, else ``n``."""
        draws = sampling.n if sampling.temperature > 0 else 1
        return [self._requests(prompt, draws, sampling) for prompt in prompts]

    def _requests(self, prompt: Prompt, draws: int, sampling: Sampling) -> list[GenerationRequest]:
        shown = self.backend.prompt_text(prompt)
        how: dict[str, Any] = {"tokens": sampling.max_new_tokens, "stop": list(sampling.stop)}
        if sampling.temperature > 0:
            how |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed}
        if prompt.last is not None:
            how["last"] = prompt.last
        out = []
        for number in range(sampling.first, sampling.first + draws):
            seed = int(fingerprint(sampling.seed, shown, number)[:15], 16)
            out.append(
                GenerationRequest(fingerprint(self.backend.fingerprint, shown, how, number), prompt, shown, seed)
            )
        return out

    def _write(self, lacking: list[GenerationRequest], sampling: Sampling, cached: int) -> dict[str, Answer]:
        got: dict[str, Answer] = {}
        most = len(lacking) * sampling.max_new_tokens
        with self.progress.task(f"answers of {self.name}", rows=len(lacking), tokens=most, cached=cached) as advance:
            for some in self.backend.write(lacking, sampling):
                self.written.keep([_line(one.key, answer) for one, answer in some if answer.text is not None])
                got.update((one.key, answer) for one, answer in some)
                advance(len(some), sum(answer.completion_tokens for _, answer in some))
        return got

    def _account(self, answers: list[Answer]) -> None:
        self._spend("answers", len(answers))
        self._spend("prompt_tokens", sum(answer.prompt_tokens for answer in answers))
        self._spend("generated_tokens", sum(answer.completion_tokens for answer in answers))
        self._spend("seconds", sum(answer.seconds for answer in answers))
        lost = [answer.reason for answer in answers if answer.text is None]
        if lost:
            self._spend("unanswered", len(lost))
            self.log(
                f"warning: {self.name} gave no answer to {len(lost)} prompts, which count as empty ones "
                f"(first: {lost[0]}); the next run asks again"
            )


def answers_in(folder: Path, model: str) -> AnswerCache[Answer]:
    """The answers of a model that a folder holds."""
    return AnswerCache(folder / f"answers-{model}.jsonl", _read)


def _read(line: dict[str, Any]) -> Answer:
    numbers = int(line["prompt"]), int(line["generated"]), float(line["seconds"])
    return Answer(str(line["text"]), "", *numbers, cut=bool(line.get("cut")))


def _line(key: str, answer: Answer) -> dict[str, Any]:
    counts = {"prompt": answer.prompt_tokens, "generated": answer.completion_tokens}
    counts |= {"cut": True} if answer.cut else {}
    return {"key": key, "text": answer.text, **counts, "seconds": round(answer.seconds, 4)}


def make_backend(
    spec: str,
    model: ModelRef,
    settings: Settings,
    memo: Path,
    log: Log,
    *,
    resident: Resident | None = None,
    **calls: Any,
) -> Backend:
    """The backend that a configuration names, for a model; it is loaded for the first answer.

    Args:
        spec: one of ``KINDS``.
        model: where it is; a server has its own.
        settings: precision, device and templates.
        memo: where hashes of model files are remembered.
        log: is told what happens.
        resident: models already in memory.
        calls: to a server, see ``Endpoint``.

    Raises:
        ConfigError: no such generator, or the address of a server is faulty.
        PlanError: it needs a package that is not installed.
        EngineError: the model is not there.
    """
    if (endpoint := parse_judge(spec)) is not None:
        from instdiff.engine.generation.server_backend import Server

        return Server(endpoint, settings.templates.get("*"), log, **calls)
    if spec == "hf":
        from instdiff.engine.generation.transformers_backend import Local

        return Local(model, settings, memo, log, resident=resident)
    if spec == "vllm":
        from instdiff.engine.generation.vllm_backend import VLLM

        return VLLM(model, settings, memo, log)
    raise ConfigError(f"unknown generator '{spec}'{did_you_mean(spec, KINDS)}")
