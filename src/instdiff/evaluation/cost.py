"""What suites cost on a model: passes, answers to be written, and questions to a judge; nothing is asked or written."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Nll, Prompted
from instdiff.core.files import write_json
from instdiff.core.progress import Quiet
from instdiff.core.settings import dtype_name
from instdiff.engine.generation.backend import GenerationRequest, Prompt, Sampling
from instdiff.engine.generation.generator import Generator
from instdiff.engine.generation.pricing import writing_seconds
from instdiff.engine.generation.transformers_backend import PromptEncoder
from instdiff.engine.models import DTYPES
from instdiff.engine.sources import Source, load_tokenizer
from instdiff.engine.speed import Machine
from instdiff.engine.text.judge import parse_judge
from instdiff.evaluation.evaluator import make_subject, subject_settings
from instdiff.evaluation.harness.suite import HarnessSuite
from instdiff.evaluation.llm_judge.items import is_model, read_items
from instdiff.evaluation.llm_judge.judge import LLMJudge
from instdiff.evaluation.llm_judge.suite import GeneralSuite
from instdiff.evaluation.subject import Subject, Suite, make_generator
from instdiff.evaluation.suites import HeldOutSuite
from instdiff.scoring.cost import Planned, StageCost, cost_of_pass, price_of, stage_of_passes, work_of
from instdiff.scoring.models import parse_model
from instdiff.scoring.planner import Pass
from instdiff.scoring.workbench import Workbench
from instdiff.store import Store

LETTERS_PER_TOKEN = 4
"""Of texts whose tokenizer is a server's."""
JUDGE_ROWS = 32
"""Answers that a judge of this machine is taken to write at once."""


@dataclass
class SuiteCosts:
    """Prices suites by a machine, a store and what earlier lines of the plan compute.

    ``price`` is what a judge's server takes for a million tokens in and out.
    """

    store: Store
    machine: Machine
    planned: Planned = field(default_factory=Planned)
    price: tuple[float, float] | None = None

    def stages(
        self,
        stage: str,
        suites: Sequence[Suite],
        config: EvalConfig,
        ref: ModelRef | None,
        unmade: Source | None = None,
    ) -> list[StageCost]:
        """The lines of suites on a model, or on one that is yet to be made from the model ``ref`` of the same shape."""
        lines: list[StageCost] = []
        for suite in suites:
            swept = suite if isinstance(suite, HeldOutSuite) else getattr(suite, "solutions", None)
            if swept is not None and ref is not None:
                lines += self._heldout(stage, swept, config, ref, unmade)
            if swept is suite:
                continue
            subject = make_subject(ref, config, self.store, log=_nobody, progress=Quiet())
            if isinstance(suite, HarnessSuite):
                lines += self._harness(stage, suite, config, subject, unmade)
            elif isinstance(suite, GeneralSuite):
                lines += self._judged(stage, suite, config, subject, unmade)
            elif asked := getattr(suite, "asked", None):
                filler = _Filler(make_generator(config.generator, subject), new=unmade is not None)
                for prompts, sampling in asked(_nobody):
                    filler.write(prompts, sampling)
                lines += self._written(stage, filler, config, subject)
        return lines

    def _heldout(
        self, stage: str, suite: HeldOutSuite, config: EvalConfig, ref: ModelRef, unmade: Source | None
    ) -> list[StageCost]:
        settings = subject_settings(ref, config)
        bench = Workbench(suite.pool, {"model": ref}, settings, self.store, log=_nobody)
        if unmade is not None:
            bench.sources["model"] = unmade
        step = Pass("model", Prompted(), (Nll(),))
        passes = [(step, cost_of_pass(bench, step, 0, self.planned))]
        return stage_of_passes(stage, bench, passes, self.machine, "evaluate")

    def _harness(
        self, stage: str, suite: HarnessSuite, config: EvalConfig, subject: Subject, unmade: Source | None
    ) -> list[StageCost]:
        """What lm-eval asks and the store lacks: likelihoods, then answers."""
        filler = _Filler(make_generator(config.generator, subject), new=unmade is not None)
        lm = suite.model(replace(subject, generator=filler))
        requests = suite.requests(lm)
        rows = lm.rows([one for one in requests if one.request_type != "generate_until"])[0]
        rows = rows.take(lm.missing(rows, new=unmade is not None))
        lm.generate_until([one for one in requests if one.request_type == "generate_until"])
        lines = self._written(stage, filler, config, subject)
        if not len(rows):
            return lines
        body, head = work_of(lm.source)
        tokens, targets = int(rows.ids.lengths().sum()), int(rows.n_targets().sum())
        flops = tokens * body + targets * head
        speed = self.machine.speed(lm.source, rows, DTYPES[dtype_name(lm.host.dtype)], flops / tokens)
        seconds = speed.load_s + flops / speed.flops_per_s
        return [StageCost(stage, "evaluate", rows=len(rows), tokens=tokens, flops=flops, seconds=seconds), *lines]

    def _written(self, stage: str, filler: _Filler, config: EvalConfig, subject: Subject) -> list[StageCost]:
        """The answers that are not written yet."""
        lines = []
        served = parse_judge(config.generator) is not None
        for asked, sampling in filler.lacking:
            most = len(asked) * sampling.max_new_tokens
            if served:
                tokens = sum(len(one.prompt_text) for one in asked) // LETTERS_PER_TOKEN
                line = StageCost(
                    stage, "generate", rows=len(asked), tokens=tokens, most_tokens_out=most, calls=len(asked)
                )
            else:
                line = self._local(stage, asked, sampling, subject)
            lines.append(line)
        return lines

    def _local(self, stage: str, asked: Sequence[GenerationRequest], sampling: Sampling, subject: Subject) -> StageCost:
        """The prompts in a pass, then token by token as many rows at once as the generator takes."""
        encoder = PromptEncoder(subject.model, subject.settings, subject.store.memo)
        found = [(row[1], room) for row, room in encoder.split(asked, sampling.max_new_tokens)[0]]
        if not found:
            return StageCost(stage, "generate")
        tokens, out = sum(len(ids) for ids, _ in found), sum(room for _, room in found)
        hf, dtype = encoder.tokenizer.hf, subject.host.local().dtype
        return StageCost(
            stage,
            "generate",
            rows=len(found),
            tokens=tokens,
            most_tokens_out=out,
            flops=2.0 * encoder.source.parameters * (tokens + out),
            seconds=writing_seconds(self.machine, encoder.source, hf, found, dtype),
        )

    def _judged(
        self, stage: str, suite: GeneralSuite, config: EvalConfig, subject: Subject, unmade: Source | None
    ) -> list[StageCost]:
        filler = _Filler(make_generator(config.generator, subject), new=unmade is not None)
        lines: list[StageCost] = []
        with tempfile.TemporaryDirectory() as folder:
            if suite.reference and is_model(suite.reference):
                place = Path(folder, "reference.json")
                lines += self._reference(f"{stage}, reference", suite, config, subject, place)
                suite = replace(suite, reference=str(place))
            matches = suite.matches(replace(subject, generator=filler))
        referee = _Tally(suite.judge, subject, suite.waits, suite.judge_max_tokens)
        suite.judge_open(matches, referee)
        lines += self._written(stage, filler, config, subject)
        if referee.rows:
            line = StageCost(
                stage,
                "judge",
                rows=referee.rows,
                tokens=referee.tokens,
                most_tokens_out=referee.most,
                calls=referee.rows if referee.endpoint else 0,
                seconds=self._judge_seconds(referee),
                estimated=True,
            )
            paid = referee.endpoint is not None and self.price is not None
            lines.append(replace(line, most_price=price_of(line, self.price)) if paid and self.price else line)
        return lines

    def _reference(
        self, stage: str, suite: GeneralSuite, config: EvalConfig, subject: Subject, place: Path
    ) -> list[StageCost]:
        """The answers of the model that ours are compared with; a file of long ones takes their place."""
        where = str(suite.reference)
        writer = config.model_copy(update={"generator": where if parse_judge(where) else "hf"})
        subject = replace(subject, model=parse_model(where))
        filler = _Filler(make_generator(writer.generator, subject), new=False)
        items = [item for path in suite.files.values() for item in read_items(path, suite.limit)]
        said = filler.write([Prompt(item.question) for item in items], suite.sampling)
        rows = [{"instruction": item.question, "output": text} for item, (text,) in zip(items, said, strict=True)]
        write_json(place, rows)
        return self._written(stage, filler, writer, subject)

    def _judge_seconds(self, referee: _Tally) -> float:
        if referee.source is None:
            return 0.0
        dtype = referee.resident.dtype
        tokenizer = load_tokenizer(referee.source, referee.subject.settings.template_date)
        prompts = [[tokenizer.hf.eos_token_id or 0] * 16] * JUDGE_ROWS
        token_s = self.machine.writing(referee.source, tokenizer.hf, prompts, dtype)
        return token_s * referee.most / JUDGE_ROWS


class _Filler:
    """Answers that are kept, and words of the greatest length in place of the others, which it remembers."""

    def __init__(self, generator: Generator, *, new: bool) -> None:
        self.generator, self.name, self.new = generator, generator.name, new
        self.lacking: list[tuple[list[GenerationRequest], Sampling]] = []

    def write(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[str]]:
        rows = self.generator.requests(prompts, sampling)
        kept = {} if self.new else {one.key: self.generator.written[one.key] for row in rows for one in row}
        lacking = {one.key: one for row in rows for one in row if not kept.get(one.key)}
        if lacking:
            self.lacking.append((list(lacking.values()), sampling))
        filling = "word" * sampling.max_new_tokens
        said = [[str(kept[one.key][-1].text) if kept.get(one.key) else filling for one in row] for row in rows]
        return [row * (sampling.n // len(row)) for row in said]


class _Tally(LLMJudge):
    """Counts the questions that a judge has not answered, and asks none."""

    rows = tokens = most = 0

    def _work(self, sheet: Any, work: Any, names: Any, rows: Any, label: str, lost: Any) -> None:
        self.rows += len(work)
        texts = (sheet.system + rows[names[question.row]].text for question in work)
        self.tokens += sum(map(len, texts)) // LETTERS_PER_TOKEN
        self.most += len(work) * sheet.max_tokens


def _nobody(line: str) -> None:
    """Takes what the run itself will say."""
