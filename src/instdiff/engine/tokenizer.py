"""A Hugging Face tokenizer behind the protocol that rendering needs."""

from __future__ import annotations

import datetime
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.files import fingerprint
from instdiff.core.settings import TEMPLATE_DATE
from instdiff.engine.direct_tokenizer import ask_for_memory
from instdiff.errors import ConfigError, EngineError
from instdiff.rendering.bounded import bounded_template, counting, render_template
from instdiff.rendering.chat_tokens import Placed
from instdiff.rendering.pieces import pieces
from instdiff.rendering.templates import ChatTemplate

_PROBES = ["A b\n\n c. ", "1 2\tx", "\u00e9\u4e2d a\U0001f600", "  <|x|> y"]
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SEPARATOR = "<|endoftext|>"
_ZERO = np.zeros(1, np.int64)


class HFTokenizer:
    """See ``tokenise.Tokenizer``. ``hf`` is the wrapped one; where files were read directly it is ``loaded`` on demand.

    ``template_date`` is the day that a chat template sees which asks for the date. ``stops`` are tokens beside the end
    token at which the model's generation configuration stops.
    """

    def __init__(
        self,
        hf: Any,
        max_length: int | None,
        *,
        template_date: datetime.date = TEMPLATE_DATE,
        stops: Iterable[int] = (),
        loaded: Callable[[], Any] | None = None,
    ) -> None:
        self._own, self._loaded, self.max_length, self.template_date = hf, loaded, max_length, template_date
        hf.model_max_length = int(1e12)  # lengths are ours to watch; the library only warns
        probe = hf("a")["input_ids"]
        self.eos: int | None = hf.eos_token_id
        self.bos: int | None = hf.bos_token_id if probe and probe[0] == hf.bos_token_id else None
        self.start: int | None = self._find_start()
        self._direct: dict[bool, bool] = {}
        self.stops = frozenset(stops) | ({self.eos} if self.eos is not None else set())

    @cached_property
    def hf(self) -> Any:
        """The library's tokenizer."""
        return self._own if self._loaded is None else self._loaded()

    @property
    def chat_template(self) -> Any:
        """The tokenizer's own: a text, or several by name."""
        return self._own.chat_template

    def _find_start(self) -> int | None:
        """BOS where the tokenizer adds it, else what parts documents.

        A token that opens turns is never it, whatever its name: the model has not seen plain text after it.
        """
        if self.bos is not None:
            return self.bos
        apart, named = self._own.convert_tokens_to_ids(SEPARATOR), self._own.bos_token_id
        if apart in self.specials:
            return int(apart)
        return self.eos if named is None or (named != self.eos and self._opens_turns(named)) else int(named)

    @property
    def start_text(self) -> str | None:
        """The text of ``start``."""
        return None if self.start is None else str(self._own.convert_ids_to_tokens(self.start))

    def _opens_turns(self, token: int) -> bool:
        """Whether the chat template writes it once for each turn."""
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        if not self._own.chat_template:
            return False
        from jinja2 import TemplateError

        try:
            text = self._own.apply_chat_template(turns, tokenize=False)
        except (TemplateError, LookupError, TypeError, ValueError):
            return False
        return bool(text.count(self._own.convert_ids_to_tokens(token)) > 1)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that decides how texts become tokens."""
        backend = self._own.backend_tokenizer.to_str() if hasattr(self._own, "backend_tokenizer") else repr(self._own)
        chat = str(self._own.chat_template)
        dated = [str(self.template_date)] if "strftime_now" in chat else []
        return fingerprint(backend, chat, self.bos, self.start, self.eos, self.max_length, *dated)

    @cached_property
    def specials(self) -> frozenset[int]:
        """All tokens that the vocabulary marks as special, named or not."""
        added = getattr(self._own, "added_tokens_decoder", {})
        return frozenset(self._own.all_special_ids) | {token for token, facts in added.items() if facts.special}

    @cached_property
    def longest(self) -> int:
        """Characters of the longest token."""
        return max(map(len, self._own.get_vocab()), default=1)

    # ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text; with ``special`` the tokenizer adds its own start and end tokens."""
        if not texts:
            return []
        if special not in self._direct:
            # The library wraps every token's place in the text as well, which nobody here asks for.
            some = texts[:16]
            there = hasattr(self._own, "backend_tokenizer")
            self._direct[special] = there and self._quickly(some, special) == self._slowly(some, special)
        return self._quickly(texts, special) if self._direct[special] else self._slowly(texts, special)

    def _slowly(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        found = self._own(list(texts), add_special_tokens=special, return_attention_mask=False)
        ids: list[list[int]] = found["input_ids"]
        return ids

    def _quickly(self, texts: Sequence[str], special: bool) -> list[list[int]]:
        backend = self._own.backend_tokenizer
        ask_for_memory(64 * sum(map(len, texts)))
        backend.no_truncation()
        backend.no_padding()
        return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=special)]

    def encode_placed(self, texts: Sequence[str]) -> list[Placed]:
        """The tokens of each text and where they lie in it."""
        if self._placing is None:
            return [self._place_slowly(text, ids) for text, ids in zip(texts, self.encode(texts), strict=True)]
        if self._sizes is None:
            return [_place(found) for found in self._placing.encode_batch(list(texts), add_special_tokens=False)]
        out: list[Placed] = []
        for text, ids in zip(texts, self.encode(texts), strict=True):
            ends = self._sizes[ids].cumsum() if ids else np.zeros(0, np.int64)
            if ids and ends[-1] != len(text.encode()):  # an unknown character, or a space that the tokenizer adds
                out.append(_place(self._placing.encode(text, add_special_tokens=False)))
            else:
                out.append(Placed(ids, np.concatenate([_ZERO, ends[:-1]]), ends, True))
        return out

    def locate(self, ids: Sequence[int]) -> tuple[str, npt.NDArray[np.int64]]:
        """The text of some tokens, and the character at which each of them starts in it."""
        text = str(self.hf.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        (placed,) = self.encode_placed([text])
        if placed.ids != list(ids):  # the text is one of other tokens too
            parts = pieces(self.hf, list(ids))
            return "".join(parts), np.cumsum([0, *map(len, parts)])[: len(parts)]
        if not placed.in_bytes or text.isascii():
            return text, placed.starts
        number = np.cumsum((np.frombuffer(text.encode(), np.uint8) & 0xC0) != 0x80) - 1
        return text, number[placed.starts]

    @cached_property
    def _placing(self) -> Any:
        """The tokenizer with the whole of each token's place: byte-level ones leave out white space at its edges."""
        if not hasattr(self._own, "backend_tokenizer"):
            return None
        from tokenizers import Tokenizer

        facts = json.loads(self._own.backend_tokenizer.to_str())
        facts["truncation"] = facts["padding"] = None
        processor = facts.get("post_processor") or {}
        for part in (processor, *processor.get("processors", ())):
            if "trim_offsets" in part:
                part["trim_offsets"] = False
        placing = Tokenizer.from_str(json.dumps(facts))
        same = [found.ids for found in placing.encode_batch(_PROBES, add_special_tokens=False)] == self.encode(_PROBES)
        return placing if same else None

    @cached_property
    def _sizes(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each token, where tokens laid end to end are the text; None for tokenizers that change texts.

        Places by sizes cost a third of those that the library works out.
        """
        facts = json.loads(self._placing.to_str())
        normaliser = facts.get("normalizer") or {}
        steps = normaliser.get("normalizers", [normaliser] if normaliser else [])
        if any(step.get("type") not in ("Replace", "Prepend") for step in steps):
            return None
        level = '"ByteLevel"' in json.dumps([facts.get("pre_tokenizer"), facts.get("decoder")])
        added = {token["id"] for token in facts.get("added_tokens", ())}
        vocabulary = self._placing.get_vocab(with_added_tokens=True)
        sizes = np.zeros(max(vocabulary.values(), default=0) + 1, np.int64)
        for token, number in vocabulary.items():
            if number in added:
                sizes[number] = len(token.encode())
            elif level:
                sizes[number] = len(token)
            else:
                sizes[number] = 1 if _BYTE.fullmatch(token) else len(token.replace("\u2581", " ").encode())
        for text, found in zip(_PROBES, self._placing.encode_batch(_PROBES, add_special_tokens=False), strict=True):
            ends = sizes[found.ids].cumsum()
            if ends[-1] == len(text.encode()) and text.isascii() and ends.tolist() != [b for _, b in found.offsets]:
                return None
        return sizes

    def _place_slowly(self, text: str, ids: list[int]) -> Placed:
        """Places without the tokenizer's help: a token starts where the text before it gives the tokens before it."""
        edges = [0]
        for number in range(1, len(ids)):
            shares = lambda end, least=number: _shared(self.encode([text[:end]])[0], ids) >= least  # noqa: E731
            edges.append(bisect_left(range(len(text)), True, lo=edges[-1], key=shares))
        places = np.array([*edges, len(text)], np.int64)
        return Placed(ids, places[: len(ids)], places[1 : len(ids) + 1], False)

    def option_ids(self, options: Sequence[str], before: str = "The answer is:\n") -> tuple[int, ...]:
        """The token that each option becomes after a text, as it is or, if that is not one token, after a space.

        An EngineError where an option is several tokens, changes those before it, or is the same token as another.
        """
        (head,) = self.encode([before])
        for space in ("", " "):
            rows = self.encode([before + space + option for option in options])
            ids = tuple(row[-1] for row in rows if len(row) == len(head) + 1 and row[:-1] == head)
            if len(set(ids)) == len(options):
                return ids
        found = ", ".join(f"'{option}' {row[len(head) :]}" for option, row in zip(options, rows, strict=True))
        raise EngineError(
            f"the tokenizer of '{self._own.name_or_path}' does not make one token of its own of each option "
            f"{', '.join(options)} (after a space: {found}), so their probabilities cannot be read; rate with another "
            "model, such as --model rater=WHERE"
        )

    # ── chat templates ────────────────────────────────────────────────────────────────────────────────────────────────

    def template_for(self, layout: ChatTemplate | None = None, tools: bool = False) -> str:
        """The Jinja text that renders a row; of a set of templates ``tool_use`` where it has tools, else ``default``.

        A ConfigError where there is none.
        """
        own = layout.jinja if layout is not None and layout.jinja else self._own.chat_template
        if not own:
            raise ConfigError(
                f"the tokenizer of '{self._own.name_or_path}' has no chat template; "
                "give --template alpaca, plain, direct or a .jinja file"
            )
        if isinstance(own, str):
            return own
        named: dict[str, str] = dict(own)
        if tools and "tool_use" in named:
            return named["tool_use"]
        if "default" not in named:
            raise ConfigError(
                f"the tokenizer of '{self._own.name_or_path}' has chat templates {', '.join(named)} and none named "
                "'default'; write the one that you want to a file and give --template FILE.jinja"
            )
        return named["default"]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        jinja: str | None = None,
        ask: bool = False,
        values: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation under a chat template, with the clock at ``template_date``.

        The library's ``apply_chat_template`` has the machine's clock alone, and no end that is sure.

        ``ask`` ends it with the template's prompt for an answer; ``values`` are what the row hands to its template.
        What the template raises goes on.
        """
        compiled = compile_template(jinja or self.template_for(tools=bool(tools)))
        return render_template(compiled, {**self._seen(messages, tools, values), "add_generation_prompt": ask})

    def render_marked(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, jinja: str, values: Mapping[str, Any]
    ) -> tuple[str, list[tuple[int, int]]]:
        """The same without a prompt, and the spans between the template's generation marks."""
        compiled, blocks, spans = compile_template(jinja), list[str](), list[tuple[int, int]]()
        with counting(), compiled.environment.activate_tracker(blocks, spans):
            for block in compiled.generate(**self._seen(messages, tools, values), add_generation_prompt=False):
                blocks.append(block)
        return "".join(blocks), spans

    def _seen(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, values: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        noon = datetime.datetime.combine(self.template_date, datetime.time())
        beside = {"documents": None, "strftime_now": noon.strftime}
        return {**self._special_texts, **(values or {}), **beside, "messages": messages, "tools": tools or None}

    @cached_property
    def _special_texts(self) -> dict[str, Any]:
        return dict(self._own.special_tokens_map)


@lru_cache(64)
def compile_template(jinja: str) -> Any:
    """A chat template as the library compiles it, bounded; Jinja's errors go on."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # The comment gets an environment of its own: the generation marks that it tracks are one template's.
    return bounded_template(_compile_jinja_template(f"{{# {hash(jinja)} #}}").environment, jinja)


def _place(found: Any) -> Placed:
    places = np.array(found.offsets, np.int64).reshape(-1, 2)
    return Placed(found.ids, places[:, 0], places[:, 1], False)


def _shared(a: Sequence[int], b: Sequence[int]) -> int:
    """How many values two lists begin with alike."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
