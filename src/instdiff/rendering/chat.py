"""A conversation under a chat template: rendered once, whole; and where in that text each turn's words lie.

A *piece* is a text of the row inside a turn. A second rendering has a placeholder in the place of each piece; what
stands between the placeholders is the template's own *fixed text*. Laid on the first rendering it tells where the
pieces are, character for character. Nothing is searched for in what the template wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

from instdiff.data import Message, Sample, Turns
from instdiff.rendering.bounded import ENDLESS_ROWS, EndlessTemplateError
from instdiff.rendering.templates import ChatTemplate, Kind, learns_answer, learns_calls, thought_in
from instdiff.rendering.training_templates import GENERATION, training_template

Turn = dict[str, Any]
Span = tuple[int, int]


class Unscorable(Exception):
    """A sample that has no row: a reason of one word, and what the template said."""

    def __init__(self, reason: str, said: str = "") -> None:
        super().__init__(reason)
        self.reason, self.said = reason, said


class Writer(Protocol):
    """What renders chat templates."""

    def template_for(self, layout: ChatTemplate, tools: bool) -> str:
        """The Jinja text; a ConfigError where there is none."""

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        jinja: str | None = None,
        ask: bool = False,
        values: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation; whatever the template raises."""

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, jinja: str, values: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        """The same, and what lies in each of the template's generation marks."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text of the row in turn ``turn``, of one of four kinds; ``other`` is what nobody learns."""

    turn: int
    kind: Literal["thought", "answer", "call", "other"]
    text: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where a piece stands in the rendering."""

    piece: Piece
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Closing:
    """Fixed text after a stretch of a turn, in which its end lies.

    ``before`` is what stands in it before the end token. ``usual`` is the text that closes turns under this template.
    ``inner`` is the template's text between the stretch's pieces.
    """

    start: int
    stop: int
    before: Kind
    usual: str
    inner: tuple[Span, ...] = ()


@dataclass
class Draft:
    """A rendered conversation, with the spans of its text that are learnt; the ends of turns are found among tokens."""

    text: str
    spans: list[tuple[int, int, Kind]] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)


@dataclass(frozen=True)
class Traits:
    """What a template does, whatever the row.

    ``prompts`` are the texts by which it asks for an answer, the longest first; ``closing`` is what all assistant turns
    are closed with; ``parts`` where it wants contents as lists of parts.
    """

    prompts: tuple[str, ...]
    closing: str
    parts: bool


@dataclass
class _Form:
    """How a row is put into the template's words."""

    jinja: str
    tools: list[Any] | None
    values: dict[str, Any]
    parts: bool
    plain_arguments: bool = False


class ChatRenderer:
    """Renders samples under one template; ``notes`` counts what the log should say, with the first place of each."""

    def __init__(self, writer: Writer, layout: ChatTemplate, how: Turns) -> None:
        self.writer, self.layout, self.how = writer, layout, how
        self.notes: dict[tuple[str, str], int] = {}
        self._traits: dict[tuple[str, str], Traits] = {}
        self._endless = 0

    def draft(self, sample: Sample) -> Draft:
        """The sample's rendering; an Unscorable says why there is none.

        An EndlessTemplateError where small conversations or several rows have no end.
        """
        tools = tools_of(sample)
        self._check(sample)
        jinja = self.writer.template_for(self.layout, bool(tools))
        traits = self.traits(jinja, sample.template_values)
        form = _Form(jinja, tools, _values(sample), traits.parts)
        sample, text = self._render(sample, form)
        places = self._locate(sample, form, text)
        return _Marker(self, sample, text, places, traits).draft()

    def note(self, what: str, detail: str = "", count: int = 1) -> None:
        """Count something that the log should say."""
        self.notes[what, detail] = self.notes.get((what, detail), 0) + count

    def traits(self, jinja: str, values: str = "") -> Traits:
        """What the template does, found once by small conversations."""
        if (jinja, values) not in self._traits:
            self._traits[jinja, values] = _find_traits(self.writer, jinja, json.loads(values) if values else {})
        return self._traits[jinja, values]

    def _check(self, sample: Sample) -> None:
        """Raises where nothing is to be learnt, or a turn that is says nothing."""
        messages, targets = sample.messages, self.how.targets
        some = False
        for at, turn in enumerate(messages):
            answer, calls = learns_answer(messages, at, targets), learns_calls(messages, at, targets)
            some |= answer or calls
            if answer and not calls and not turn.content.strip():
                if not turn.reasoning or self.how.reasoning == "drop":
                    raise Unscorable("empty_response")
                some &= self.how.reasoning == "learn"
        if not some:
            if any(turn.calls for turn in messages) and targets != "all+calls":
                self.note("only_calls")
            raise Unscorable("no_target")

    def _render(self, sample: Sample, form: _Form) -> tuple[Sample, str]:
        """The text, and the sample as it was shown: its system text may have been folded."""
        try:
            return sample, self._write(sample, form)
        except EndlessTemplateError as error:
            self._endless += 1
            if self._endless == ENDLESS_ROWS:
                raise
            raise Unscorable("unrenderable", _first_line(error)) from None
        except TypeError as error:
            if any(turn.calls for turn in sample.messages) and not form.plain_arguments:
                form.plain_arguments = True
                return self._render(sample, form)
            raise Unscorable("unrenderable", _first_line(error)) from None
        except Exception as error:  # noqa: BLE001 - a template raises what it likes
            if self.how.system == "fold" and any(turn.role == "system" for turn in sample.messages):
                self.note("folded")
                return self._render(fold_system(sample), form)
            raise Unscorable("unrenderable", _first_line(error)) from None

    def _write(self, sample: Sample, form: _Form, swap: Callable[[Piece], str] | None = None) -> str:
        turns = messages_of(sample, self.how, form, swap)
        return self.writer.render(turns, form.tools, jinja=form.jinja, values=form.values)

    def _locate(self, sample: Sample, form: _Form, text: str) -> list[Place] | None:
        """Where the pieces are: by placeholders for all words, else for assistant turns alone, else within marks."""
        for others in (True, False):
            stand_ins = StandIns(text, form.jinja, others)
            try:
                laid = self._write(sample, form, stand_ins.put)
            except Exception:  # noqa: BLE001 - a template may look into what is said
                continue
            found = align(text, stand_ins.split(laid))
            if found is not None:
                return found
        return self._locate_in_marks(sample, form, text)

    def _locate_in_marks(self, sample: Sample, form: _Form, text: str) -> list[Place] | None:
        jinja = form.jinja if GENERATION.search(form.jinja) else training_template(form.jinja)
        if jinja is None:
            return None
        stand_ins = StandIns(text, jinja, False)
        laid_turns = messages_of(sample, self.how, form, stand_ins.put)
        try:
            whole, spans = self.writer.render_marked(
                messages_of(sample, self.how, form), form.tools, jinja, form.values
            )
            laid, others = self.writer.render_marked(laid_turns, form.tools, jinja, form.values)
        except Exception:  # noqa: BLE001 - the same
            return None
        turns = sum(turn.role == "assistant" for turn in sample.messages)
        if whole != text or not len(spans) == len(others) == turns:
            return None
        places: list[Place] = []
        for (start, end), (a, b) in zip(spans, others, strict=True):
            found = align(text[start:end], stand_ins.split(laid[a:b]))
            places += [Place(p.piece, p.start + start, p.end + start) for p in found or []]
        return places or None


def tools_of(sample: Sample) -> list[Any] | None:
    """The tools on offer as objects; Unscorable where they are no list of objects."""
    if not sample.tools:
        return None
    try:
        tools = json.loads(sample.tools)
    except ValueError:
        raise Unscorable("bad_tools", sample.tools) from None
    tools = [tools] if isinstance(tools, dict) else tools
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise Unscorable("bad_tools", sample.tools)
    return tools or None


def fold_system(sample: Sample) -> Sample:
    """The sample whose system text stands before the first user turn's."""
    system = "\n\n".join(turn.content for turn in sample.messages if turn.role == "system")
    turns = [turn for turn in sample.messages if turn.role != "system"]
    first = next((at for at, turn in enumerate(turns) if turn.role == "user"), None)
    if first is not None:
        turns[first] = replace(turns[first], content=f"{system}\n\n{turns[first].content}")
    return replace(sample, messages=tuple(turns))


def _values(sample: Sample) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(sample.template_values) if sample.template_values else {}
    return values


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


# ── what the template is given ────────────────────────────────────────────────────────────────────────────────────────


def messages_of(sample: Sample, how: Turns, form: _Form, swap: Callable[[Piece], str] | None = None) -> list[Turn]:
    """The turns as chat templates know them, each piece as ``swap`` has it."""
    put = swap or (lambda piece: piece.text)
    out = []
    for at, message in enumerate(sample.messages):
        if message.role == "assistant":
            turn = _assistant_turn(message, at, how, form, put)
        else:
            text = message.content + (f"\n{message.input}" if message.input else "")
            turn = {"role": message.role, "content": put(Piece(at, "other", text)) if text.strip() else text}
            turn |= {"tool_call_id": message.call_id} if message.call_id else {}
            turn |= {"name": message.name} if message.name else {}
        if form.parts:
            turn["content"] = [{"type": "text", "text": turn["content"]}]
        out.append(turn)
    return out


def request_of(sample: Sample, how: Turns) -> dict[str, Any]:
    """A conversation as servers take it: ``messages``, and ``tools`` where there are some that are objects."""
    with suppress(Unscorable):
        tools = tools_of(sample)
        form = _Form("", tools, {}, parts=False, plain_arguments=True)
        return {"messages": messages_of(sample, how, form), **({"tools": tools} if tools else {})}
    return {"messages": messages_of(sample, how, _Form("", None, {}, parts=False, plain_arguments=True))}


def _assistant_turn(message: Message, at: int, how: Turns, form: _Form, put: Callable[[Piece], str]) -> Turn:
    head, content = "", message.content
    block = thought_in(content)
    if block is not None:
        content = content[block.end() :]
        inner = block[1].strip()
        if how.reasoning != "drop":
            a = block.start(1) + block[1].index(inner)
            said = put(Piece(at, "thought", inner)) if inner else ""
            head = message.content[:a] + said + message.content[a + len(inner) : block.end()]
    turn: Turn = {"role": "assistant"}
    if message.reasoning and how.reasoning != "drop":
        thought = put(Piece(at, "thought", message.reasoning)) if message.reasoning.strip() else message.reasoning
        turn |= {"reasoning_content": thought, "thinking": thought, "reasoning": thought}
    turn["content"] = head + (put(Piece(at, "answer", content)) if content.strip() else content)
    if message.calls:
        turn["tool_calls"] = calls = []
        for call in message.calls:

            def put_call(text: str) -> str:
                return put(Piece(at, "call", text)) if text.strip() else text

            arguments: Any = _swap_texts(call.arguments, put_call)
            if form.plain_arguments and not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            calls.append(
                {
                    "type": "function",
                    **({"id": call.id} if call.id else {}),
                    "function": {"name": put_call(call.name), "arguments": arguments},
                }
            )
    return turn


def _swap_texts(value: Any, put: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return put(value)
    if isinstance(value, Mapping):
        return {key: _swap_texts(item, put) for key, item in value.items()}
    return [_swap_texts(item, put) for item in value] if isinstance(value, list) else value


# ── placeholders, and where they lead to ──────────────────────────────────────────────────────────────────────────────


class StandIns:
    """Placeholders for pieces: letters and digits that are found neither in the row nor in the template."""

    def __init__(self, text: str, jinja: str, others: bool) -> None:
        stem = "zq"
        while stem in text or stem in jinja:
            stem += "xjkvw"[len(stem) % 5]
        self.stem, self.others = stem, others
        self.pieces: list[Piece] = []

    def put(self, piece: Piece) -> str:
        """The placeholder of a piece."""
        if piece.kind == "other" and not self.others:
            return piece.text
        self.pieces.append(piece)
        return f"{self.stem}{len(self.pieces) - 1}z"

    def split(self, laid: str) -> tuple[list[str], list[Piece]]:
        """Fixed texts, one more than there are pieces, and the pieces between them."""
        found = re.split(rf"{self.stem}(\d+)z", laid)
        return found[::2], [self.pieces[int(number)] for number in found[1::2]]


def align(text: str, laid: tuple[list[str], list[Piece]]) -> list[Place] | None:
    """The places of pieces between fixed texts that together give the text; None where they do not, or in two ways."""
    fixed, pieces = laid
    if not pieces:
        return [] if text == fixed[0] else None
    spans = _put_back(text, fixed, pieces) or _between_neighbours(text, fixed)
    return None if spans is None else [Place(p, *span) for p, span in zip(pieces, spans, strict=True)]


def _put_back(text: str, fixed: list[str], pieces: list[Piece]) -> list[Span] | None:
    if not text.startswith(fixed[0]):
        return None
    at, spans = len(fixed[0]), list[Span]()
    for piece, after in zip(pieces, fixed[1:], strict=True):
        last = len(spans) == len(pieces) - 1
        for shown in _spellings(piece.text):
            end = at + len(shown)
            if (
                text.startswith(shown, at)
                and text.startswith(after, end)
                and (not last or end + len(after) == len(text))
            ):
                break
        else:
            return None
        spans.append((at, end))
        at = end + len(after)
    return spans


def _spellings(text: str) -> list[str]:
    """A piece as templates write it: as it is, without white space at its edges, as JSON text."""
    edges = [text, text.strip(), text.rstrip(), text.lstrip(), text.strip("\n"), text.rstrip("\n"), text.lstrip("\n")]
    plain = dict.fromkeys(edges)
    return [*plain, *(json.dumps(t, ensure_ascii=ascii)[1:-1] for ascii in (False, True) for t in plain)]


def _between_neighbours(text: str, fixed: list[str]) -> list[Span] | None:
    """Spans between fixed texts that stand in the text in their order, if there is exactly one way."""
    if not (text.startswith(fixed[0]) and text.endswith(fixed[-1])) or not all(fixed[1:-1]):
        return None
    first, last = len(fixed[0]), len(text) - len(fixed[-1])
    forward, at = [], first
    for part in fixed[1:-1]:
        if (found := text.find(part, at, last)) < 0:
            return None
        forward.append(found)
        at = found + len(part)
    backward, at = [], last
    for part in reversed(fixed[1:-1]):
        at = text.rfind(part, first, at)
        backward.append(at)
    if first > last or forward != backward[::-1]:
        return None
    starts = [first, *(at + len(part) for at, part in zip(forward, fixed[1:-1], strict=True))]
    return list(zip(starts, [*forward, last], strict=True))


# ── which parts of the text are learnt ────────────────────────────────────────────────────────────────────────────────

_THOUGHT_ENDS = re.compile(r"</[\w|-]*think[\w|-]*>\s*|\[/THINK\]\s*", re.IGNORECASE)


class _Marker:
    """Says of each turn's text what is header, response and closing."""

    def __init__(
        self, renderer: ChatRenderer, sample: Sample, text: str, places: list[Place] | None, traits: Traits
    ) -> None:
        self.note, self.how, self.sample, self.text = renderer.note, renderer.how, sample, text
        self.places, self.traits = places or [], traits
        self.out = Draft(text)

    def draft(self) -> Draft:
        """The spans that are learnt; Unscorable where a turn to learn is not shown."""
        seen: set[int] = set()
        own: dict[int, list[int]] = {}
        for number, place in enumerate(self.places):
            # A piece that a template shows again, as the name of a tool beside its result, is not said again.
            if id(place.piece) not in seen:
                seen.add(id(place.piece))
                own.setdefault(place.piece.turn, []).append(number)
        self._count_unshown(own)
        for turn, numbers in own.items():
            if self.sample.messages[turn].role == "assistant":
                for stretch in self._stretches(numbers):
                    self._mark(turn, stretch)
        return self.out

    def _count_unshown(self, own: dict[int, list[int]]) -> None:
        messages, targets = self.sample.messages, self.how.targets
        for at, message in enumerate(messages):
            shown = {self.places[number].piece.kind for number in own.get(at, ())}
            if message.role == "assistant":
                answer, calls = learns_answer(messages, at, targets), learns_calls(messages, at, targets)
                if (answer and not shown) or (calls and "call" not in shown):
                    raise Unscorable("rewritten")
                self._count_parts(message, shown)
            elif message.role == "system" and self.places and not shown and message.content not in self.text:
                self.note("system")

    def _count_parts(self, message: Message, shown: AbstractSet[str]) -> None:
        block = thought_in(message.content)
        thought = bool(message.reasoning.strip()) or bool(block and block[1].strip())
        if thought and self.how.reasoning == "drop":
            self.note("dropped")
        elif thought and "thought" not in shown:
            self.note("thoughts")
        if message.calls and "call" not in shown:
            self.note("calls")
        if message.content[block.end() if block else 0 :].strip() and "answer" not in shown:
            self.note("answers")

    def _stretches(self, numbers: list[int]) -> list[list[int]]:
        """A turn's places in the order of the text, parted where somebody else's words lie between."""
        out = [[numbers[0]]]
        for before, after in pairwise(numbers):
            between = (self.places[n].piece for n in range(before + 1, after))
            turn = self.places[after].piece.turn
            out.append([after]) if any(piece.turn != turn for piece in between) else out[-1].append(after)
        return out

    def _learnt(self, turn: int) -> dict[str, bool]:
        messages, targets = self.sample.messages, self.how.targets
        answer, call = learns_answer(messages, turn, targets), learns_calls(messages, turn, targets)
        return {"answer": answer, "call": call, "thought": self.how.reasoning == "learn" and (answer or call)}

    def _mark(self, turn: int, stretch: list[int]) -> None:
        learnt, places = self._learnt(turn), [self.places[number] for number in stretch]
        begin = self.places[stretch[0] - 1].end if stretch[0] else 0
        self._spot_empty_thought(places[0], begin)
        at, open_ = begin, False
        for number, place in enumerate(places):
            if learnt[place.piece.kind]:
                if open_:
                    self._put(at, place.start, Kind.RESPONSE)
                else:
                    self._open(at, place, None if number == 0 else places[number - 1])
                self._put(place.start, place.end, Kind.RESPONSE)
            open_, at = learnt[place.piece.kind], place.end
        if any(learnt[place.piece.kind] for place in places):
            self._close(places, stretch[-1], learnt)

    def _open(self, at: int, place: Place, before: Place | None) -> None:
        """What stands before a piece that is learnt, after one that is not or after the turn's header."""
        fixed = self.text[at : place.start]
        opening = self._opening(place.piece) if place.piece.kind == "thought" else ""
        own = len(fixed) - len(opening) if opening and fixed.endswith(opening) else None
        start = next((fixed.rfind(p) + len(p) for p in self.traits.prompts if p in fixed), None)
        if start is None and before is not None and place.piece.kind == "call":
            start = 0
            if before.piece.kind == "thought" and (mark := _THOUGHT_ENDS.match(fixed.lstrip())):
                start = len(fixed) - len(fixed.lstrip()) + mark.end()
        start = own if start is None else start
        if start is None:
            return
        rest = fixed[start:]
        head = len(rest) if place.piece.kind == "answer" else len(rest) - len(rest.lstrip())
        head = head if own is None else max(0, own - start)
        self._put(at + start, at + start + head, Kind.HEAD)
        self._put(at + start + head, place.start, Kind.RESPONSE)

    def _opening(self, piece: Piece) -> str:
        """What the row itself writes before a thought within its content."""
        message = self.sample.messages[piece.turn]
        block = None if message.reasoning else thought_in(message.content)
        return message.content[: block.start(1) + block[1].index(piece.text)] if block else ""

    def _close(self, places: list[Place], number: int, learnt: dict[str, bool]) -> None:
        last, inner = places[-1], tuple((a.end, b.start) for a, b in pairwise(places))
        stop = self.places[number + 1].start if number + 1 < len(self.places) else len(self.text)
        before = Kind.END
        if last.piece.kind == "call":
            before = Kind.RESPONSE if learnt["call"] else Kind.CONTEXT
        self.out.closings.append(Closing(last.end, stop, before, self.traits.closing, inner))
        said, closing = last.piece.text.rstrip(), self.traits.closing.strip()
        if closing and last.piece.kind == "answer" and said.endswith(closing):
            self.note("second_end")

    def _spot_empty_thought(self, first: Place, begin: int) -> None:
        message = self.sample.messages[first.piece.turn]
        if first.piece.kind == "thought" and not message.reasoning and "</think>" in self.text[begin : first.start]:
            self.note("empty_thought")

    def _put(self, start: int, end: int, kind: Kind) -> None:
        if start < end:
            self.out.spans.append((start, end, kind))


# ── what a template does ──────────────────────────────────────────────────────────────────────────────────────────────


def _find_traits(writer: Writer, jinja: str, values: dict[str, Any]) -> Traits:
    """Ask a template for an answer, and see how it closes turns."""
    parts = _wants_parts(writer, jinja, values)

    def said(text: str) -> Any:
        return [{"type": "text", "text": text}] if parts else text

    question = [{"role": "user", "content": said("Why?")}]
    thinking: list[dict[str, Any]] = [{}, {"enable_thinking": True}, {"enable_thinking": False}]
    prompts = {_prompt(writer, question, jinja, {**values, **more}): None for more in thinking}
    words = ["zqa0z", "zqa1z", "zqa2z", "zqa3z"]
    talk = [{"role": role, "content": said(word)} for role, word in zip(("user", "assistant") * 2, words, strict=True)]
    try:
        text = writer.render(talk, jinja=jinja, values=values)
        ends = [text.index(word) + len(word) for word in words[1::2]]
        closing = _shared_start(text[ends[0] : text.index(words[2], ends[0])], text[ends[1] :])
    except EndlessTemplateError:
        raise
    except Exception:  # noqa: BLE001 - one that refuses this, or does not show it, closes nothing that can be known
        closing = ""
    return Traits(tuple(sorted(filter(None, prompts), key=len, reverse=True)), closing, parts)


def _prompt(writer: Writer, question: list[Turn], jinja: str, values: dict[str, Any]) -> str:
    try:
        plain, asked = (writer.render(question, jinja=jinja, ask=ask, values=values) for ask in (False, True))
    except EndlessTemplateError:
        raise
    except Exception:  # noqa: BLE001 - it may refuse a question alone
        return ""
    return asked[len(_shared_start(plain, asked)) :]


def _shared_start(a: str, b: str) -> str:
    return a[: next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))]


def _wants_parts(writer: Writer, jinja: str, values: dict[str, Any]) -> bool:
    word = "zqa0z"
    for content, wanted in ((word, False), ([{"type": "text", "text": word}], True)):
        try:
            if word in writer.render([{"role": "user", "content": content}], jinja=jinja, values=values):
                return wanted
        except EndlessTemplateError:
            raise
        except Exception:  # noqa: BLE001 - the other way is tried
            continue
    return False
