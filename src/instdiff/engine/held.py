"""A model that somebody holds in memory becomes a folder, for everything here names models by their files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from instdiff.core.files import building
from instdiff.errors import ConfigError


def keep_model(model: Any, tokenizer: Any, root: Path) -> Path:
    """Write a loaded model with its tokenizer to a folder under ``root`` that its content names, and return it.

    What is there already is not written again. A ConfigError where one of the two is not what it should be.
    """
    if not (hasattr(model, "save_pretrained") and hasattr(model, "state_dict")) or not hasattr(tokenizer, "vocab_size"):
        raise ConfigError(
            "a loaded model is given as (model, tokenizer), both of transformers, "
            f"not as ({type(model).__name__}, {type(tokenizer).__name__})"
        )
    place = root / "given" / _digest(model, tokenizer)
    if not place.is_dir():
        with building(place) as aside:
            model.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
    return place


def _digest(model: Any, tokenizer: Any) -> str:
    """The hash of weights, configuration and tokenizer."""
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    for text in (model.config.to_json_string(), words, str(tokenizer.chat_template)):
        digest.update(text.encode())
    return digest.hexdigest()
