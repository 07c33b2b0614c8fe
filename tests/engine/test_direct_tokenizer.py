"""A tokenizer that is read from its files is the library's own, or is not read at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from helpers import make_tokenizer
from instdiff.data.builtin import path as builtin_path
from instdiff.engine.direct_tokenizer import context_of, read_directly
from instdiff.engine.tokenizer import HFTokenizer

MODELS = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))
TEXTS = ["", "a", " two  words\n", "<|endoftext|> and </s>", "\u00e9\u4e2d\U0001f600", "### Response:\n1 2 3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_tokenizer().save_pretrained(folder)
    return folder


def folders(made: Path) -> dict[str, Path]:
    known = {"made": made, "tiny": builtin_path("tiny"), "smollm2": MODELS / "smollm2-135m"}
    return {name: folder for name, folder in known.items() if folder.is_dir()}


@pytest.mark.parametrize("name", ["made", "tiny", "smollm2"])
def test_everything_is_as_the_library_has_it(made: Path, name: str) -> None:
    if name not in folders(made):
        pytest.skip("the published model is not on this machine")
    folder = folders(made)[name]
    direct, hf = read_directly(folder), AutoTokenizer.from_pretrained(folder)
    assert direct is not None
    mine, own = HFTokenizer(direct, 512, loaded=lambda: hf), HFTokenizer(hf, 512)
    for what in ("fingerprint", "eos", "bos", "start", "start_text", "specials", "longest", "chat_template"):
        assert getattr(mine, what) == getattr(own, what), what
    assert mine.hf is hf and dict(mine._special_texts) == dict(own._special_texts)
    for special in (False, True):
        assert mine.encode(TEXTS, special=special) == own.encode(TEXTS, special=special)
    for one, other in zip(mine.encode_placed(TEXTS), own.encode_placed(TEXTS), strict=True):
        assert one.ids == other.ids and one.starts.tolist() == other.starts.tolist()
    assert direct.convert_tokens_to_ids("no such token") == hf.convert_tokens_to_ids("no such token")


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_class": "Qwen2Tokenizer"},
        {"add_bos_token": True},
        {"added_tokens_decoder": {"3": {"content": "x", "special": True}}},
        {"extra_special_tokens": ["<a>"]},
        {"extra_special_tokens": {"image": "<s>"}},
        {"chat_template": [{"name": "default", "template": "x"}]},
        {"bos_token": {"content": "<s>", "lstrip": True}},
        {"bos_token": "<never seen>"},
    ],
    ids=str,
)
def test_what_the_class_would_change_is_left_to_it(made: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = tmp_path / "t"
    shutil.copytree(made, folder)
    place = folder / "tokenizer_config.json"
    place.write_text(json.dumps(json.loads(place.read_text()) | change))
    assert read_directly(made) is not None
    assert read_directly(folder) is None


@pytest.mark.parametrize("name", ["special_tokens_map.json", "added_tokens.json"])
def test_files_beside_are_left_to_the_class(made: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "t"
    shutil.copytree(made, folder)
    (folder / name).write_text("{}")
    assert read_directly(folder) is None


def test_faulty_files_are_left_to_the_class(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "t"
    shutil.copytree(made, folder)
    (folder / "tokenizer.json").write_text("nothing")
    assert read_directly(folder) is None and read_directly(tmp_path) is None and context_of(tmp_path) is None


def test_the_context_is_that_of_the_language_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"text_config": {"max_position_embeddings": 77}}')
    assert context_of(tmp_path) == 77
    (tmp_path / "config.json").write_text('{"n_positions": 77}')  # the library knows more names
    assert context_of(tmp_path) is None
