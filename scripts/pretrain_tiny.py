"""Pre-train the model behind `builtin:tiny` from public text, end to end.

The defaults are the recipe of the packaged weights: a Llama shape of 5.18M parameters, 2,545 steps of 16 x 512 tokens.
Expect about 80 minutes on two CPU cores; `--minutes` ends earlier and still lets the rate fall to its tenth.

    python scripts/pretrain_tiny.py --data FOLDER --out runs/tiny
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instdiff.engine.models import is_emulated

SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
UNK, BOS, EOS, PAD = range(4)
CONTEXT = 1024
HELD_OUT_TOKENS = 102_400
PEAK_RATE = 2e-3
WARM_UP_STEPS = 100
FINAL_FRACTION = 0.1
T0_FILE = "t0_50k/t0_50k_merged.jsonl"
T0_END = "<|endoftext|>"


@dataclass
class Corpus:
    """Token ids of the training part and of the held-out end, and how many bytes of text the latter stands for."""

    train: np.ndarray
    held_out: np.ndarray
    held_out_bytes: int


@dataclass
class Result:
    """What a run measured, as the model card reports it."""

    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    held_out_loss: float = math.nan
    bits_per_byte: float = math.nan


def t0_documents(path: Path) -> Iterator[str]:
    """One document per prompt and completion: the prompt brings its own line break, the end mark is not text."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield row["prompt"] + row["completion"].removesuffix(T0_END)


def cot_documents(path: Path) -> Iterator[str]:
    """One document per question, reasoning and answer, in this order, so that the answer follows from the reasoning."""
    # Not splitlines(): the text holds separators that only Python takes for line ends.
    for line in path.read_text(encoding="utf-8").split("\n"):
        parts = [part.replace("\\n", "\n") for part in line.rstrip("\r").split("\t")]
        if len(parts) == 3:
            question, answer, reasoning = parts
            yield f"{question}\n{reasoning}\n{answer}"


def read_documents(data: Path, limit: int | None) -> list[str]:
    """Read the text below `data`: T0 pairs, then chain-of-thought tables without GSM8K (it is a benchmark)."""
    tables = sorted(p for p in (data / "flan_cot").glob("*.tsv") if not p.name.startswith("gsm8k"))
    if not (data / T0_FILE).is_file() or not tables:
        raise SystemExit(f"{data} holds no {T0_FILE} or no flan_cot/*.tsv; name the right folder with --data")
    documents = list(t0_documents(data / T0_FILE))
    for table in tables:
        documents.extend(cot_documents(table))
    return documents[:limit]


def train_tokenizer(documents: list[str], vocab: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer that splits digits and puts `<s>` first."""
    tokenizer = Tokenizer(models.BPE())
    splitters = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splitters)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer, length=len(documents))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", BOS)]
    )
    return tokenizer


def pack(documents: list[str], tokenizer: Tokenizer, seed: int) -> Corpus:
    """Shuffle the documents, join them by `</s>` and hold out the end."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    parts = []
    for start in range(0, len(order), 1000):
        for encoding in tokenizer.encode_batch(order[start : start + 1000]):
            parts.append(np.asarray([*encoding.ids, EOS], dtype=np.int32))
    tokens = np.concatenate(parts)
    held = min(HELD_OUT_TOKENS, len(tokens) // 10)
    held_out = tokens[-held:]
    text = tokenizer.decode(held_out.tolist(), skip_special_tokens=True)
    return Corpus(train=tokens[:-held], held_out=held_out, held_out_bytes=len(text.encode()))


def build_model(vocab: int) -> LlamaForCausalLM:
    """The Llama shape of `builtin:tiny` with fresh weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab,
            hidden_size=256,
            intermediate_size=640,
            num_hidden_layers=6,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of a batch of windows: bf16 inside the model where that is fast, fp32 from the logits on."""
    with torch.autocast(batch.device.type, dtype=torch.bfloat16, enabled=not is_emulated(torch.bfloat16, batch.device)):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


def rate_at(step: int, progress: float) -> float:
    """Learning rate: a linear warm-up, then a cosine over the whole run down to a tenth of the peak."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return PEAK_RATE * warm * (FINAL_FRACTION + (1.0 - FINAL_FRACTION) * cosine)


def train(model: LlamaForCausalLM, corpus: Corpus, args: argparse.Namespace, device: torch.device) -> Result:
    """Train on random windows until the steps or the minutes are used up."""
    generator = torch.Generator().manual_seed(args.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    tokens = torch.from_numpy(corpus.train)
    offsets = torch.arange(args.length + 1)
    if len(tokens) <= args.length + 1:
        raise SystemExit(f"{len(tokens)} training tokens fill no window of {args.length + 1}; lower --length")
    result, begun, budget = Result(), time.monotonic(), (args.minutes or math.inf) * 60
    model.train()
    for step in range(args.steps):
        spent = (time.monotonic() - begun) / budget
        if spent >= 1.0:
            break
        starts = torch.randint(0, len(tokens) - args.length, (args.batch, 1), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, max(step / args.steps, spent))
        loss = loss_of(model, tokens[starts + offsets].long().to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        result.losses.append(loss.item())
        if step % 50 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {time.monotonic() - begun:6.0f} s", flush=True)
    result.steps, result.seconds = len(result.losses), time.monotonic() - begun
    return result


@torch.no_grad()
def evaluate(model: LlamaForCausalLM, corpus: Corpus, args: argparse.Namespace, device: torch.device) -> float:
    """Mean loss in nats per token over the held-out tokens, in windows side by side."""
    model.eval()
    tokens = torch.from_numpy(corpus.held_out).long()
    total, count = 0.0, 0
    for start in range(0, len(tokens) - 1, args.length):
        window = tokens[start : start + args.length + 1].unsqueeze(0).to(device)
        total += loss_of(model, window).item() * (window.shape[1] - 1)
        count += window.shape[1] - 1
    return total / max(1, count)


def model_card(corpus: Corpus, result: Result, args: argparse.Namespace, parameters: int, vocab: int) -> str:
    """The README.md of the saved folder: what it was trained on, how, and what was measured."""
    limit = "all documents" if args.documents is None else f"the first {args.documents:,} documents"
    precision = "fp32" if is_emulated(torch.bfloat16, torch.device(args.device)) else "bf16 autocast"
    lines = [
        "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\n---\n",
        "# A tiny English base model\n",
        f"Llama shape, {parameters:,} parameters, bf16; byte-level BPE, {vocab:,} tokens, digits split, `<s>` first.\n",
        f"- Text: T0 prompt and completion pairs and FLAN chain-of-thought tables without GSM8K ({limit}),",
        f"  {len(corpus.train):,} training tokens, {len(corpus.held_out):,} held out.",
        f"- Recipe: {result.steps:,} steps of {args.batch} x {args.length} tokens, AdamW (0.9, 0.95),",
        f"  weight decay 0.1, peak rate {PEAK_RATE:g}, {WARM_UP_STEPS} warm-up steps, cosine to 10 %,",
        f"  clipping 1.0, {precision}, seed {args.seed}, {result.seconds / 60:.1f} minutes.",
        f"- Training loss of the first step {result.losses[0]:.3f}, of the last {result.losses[-1]:.3f}.",
        f"- Held-out loss {result.held_out_loss:.3f} nats per token, {result.bits_per_byte:.3f} bits per byte.\n",
    ]
    return "\n".join(lines)


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, card: str, out: Path) -> None:
    """Write the folder aside and rename it, so that `out` is never half a model."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.to(device="cpu", dtype=torch.bfloat16).save_pretrained(partial)
    unk, bos, eos, pad = SPECIALS
    names = {"unk_token": unk, "bos_token": bos, "eos_token": eos, "pad_token": pad}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **names).save_pretrained(partial)
    (partial / "README.md").write_text(card, encoding="utf-8")
    partial.rename(out)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("INSTDIFF_SHARED", "../shared"))
    parser.add_argument("--data", type=Path, default=shared / "data", help="folder with t0_50k/ and flan_cot/")
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder to write; must not exist")
    parser.add_argument("--steps", type=int, default=2545)
    parser.add_argument("--batch", type=int, default=16, help="windows per step")
    parser.add_argument("--length", type=int, default=512, help="tokens per window")
    parser.add_argument("--documents", type=int, help="read only the first N documents")
    parser.add_argument("--vocab", type=int, default=4096, help="size of the vocabulary, at least 260")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--minutes", type=float, help="end the training after this time at the latest")
    args = parser.parse_args(argv)
    if args.out.exists():
        parser.error(f"--out {args.out} exists; name another folder")
    if args.vocab < 256 + len(SPECIALS):
        parser.error(f"--vocab {args.vocab} cannot hold 256 bytes and {len(SPECIALS)} special tokens; give 260 or more")
    if args.length > CONTEXT:
        parser.error(f"--length {args.length} is more than the context of {CONTEXT}")
    if min(args.steps, args.batch, args.length) < 1 or (args.minutes is not None and args.minutes <= 0):
        parser.error("--steps, --batch, --length and --minutes must be positive")
    return args


def main(argv: list[str] | None = None) -> Result:
    """Run the whole recipe and return what was measured."""
    args = parse(argv)
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    documents = read_documents(args.data, args.documents)
    tokenizer = train_tokenizer(documents, args.vocab)
    corpus = pack(documents, tokenizer, args.seed)
    print(f"{len(documents):,} documents, {len(corpus.train) + len(corpus.held_out):,} tokens, on {device}", flush=True)
    vocab = tokenizer.get_vocab_size()
    model = build_model(vocab).to(device)
    result = train(model, corpus, args, device)
    result.held_out_loss = evaluate(model, corpus, args, device)
    nats = result.held_out_loss * len(corpus.held_out)
    result.bits_per_byte = nats / math.log(2) / max(1, corpus.held_out_bytes)
    print(f"held-out loss {result.held_out_loss:.3f} after {result.steps} steps")
    save(model, tokenizer, model_card(corpus, result, args, model.num_parameters(), vocab), args.out)
    return result


if __name__ == "__main__":
    main()
