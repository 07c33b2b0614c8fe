"""Tiny random models, tokenizers with and without BOS, and a plain reference to compare every number with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core import Method, ModelRef, Settings
from instdiff.core.progress import Advance
from instdiff.data import Pool, load
from instdiff.errors import EXTRAS
from instdiff.scoring.table import ScoreTable
from instdiff.store import Store

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction: ### Input: ### Response: the user asks and the assistant answers, in 1984 or 2024",
    "Explain why the sky is blue and the grass is green, then list three things that are not.",
]
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]

_HEAD = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
_TAIL = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHAT_PLAIN = _HEAD + "{{ m['content'] }}<|im_end|>\n" + _TAIL
CHAT_MARKED = (
    _HEAD + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|im_end|>{% endif %}{{ '\n' }}" + _TAIL
)


def make_tokenizer(*, bos: bool = True, chat: str | None = None) -> Any:
    """Byte-level BPE of about 300 tokens with single digits; ``bos`` decides whether it starts texts by itself."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
    from tokenizers.models import BPE
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=300,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", raw.token_to_id("<s>"))]
        )
    starts = {"bos_token": "<s>"} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        **starts,
    )
    if chat is not None:
        tokenizer.chat_template = chat
    return tokenizer


def make_llama(folder: Path, seed: int = 0, *, chat: str | None = CHAT_PLAIN, **changes: Any) -> Path:
    """A Llama with a BOS tokenizer; its weights are large enough that predictions differ."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(bos=True, chat=chat)
    values = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    LlamaForCausalLM(LlamaConfig(**{**values, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_gpt2(folder: Path, seed: int = 0) -> Path:
    """A GPT-2 whose tokenizer has no BOS at all."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    tokenizer = make_tokenizer(bos=False, chat=CHAT_MARKED)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=192,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(seed)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read_by_bytes(folder: Path) -> Path:
    """The model with a tokenizer that has no token of two bytes, and so counts more of them."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).train_new_from_iterator([], 261).save_pretrained(folder)
    return folder


def make_models(home: Path) -> dict[str, Path]:
    """``llama`` (BOS), ``other`` (the same shape, other weights), ``gpt2`` (no BOS)."""
    return {
        "llama": make_llama(home / "llama", 0),
        "other": make_llama(home / "other", 1),
        "gpt2": make_gpt2(home / "gpt2"),
    }


# ── the reference ─────────────────────────────────────────────────────────────────────────────────────────────────────


def causal(folder: Path) -> Any:
    """The model, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def reference(
    model: Any, ids: Sequence[int], target: Sequence[bool]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """NLL and entropy per target token: one row, no padding, full logits, log_softmax."""
    import torch

    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(map(int, ids))])).logits[0].float()
    log_p = logits.log_softmax(-1)
    at = np.flatnonzero(np.asarray(target))
    before = log_p[torch.from_numpy(at - 1)]
    nll = -before[torch.arange(len(at)), torch.tensor([int(ids[i]) for i in at])]
    entropy = -(before.exp() * before).sum(-1)
    return nll.numpy(), entropy.numpy()


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n"
    "### Response:"
)


def by_hand(hf: Any, row: Mapping[str, str], limit: int) -> dict[str, tuple[list[int], list[bool]] | None]:
    """Ids and targets of ``given`` and ``alone`` under the alpaca template, without any code of the package."""
    text = ALPACA_INPUT if row.get("input") else ALPACA
    for name in ("instruction", "input"):
        text = text.replace("{" + name + "}", row.get(name, "").replace("{", "\0"))
    text = text.replace("\0", "{")
    bos = hf.bos_token_id
    prompt = ([] if bos is None else [bos]) + hf(text, add_special_tokens=False).input_ids
    response = hf(row["output"], add_special_tokens=False).input_ids[: max(limit - len(prompt), 0)]
    if not response:
        return {"given": None, "alone": None}
    start = hf.eos_token_id if bos is None else bos
    return {
        "given": (prompt + response, [False] * len(prompt) + [True] * len(response)),
        "alone": ([start, *response], [False] + [True] * len(response)),
    }


# ── scoring in tests ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Counting:
    """Progress that counts the rows and tokens that were computed, and the cached rows it was told of."""

    rows: int = 0
    tokens: int = 0
    cached: int = 0
    labels: list[str] = field(default_factory=list)

    @contextmanager
    def task(self, label: str, *, rows: int, tokens: int, cached: int = 0) -> Iterator[Advance]:
        self.labels.append(label)
        self.cached += cached

        def advance(more_rows: int, more_tokens: int) -> None:
            self.rows += more_rows
            self.tokens += more_tokens

        yield advance


PLAIN: dict[str, Any] = {"dtype": "float32", "device": "cpu", "max_length": 200, "templates": {"*": "alpaca"}}
"""Settings of most tests."""


class Lab:
    """Scores with tiny models in fp32 on the CPU."""

    def __init__(self, models: Mapping[str, Path], home: Path) -> None:
        self.models, self._home, self._number = dict(models), home, itertools.count()
        self._references: dict[str, Any] = {}

    def store(self) -> Store:
        """A fresh, empty store."""
        return Store(self._home / str(next(self._number)))

    def reference(self, name: str) -> Any:
        """The model for ``helpers.reference``, loaded once."""
        if name not in self._references:
            self._references[name] = causal(self.models[name])
        return self._references[name]

    def tokenizer(self, name: str) -> Any:
        """The Hugging Face tokenizer of a model."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.models[name])

    def score(
        self,
        rows: Pool | Sequence[Mapping[str, Any]],
        methods: Sequence[Method],
        *,
        base: str | Path = "llama",
        calibrated: str | Path | ModelRef = "other",
        store: Store | None = None,
        progress: Any = None,
        log: Any = None,
        resident: Any = None,
        **settings: Any,
    ) -> ScoreTable:
        """Score with ``base`` and ``calibrated`` bound to tiny models, by name or folder."""
        from instdiff.scoring.scorer import score

        bound: dict[str, str | ModelRef] = {
            role: where if isinstance(where, ModelRef) else str(self.models.get(str(where), where))
            for role, where in (("base", base), ("calibrated", calibrated))
        }
        return score(
            rows if isinstance(rows, Pool) else load(rows),
            methods,
            bound | {"proxy": bound["base"]},
            settings=Settings(**{**PLAIN, **settings}),
            store=store or self.store(),
            progress=progress,
            log=log,
            resident=resident,
        )

    def crossfit(
        self,
        store: Store,
        pool: Pool,
        method: Method,
        train: Any,
        *,
        models: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> ScoreTable:
        """Score with ``base``, and with what is trained from it by ``train`` where ``models`` does not bind it."""
        from instdiff.scoring.scorer import score

        bound = {"base": str(self.models["llama"]), **(models or {})}
        how = Settings(**{**PLAIN, **(settings or {})})
        return score(pool, [method], bound, settings=how, store=store, crossfit=train, **more)


WORDS = ["the", "sky", "is", "blue", "and", "grass", "green", "why", "7", "things", "list", "explain", "not", "then"]


def some_rows(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Distinct rows of various lengths."""
    rng = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choice(WORDS, rng.integers(low, high)).tolist())

    return [
        {"instruction": f"{text(1, 6)} {row}", "input": text(1, 4) if row % 3 == 0 else "", "output": text(1, 9)}
        for row in range(count)
    ]


ABSENT = ",".join(
    name for extra in EXTRAS.keys() - {"report", "remote"} for name in EXTRAS[extra].split() if name != "scipy"
)
"""The modules of extras, but for what draws a report: plotly, and scikit-learn, which brings scipy."""
WITHOUT = """
import sys
absent = sys.argv.pop(1).split(",")
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in absent else self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Without, sys.meta_path)
"""
"""A program's first lines: the modules of its first argument cannot be found, as if they were not installed."""
