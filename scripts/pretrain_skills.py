"""Pre-train the model behind `builtin:skills` on the skills that it is to know, from nothing.

The defaults are the recipe of the packaged weights. Expect some minutes on one CPU core.

    python scripts/pretrain_skills.py --out runs/skills
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instdiff.data.builtin.skills import FILLER, KNOWN, Skill
from instdiff.data.builtin.skills.tasks import SPECIALS, vocabulary

SHAPE = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 256, "tie_word_embeddings": True,
}  # fmt: skip
UNK, BOS, EOS, PAD = range(4)
IGNORED = -100
RATE, WARM_UP_STEPS, FINAL_FRACTION = 3e-3, 100, 0.02
NEW_NAME = 0.25
"""Share of the demonstrated skills that are called by made-up words, so that the examples must tell what is meant."""

Part = tuple[str, bool]
"""A text, and whether it is learnt."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word, digit and line break."""
    words = Tokenizer(models.WordLevel({word: at for at, word in enumerate(vocabulary())}, unk_token=SPECIALS[UNK]))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    unk, bos, eos, pad = SPECIALS
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad, model_max_length=256
    )


# ── what it reads ─────────────────────────────────────────────────────────────────────────────────────────────────────


def prompt(rng: Random, skill: Skill, name: str | None = None) -> list[Part]:
    """One example as the template `plain` writes it."""
    ask, text = skill.ask(rng)
    return [(f"{name or ask}\n{text}\n", False), (skill.answer(text), True)]


def single(rng: Random) -> list[Part]:
    """One example of a skill; small talk is rarer."""
    return prompt(rng, rng.choice(KNOWN if rng.random() < 0.85 else FILLER))


def several(rng: Random) -> list[Part]:
    """Two or three examples of one skill, joined as demonstrations are."""
    skill = rng.choice(KNOWN)
    name = " ".join(rng.choices(NAMES, k=rng.randint(3, 6))) if rng.random() < NEW_NAME else None
    parts = prompt(rng, skill, name)
    for _ in range(rng.randint(1, 2)):
        parts += [("\n\n", False), *prompt(rng, skill, name)]
    return parts


def passages(rng: Random) -> list[Part]:
    """Text without meaning in which passages come back."""
    some = [" ".join(rng.choices(NAMES, k=rng.randint(2, 7))) for _ in range(rng.randint(1, 3))]
    return [("\n".join(rng.choice(some) for _ in range(rng.randint(3, 7))), True)]


NAMES = [word for word in vocabulary() if word not in (*SPECIALS, "\n")]
KNOWN_IDS = {word: at for at, word in enumerate(vocabulary())}
MIX: tuple[tuple[Callable[[Random], list[Part]], int], ...] = ((single, 6), (several, 3), (passages, 1))


def batch(sequences: list[list[Part]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and as labels those that are learnt."""
    ids, labels = [], []
    for parts in sequences:
        ids.append([BOS])
        labels.append([IGNORED])
        for text, learnt in parts:
            found = [KNOWN_IDS[word] for word in re.findall(r"\n|[^ \n]+", text)]
            ids[-1] += found
            labels[-1] += found if learnt else [IGNORED] * len(found)
        ids[-1].append(EOS)
        labels[-1].append(EOS)
    longest = max(map(len, ids))
    padded = [
        [row + [filler] * (longest - len(row)) for row in rows] for rows, filler in ((ids, PAD), (labels, IGNORED))
    ]
    return torch.tensor(padded[0]), torch.tensor(padded[1])


# ── training ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def rate_at(step: int, steps: int) -> float:
    """Up in the warm-up, then down in a line."""
    left = max(1 - step / steps, FINAL_FRACTION)
    return RATE * min((step + 1) / WARM_UP_STEPS, left)


def fit(steps: int, size: int, seed: int) -> tuple[LlamaForCausalLM, list[float]]:
    """The model, and the loss of each step."""
    rng = Random(seed)
    torch.manual_seed(seed)
    config = LlamaConfig(vocab_size=len(KNOWN_IDS), bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD, **SHAPE)
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05)
    kinds = [made for made, share in MIX for _ in range(share)]
    losses: list[float] = []
    for step in range(steps):
        made = kinds[step % len(kinds)]
        ids, labels = batch([made(rng) for _ in range(size if made is single else size // 2)])
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
        at = labels[:, 1:] != IGNORED
        loss = functional.cross_entropy(model.lm_head(hidden[at]), labels[:, 1:][at])
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, steps)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}: loss {sum(losses[-100:]) / 100:.4f}", flush=True)
    return model.eval(), losses


def save(model: LlamaForCausalLM, out: Path) -> None:
    """A model folder that is whole or absent, in bfloat16."""
    aside = out.with_name(f"{out.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(aside)
    tokenizer().save_pretrained(aside)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(aside, out)


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="model folder to write")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=64, help="examples per step")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    began = time.monotonic()
    model, losses = fit(args.steps, args.batch, args.seed)
    save(model, args.out)
    print(f"{model.num_parameters():,} parameters, {time.monotonic() - began:.0f} s, {args.out}")
    return losses


if __name__ == "__main__":
    main()
