"""Tokenizers with and without BOS and chat template, wrapped as rendering wants them."""

from __future__ import annotations

from typing import Any

import pytest

from helpers import CHAT_MARKED, CHAT_PLAIN, make_tokenizer
from instdiff.engine.tokenizer import HFTokenizer


@pytest.fixture(scope="session")
def hf() -> dict[str, Any]:
    return {
        "bos": make_tokenizer(bos=True, chat=CHAT_PLAIN),
        "no_bos": make_tokenizer(bos=False, chat=CHAT_MARKED),
        "no_chat": make_tokenizer(bos=True, chat=None),
    }


@pytest.fixture(scope="session")
def tokenizers(hf: dict[str, Any]) -> dict[str, HFTokenizer]:
    return {name: HFTokenizer(raw, None) for name, raw in hf.items()}
