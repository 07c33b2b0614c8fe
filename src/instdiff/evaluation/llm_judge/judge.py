"""A judge is asked, and every answer is kept as it comes: what was paid for is not asked for again.

Answers lie in a jsonl file, by the judge's model, the words of the question and the order in which two answers stand
in it. An answer that cannot be read is kept too; the question is asked again with a reminder as often as the judge
allows, over all runs together, and has no verdict after that. A question that no answer came for is tried again by the
next run. Evaluations that run at once share the questions.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from instdiff.core.files import fingerprint
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.engine.text.batches import BatchEndpoint
from instdiff.engine.text.endpoint import Endpoint
from instdiff.engine.text.forms import WARM, WAYS
from instdiff.engine.text.judge import Answer, Question, Writes, parse_judge
from instdiff.engine.text.local_judge import Writer
from instdiff.evaluation.llm_judge.parsing import Weighed, preference, rating, two_scores, verdict
from instdiff.evaluation.subject import Subject
from instdiff.rendering.questions import questions
from instdiff.scoring.models import parse_model
from instdiff.store.answers import AnswerCache
from instdiff.store.claims import Claims

WAY = 1
"""A change of how judges are asked gets another number, so that old answers are not taken for new ones."""
SHARE = 4
"""A model of this machine has one in so many places of its context for its answer, where it is short."""
UNPARSABLE, NO_ANSWER = "unparsable", "no_answer"
REFUSABLE = {"tokens": WAYS["tokens"], "temperature": WAYS["temperature"], "logprobs": (r"logprobs", 2)}
_JINJA = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True)
class JudgePrompt:
    """How a judge is asked for one kind of verdict.

    Args:
        prompts: the file of the question, as ``questions`` finds it.
        read: the verdict in an answer, or None.
        reminder: is added where an answer could not be read.
        max_tokens: of an answer.
        logprobs: of how many tokens at each place the probabilities are asked for.
    """

    prompts: str
    read: Callable[[str], Any]
    reminder: str
    max_tokens: int = 1024
    logprobs: int = 0

    @property
    def system(self) -> str:
        """The system message."""
        return questions(self.prompts).system

    def ask(self, **told: Any) -> str:
        """The question about these answers."""
        return _JINJA.from_string(questions(self.prompts).prompts[0]).render(told)


PAIR = JudgePrompt(
    "pairwise",
    two_scores,
    "The first line must hold two numbers from 1 to 10 with a space between them, and nothing else.",
)
PREFERENCE = JudgePrompt("preference", preference, "Write one letter alone: m or M", max_tokens=8, logprobs=5)
ARENA = JudgePrompt(
    "arena",
    verdict,
    "End with exactly one verdict: [[A>>B]], [[A>B]], [[A=B]], [[B>A]] or [[B>>A]].",
    max_tokens=4096,
)
RATING = JudgePrompt("rating", rating, "End with one rating from 1 to 10 in double brackets, for example [[5]].", 2048)


class JudgeRequest(NamedTuple):
    """A question, and which of two orders its answers stand in."""

    text: str
    order: int = 0


class Verdict(NamedTuple):
    """A verdict, or one word why there is none."""

    value: Any
    reason: str | None = None


def _read_answer(line: dict[str, Any]) -> Answer:
    tokens = [(token, tops) for token, tops in line.get("tokens", ())]
    return Answer(Weighed.of(line["text"], tokens), "", int(line["prompt_tokens"]), int(line["completion_tokens"]))


def _line(key: str, judge: str, ask: JudgeRequest, answer: Answer) -> dict[str, Any]:
    assert answer.text is not None
    told: dict[str, Any] = {"key": key, "judge": judge, "order": ask.order, "text": str(answer.text)}
    if isinstance(answer.text, Weighed):
        told["tokens"] = answer.text.tokens
    return told | {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}


class Reviewing:
    """How an endpoint is asked for a verdict: a form of ``Endpoint``."""

    who = "the judge's server"
    path = "/chat/completions"
    ways = REFUSABLE

    def __init__(self, sheet: JudgePrompt) -> None:
        self.sheet = sheet

    def body(self, question: Question, text: str, system: str, ways: dict[str, int]) -> dict[str, Any]:
        """A system turn where there is one, and the question."""
        messages = [{"role": "system", "content": system}] if system else []
        return self._body([*messages, {"role": "user", "content": text}], WARM if question.attempt else 0.0, ways)

    def probe(self, ways: dict[str, int]) -> dict[str, Any]:
        """A question that every judge can answer."""
        return self._body([{"role": "user", "content": "Answer with the letter m."}], 0.0, ways)

    def read(self, body: dict[str, Any]) -> Any:
        """What the message says, with the probabilities where there are any."""
        choice = body["choices"][0]
        text = choice["message"].get("content")
        tokens = _tokens(choice) if self.sheet.logprobs else []
        return Weighed.of(text, tokens) if isinstance(text, str) and tokens else text

    def enough(self, text: str) -> bool:
        """Never: a verdict may come last."""
        return False

    def _body(self, messages: list[dict[str, str]], temperature: float, ways: dict[str, int]) -> dict[str, Any]:
        asked: dict[str, Any] = {"messages": messages}
        asked[("max_tokens", "max_completion_tokens")[ways["tokens"]]] = self.sheet.max_tokens
        if ways["temperature"] == 0:
            asked["temperature"] = temperature
        if self.sheet.logprobs and ways["logprobs"] == 0:
            asked |= {"logprobs": True, "top_logprobs": self.sheet.logprobs}
        return asked


def _tokens(choice: dict[str, Any]) -> list[tuple[str, dict[str, float]]]:
    """The tokens that a reply weighs; none where it does not, or not as it should."""
    try:
        places = (choice.get("logprobs") or {}).get("content") or []
        return [
            (str(place["token"]), {str(top["token"]): float(top["logprob"]) for top in place["top_logprobs"]})
            for place in places
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return []


@dataclass(frozen=True)
class Waits:
    """How an endpoint is waited for: see ``Endpoint``."""

    concurrency: int = 8
    timeout: float = 120.0
    tries: int = 5
    pause: float = 1.0


class LLMJudge:
    """A judge as one subject's suites ask it.

    Args:
        where: ``openai:MODEL@URL``, or a model as everywhere.
        subject: whose answers are judged; its folder holds the judgements, its bill the cost.
        waits: for endpoints.
        max_tokens: of an answer; by default as many as each question needs.
        batch: ask by the batch API of the judge's server.

    Raises:
        ConfigError: the address of the judge is faulty, or it has no server to batch.
        EngineError: the model is not there.
    """

    def __init__(
        self,
        where: str,
        subject: Subject,
        waits: Waits | None = None,
        max_tokens: int | None = None,
        batch: bool = False,
    ) -> None:
        self.subject, self.waits, self.max_tokens, self.batch = subject, waits or Waits(), max_tokens, batch
        self.endpoint, self.source = parse_judge(where), None
        if self.endpoint is not None:
            self.name = self.model = self.endpoint.model
            self.attempts = Endpoint.attempts
        else:
            self.source = resolve(parse_model(where), subject.store.memo)
            self.resident = subject.host.local()
            dtype = str(self.resident.dtype).removeprefix("torch.")
            tokenizer = load_tokenizer(self.source, subject.settings.template_date)
            self.name = where
            self.model = f"{self.source.fingerprint}+{tokenizer.fingerprint}+{dtype}"
            self.attempts = Writer.attempts
        path = subject.folder / f"judgements-{fingerprint('judge', WAY, self.model)}.jsonl"
        self.answers = AnswerCache(path, _read_answer)

    def ask(self, sheet: JudgePrompt, asked: Sequence[JudgeRequest], label: str) -> list[Verdict]:
        """The verdict on each question.

        Raises:
            EngineError: the judge is away or refuses; what it answered is kept.
        """
        sheet = replace(sheet, max_tokens=self.max_tokens or sheet.max_tokens)
        keys = [self._key(sheet, ask) for ask in asked]
        rows = dict(zip(keys, asked, strict=True))  # equal questions are asked once
        names = list(rows)
        work = deque(Question(row, len(self.answers[key])) for row, key in enumerate(names) if self._open(sheet, key))
        lost: dict[str, str] = {}
        if work:
            self._work(sheet, work, names, rows, label, lost)
            self.answers.refresh()  # of questions that another evaluation asked meanwhile
        found = {key: _verdict(sheet, self.answers[key]) for key in names}
        self._account([answer for key in names for answer in self.answers[key]])
        self._sum_up(label, found, lost)
        return [found[key] for key in keys]

    def _work(
        self,
        sheet: JudgePrompt,
        work: deque[Question],
        names: list[str],
        rows: dict[str, JudgeRequest],
        label: str,
        lost: dict[str, str],
    ) -> None:
        def say(question: Question) -> str:
            text = rows[names[question.row]].text
            return f"{text}\n\n{sheet.reminder}" if question.attempt else text

        task = self.subject.progress.task(label, rows=len(names), tokens=0, cached=len(names) - len(work))
        with task as advance, self._load(sheet, names) as writer:
            for got in writer.answers(work, say, sheet.system):
                for question, answer in got:
                    key = names[question.row]
                    if answer.text is None:
                        lost[key] = answer.reason
                    else:
                        self.answers.keep([_line(key, self.name, rows[key], answer)])
                        if self._open(sheet, key):
                            work.appendleft(Question(question.row, question.attempt + 1))
                            continue
                    advance(1, answer.prompt_tokens + answer.completion_tokens)

    def _key(self, sheet: JudgePrompt, ask: JudgeRequest) -> str:
        return fingerprint("judgement", WAY, self.model, sheet.system, sheet.max_tokens, ask.text, ask.order)

    def _open(self, sheet: JudgePrompt, key: str) -> bool:
        """Whether it should still be asked."""
        kept = self.answers[key]
        return len(kept) < self.attempts and _verdict(sheet, kept).value is None

    @contextmanager
    def _load(self, sheet: JudgePrompt, names: list[str]) -> Iterator[Writes]:
        log = self.subject.log
        if self.endpoint is not None:

            def lacks(row: int) -> bool:
                self.answers.refresh()
                return self._open(sheet, names[row])

            with closing(Claims(self.subject.folder, lambda row: names[row], lacks, log)) as claims:
                kind = BatchEndpoint if self.batch else Endpoint
                yield kind(self.endpoint, log, form=Reviewing(sheet), claims=claims, **asdict(self.waits))
            return
        assert self.source is not None
        tokenizer = load_tokenizer(self.source, self.subject.settings.template_date)
        room = (tokenizer.max_length or SHARE * sheet.max_tokens) // SHARE
        with self.resident.use(self.source) as model:
            yield Writer(self.name, model, tokenizer, log, max_tokens=min(sheet.max_tokens, room))

    def _account(self, answers: list[Answer]) -> None:
        """The bill counts every answer that is used, also those of an earlier run."""
        self.subject.spend("judge_calls", len(answers))
        self.subject.spend("judge_prompt_tokens", sum(answer.prompt_tokens for answer in answers))
        self.subject.spend("judge_completion_tokens", sum(answer.completion_tokens for answer in answers))

    def _sum_up(self, label: str, found: dict[str, Verdict], lost: dict[str, str]) -> None:
        bad = sum(one.reason == UNPARSABLE for one in found.values())
        self.subject.log(
            f"{label}: judge {self.name} was asked {len(found)} questions, {bad} of them without a usable verdict"
        )
        if lost:
            first = next(iter(lost.values()))
            self.subject.log(f"warning: judge {self.name} did not answer {len(lost)} questions (first: {first})")


def _verdict(sheet: JudgePrompt, answers: Sequence[Answer]) -> Verdict:
    """The first verdict in the answers to a question."""
    for answer in answers:
        value = sheet.read(answer.text or "")
        if value is not None:
            return Verdict(value)
    return Verdict(None, UNPARSABLE if answers else NO_ANSWER)
