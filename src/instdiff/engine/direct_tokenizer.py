"""A tokenizer read from its files, for commands that run no model: importing the library's class takes seconds.

Only what the generic class would do is done here. Where the files ask for more, nothing is read and the class is used.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

GENERIC = ("TokenizersBackend", "PreTrainedTokenizerFast")
EXTRA = ("extra_special_tokens", "additional_special_tokens")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ASKS_MORE = (
    *("added_tokens_decoder", "model_specific_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space"),
    *("split_special_tokens", "fix_mistral_regex", "auto_map"),
)
"""Keys of a tokenizer's configuration that make the class change what its file says."""
BESIDE = ("special_tokens_map.json", "added_tokens.json", "additional_chat_templates")
"""Files that the class reads too."""
LARGEST = 100_000
"""Tokens above which the class may mend a vocabulary."""
RESERVE = 128 << 20
"""Bytes that have to be there beside what is asked for: below that much, no model runs."""


class DirectTokenizer:
    """What rendering asks of a tokenizer, with the names that the library has for it."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], backend: Any) -> None:
        self.name_or_path, self.backend_tokenizer = str(folder), backend
        self.special_tokens_map: dict[str, str] = {name: facts[name] for name in NAMED if facts.get(name)}
        self._extra = [text for key in EXTRA for text in facts.get(key) or ()]
        self.chat_template: str | None = facts.get("chat_template")
        self.bos_token_id = self._named("bos_token")
        self.eos_token_id = self._named("eos_token")

    def _named(self, name: str) -> int | None:
        text = self.special_tokens_map.get(name)
        return None if text is None else self.convert_tokens_to_ids(text)

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """The number of a token; that of the unknown one, where it has one, for what is no token."""
        found: int | None = self.backend_tokenizer.token_to_id(token)
        unknown = self.special_tokens_map.get("unk_token")
        return self.backend_tokenizer.token_to_id(unknown) if found is None and unknown else found

    def convert_ids_to_tokens(self, number: int) -> str:
        """The text of a token."""
        return str(self.backend_tokenizer.id_to_token(number))

    @property
    def all_special_ids(self) -> list[int]:
        """Those of the special texts."""
        return [self.backend_tokenizer.token_to_id(text) for text in self.special_texts]

    @property
    def special_texts(self) -> set[str]:
        """The named special tokens, and others that the configuration lists."""
        return {*self.special_tokens_map.values(), *self._extra}

    @cached_property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Tokens beside the vocabulary by number."""
        return dict(self.backend_tokenizer.get_added_tokens_decoder())

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their numbers."""
        return dict(self.backend_tokenizer.get_vocab(with_added_tokens=True))

    def __call__(
        self, text: str | Sequence[str], add_special_tokens: bool = True, **_: Any
    ) -> dict[str, list[int] | list[list[int]]]:
        """Token ids of a text, or of each of several."""
        if isinstance(text, str):
            return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}
        found = self.backend_tokenizer.encode_batch(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [one.ids for one in found]}


def read_directly(folder: Path) -> DirectTokenizer | None:
    """The tokenizer of a folder whose files say all; None where the library's class would do something of its own."""
    try:
        facts = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        if facts.get("tokenizer_class") not in GENERIC or any(facts.get(key) for key in ASKS_MORE):
            return None
        if any((folder / name).exists() for name in BESIDE) or not _names_texts(facts):
            return None
        template = folder / "chat_template.jinja"
        if template.is_file():
            facts["chat_template"] = template.read_text(encoding="utf-8")
        backend = _backend(folder)
    except (OSError, ValueError):
        return None
    if backend is None:
        return None
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    named = {facts[name] for name in NAMED if facts.get(name)} | {
        text for key in EXTRA for text in facts.get(key) or ()
    }
    return DirectTokenizer(folder, facts, backend) if named <= added else None


def _names_texts(facts: Mapping[str, Any]) -> bool:
    """Whether names, other special tokens and the chat template are plain texts."""
    more = [facts.get(key) or [] for key in EXTRA]
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in more):
        return False
    return all(isinstance(facts.get(name), (str, type(None))) for name in (*NAMED, "chat_template"))


def _backend(folder: Path) -> Any:
    ask_for_memory(16 * (folder / "tokenizer.json").stat().st_size)
    from tokenizers import Tokenizer, processors

    try:
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - the library has no class for a file that it cannot read
        return None
    if backend.get_vocab_size() > LARGEST or backend.truncation or backend.padding:
        return None
    if backend.post_processor is None:
        backend.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])
    return backend


def ask_for_memory(size: int) -> None:
    """Raise a MemoryError where so many bytes and a reserve are not there: the tokenizers library would abort."""
    try:
        mmap.mmap(-1, RESERVE + size).close()
    except OSError:
        raise MemoryError from None


def context_of(folder: Path) -> int | None:
    """The model's context length in tokens, where its configuration says it by the common name."""
    try:
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    length = facts.get("text_config", facts).get("max_position_embeddings")
    return length if isinstance(length, int) else None
