"""The packaged model: small enough to ship, whole, and better than chance at English."""

from __future__ import annotations

import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from instdiff.data.builtin import path
from instdiff.errors import ConfigError

SENTENCES = [
    "The president of the United States said that the government would not change its plans.",
    "The man went to the store because he wanted to buy some food for his family.",
    "She was born in New York and studied at the university for three years.",
]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path("tiny"), dtype=torch.float32).eval()


def test_size_of_the_folder() -> None:
    assert sum(file.stat().st_size for file in path("tiny").rglob("*") if file.is_file()) <= 12_000_000


def test_shape_and_tokenizer(model: torch.nn.Module) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path("tiny"))
    assert model.num_parameters() == 5_180_672  # type: ignore[operator]
    assert len(tokenizer) == 4096
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"]) == [0, 1, 2, 3]
    assert tokenizer("In 1984").input_ids[0] == 1
    assert len(tokenizer("1984").input_ids) == 5


def test_no_machine_specific_keys() -> None:
    config = json.loads((path("tiny") / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert not {"is_local", "local_files_only", "name_or_path"} & set(config)


@pytest.mark.parametrize("sentence", SENTENCES)
def test_english_is_likelier_than_its_shuffled_words(model: torch.nn.Module, sentence: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(path("tiny"))

    def nll(text: str) -> float:
        ids = torch.tensor([tokenizer(text).input_ids])
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids, use_cache=False).loss) * (ids.shape[1] - 1)

    words = sentence.removesuffix(".").split()
    shuffled = []
    for seed in range(5):
        order = list(words)
        random.Random(seed).shuffle(order)
        shuffled.append(nll(" ".join(order) + "."))
    assert nll(sentence) < 0.8 * min(shuffled)


def test_model_card_states_licence_and_loss() -> None:
    card = (path("tiny") / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "2.28" in card


def test_unknown_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        path("tinny")
    with pytest.raises(ConfigError, match="known: demo, skills, tiny"):
        path("../secrets")
