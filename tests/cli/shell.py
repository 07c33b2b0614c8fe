"""The command line as a function, and what it is run on."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instdiff.core.files import without_sum

CONTEXT = 512
HEAD = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n"
)
ROWS: list[dict[str, Any]] = [
    {"instruction": f"Count to {n} and say {word}.", "input": "", "output": f"{word} " * n + "done.", "source": src}
    for n, word, src in [
        (1, "ant", "a"),
        (2, "bee", "a"),
        (3, "cat", "b"),
        (4, "dog", "b"),
        (5, "elk", "a"),
        (6, "fox", "c"),
        (7, "gnu", "c"),
        (8, "hen", "a"),
        (9, "ibex", "b"),
        (10, "jay", "a"),
    ]
]
ROWS.append(
    {"source": "b", "output": "It is 12.", "instruction": "Add.", "input": "5 and 7", "meta": {"tags": ["x", None]}}
)
ROWS.append(dict(ROWS[3]))


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one message of a user error: no traceback, nothing after it."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        assert self.err.count("error: ") == 1, self.err
        return self.err[self.err.index("error: ") + 7 :].rstrip("\n")


def cli(*args: object, stdin: str | None = None) -> Ran:
    """Run a command in this process; no terminal."""
    from click.testing import CliRunner

    from instdiff.cli.entry import app

    done = CliRunner().invoke(app, [str(arg) for arg in args], input=stdin, prog_name="instdiff")
    return Ran(done.exit_code, done.stdout, done.stderr)


def ok(*args: object, stdin: str | None = None) -> Ran:
    """Run a command that must succeed."""
    ran = cli(*args, stdin=stdin)
    assert ran.code == 0, ran
    return ran


def python(code: str, *args: object) -> list[str]:
    """A command that runs this code with the same Python."""
    return [sys.executable, "-c", code, *map(str, args)]


def score(
    model: str, method: str = "ifd", output: str = "scores.parquet", *more: object, data: str = "my.jsonl"
) -> Ran:
    return ok("score", "--data", data, "--model", model, "--method", method, "--output", output, *more)


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any] | str]) -> None:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    Path(path).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects of the lines without their sums, which are checked."""
    return [without_sum(json.loads(line)) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def files(folder: str | Path = ".") -> set[str]:
    """Names of all files, hidden ones too."""
    return {os.path.relpath(Path(root) / name, folder) for root, _, names in os.walk(folder) for name in names}


def make_model(folder: Path, seed: int) -> Path:
    """A random Llama with a context of 512 bytes; ASCII text has one token per character."""
    import torch
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {"<s>": 0, "</s>": 1, **{letter: at for at, letter in enumerate(letters, 2)}}
    backend = Tokenizer(BPE(words, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder
