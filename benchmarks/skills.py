"""Which score finds the skills that a model lacks, where it is known which ones it lacks.

A small Llama is trained from nothing on half of eight synthetic skills, copying always among them, with up to three
examples of a skill in a row, and on text in which passages come back, so that it can use a demonstration. Then rows of
all skills are scored. Three seeds have three different halves.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from common import arguments, finish, timed
from ranking import Mask, auc, last, spread
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from instdiff import ModelRef, Settings, Store, load, score
from instdiff.core import Floats
from instdiff.methods import IFD, MIWV, Perplexity
from instdiff.scoring.table import ScoreTable

WORDS = (
    *("ant", "bat", "cat", "dog", "egg", "fox", "hat", "ink", "jar", "key"),
    *("leg", "map", "net", "owl", "pen", "rat", "sun", "top", "van", "wax"),
)
SPECIALS = ["<unk>", "<s>", "</s>", "<pad>"]
Row = dict[str, str]
Made = Callable[[list[str]], list[str]]

SKILLS: dict[str, tuple[str, Made]] = {
    "copy": ("copy all of the words", lambda w: w),
    "reverse": ("say the words in reverse order", lambda w: w[::-1]),
    "capitals": ("write the words in capitals", lambda w: [x.upper() for x in w]),
    "sort": ("sort the words by the alphabet", sorted),
    "last": ("give only the last word", lambda w: w[-1:]),
    "twice": ("repeat each word once more", lambda w: [x for x in w for _ in range(2)]),
    "rotate": ("move the first word to the end", lambda w: [*w[1:], w[0]]),
    "sum": ("add the two digits", lambda w: [str(int(w[0]) + int(w[2]))]),
}
SHORT = ("last", "sum")
"""Skills of one-word answers: drawn three times as often, or they would hardly count in the loss."""
OTHERS = tuple(name for name in SKILLS if name != "copy")
LACKING = ((0, 1, 2, 3), (3, 4, 5, 6), (5, 6, 0, 1))
"""Places in ``OTHERS``, by seed, so that each is lacking in some half and present in another."""
SCORES = ("miwv", "miwv_random", "one_shot", "one_shot_random", "perplexity", "ifd", "ifd_unfiltered")
SHAPE = {
    "hidden_size": 96, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
BATCH, RATE, WARM_UP_STEPS = 32, 3e-3, 50
NEW_NAME = 0.25
"""Share of the sequences that call a skill by a name made up for the sequence: the examples must tell what it is."""


@dataclass(frozen=True)
class Size:
    """How much is trained and scored."""

    seeds: int
    steps: int
    rows_per_skill: int


FULL, QUICK = Size(3, 700, 50), Size(1, 150, 8)


# ── text ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def row(rng: Random, skill: str) -> Row:
    """An example of a skill."""
    ask, made = SKILLS[skill]
    said = rng.sample(WORDS, rng.randint(3, 5))
    if skill == "sum":
        said = [str(rng.randrange(10)), "+", str(rng.randrange(10))]
    return {"instruction": ask, "input": " ".join(said), "output": " ".join(made(said))}


def vocabulary() -> list[str]:
    asked = {word for ask, _ in SKILLS.values() for word in ask.split()}
    numbers = [str(number) for number in range(19)]
    return [*sorted(asked), *WORDS, *(word.upper() for word in WORDS), *numbers, "+", "\n"]


def tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and line break."""
    known = {word: at for at, word in enumerate([*SPECIALS, *vocabulary()])}
    words = Tokenizer(models.WordLevel(known, unk_token=SPECIALS[0]))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(" +"), "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    unk, bos, eos, pad = SPECIALS
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unk, bos_token=bos, eos_token=eos, pad_token=pad)


Part = tuple[str, bool]
"""A text, and whether it is learnt."""


def shown(rng: Random, skill: str, names: list[str]) -> list[Part]:
    """One to three examples in a row, written as the template `plain` and demonstrations write them."""
    made_up = " ".join(rng.choices(names, k=rng.randint(3, 6))) if rng.random() < NEW_NAME else None
    parts: list[Part] = []
    for at in range(rng.randint(1, 3)):
        one = row(rng, skill)
        between = "\n\n" if at else ""
        parts += [(f"{between}{made_up or one['instruction']}\n{one['input']}\n", False), (one["output"], True)]
    return parts


def passages(rng: Random, words: list[str]) -> list[Part]:
    """Text without meaning in which passages come back."""
    some = [" ".join(rng.choices(words, k=rng.randint(2, 7))) for _ in range(rng.randint(1, 3))]
    return [("\n".join(rng.choice(some) for _ in range(rng.randint(3, 7))), True)]


def batch(sequences: list[list[Part]], known: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, and as labels those that are learnt."""
    ids, labels = [], []
    for parts in sequences:
        ids.append([known["<s>"]])
        labels.append([-100])
        for text, learnt in [*parts, ("</s>", True)]:
            found = [known[word] for word in re.findall(r"\n|[^ \n]+", text)]
            ids[-1] += found
            labels[-1] += found if learnt else [-100] * len(found)
    longest = max(map(len, ids))
    filled = ((ids, known["<pad>"]), (labels, -100))
    padded = [[one + [pad] * (longest - len(one)) for one in rows] for rows, pad in filled]
    return torch.tensor(padded[0]), torch.tensor(padded[1])


# ── the model ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def fit(present: list[str], steps: int, seed: int) -> tuple[LlamaForCausalLM, float]:
    """A model that has seen the present skills, and its mean loss over the last tenth of the steps."""
    rng, known = Random(seed), tokenizer().get_vocab()
    torch.manual_seed(seed)
    names = [word for word in vocabulary() if word != "\n"]
    drawn = [*present, *(skill for skill in present if skill in SHORT for _ in range(2))]
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(known), bos_token_id=1, eos_token_id=2, pad_token_id=3, tie_word_embeddings=True, **SHAPE
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARM_UP_STEPS, 1.05 - step / steps)
    )
    losses = []
    for _ in range(steps):
        said = [passages(rng, names) if at % 4 == 0 else shown(rng, rng.choice(drawn), names) for at in range(BATCH)]
        ids, labels = batch(said, known)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), float(np.mean(losses[-max(1, steps // 10) :]))


# ── one half ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Half:
    """Scores of the rows of all skills by a model that lacks half of them."""

    skill: np.ndarray
    lacking: Mask
    scores: dict[str, Floats]
    zero_shot: Floats
    same: dict[str, float]
    facts: dict[str, Any]


def rows_of(count: int, seed: int) -> tuple[list[Row], np.ndarray]:
    """As many different rows of each skill."""
    rng = Random(1000 + seed)
    rows: list[Row] = []
    for skill in SKILLS:
        own: dict[str, Row] = {}
        while len(own) < count:
            one = row(rng, skill)
            own[one["input"]] = one
        rows += own.values()
    return rows, np.repeat(list(SKILLS), count)


def half(seed: int, size: Size, home: Path) -> Half:
    lacking = [OTHERS[place] for place in LACKING[seed]]
    present = [name for name in SKILLS if name not in lacking]
    train_s, (model, loss) = timed(lambda: fit(present, size.steps, seed))
    folder = home / f"model-{seed}"
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    rows, skill = rows_of(size.rows_per_skill, seed)
    score_s, table = timed(
        lambda: score(
            load(rows),
            {"miwv": MIWV(), "random": MIWV(retrieval="random"), "perplexity": Perplexity(band="max"), "ifd": IFD()},
            ModelRef(str(folder)),
            settings=Settings(max_length=128, dtype="float32", device="cpu", templates={"*": "plain"}),
            store=Store(home / f"store-{seed}"),
            log=print,
        )
    )
    facts = {
        "kind": "half", "seed": seed, "rows": len(rows), "present": present, "lacking": lacking,
        "parameters": model.num_parameters(), "steps": size.steps, "loss": loss,
        "train_s": train_s, "score_s": score_s,
    }  # fmt: skip
    return told(table, skill, np.isin(skill, lacking), facts)


def told(table: ScoreTable, skill: np.ndarray, lacking: Mask, facts: dict[str, Any]) -> Half:
    by, at = table["miwv"].details, table["random"].details
    scores = {
        "miwv": by["miwv"], "miwv_random": at["miwv"], "one_shot": by["nll_one_shot"],
        "one_shot_random": at["nll_one_shot"], "perplexity": table["perplexity"].value,
        "ifd": table["ifd"].value, "ifd_unfiltered": table["ifd"].details["ifd"],
    }  # fmt: skip
    same = {
        name: float((skill[near["neighbour"].astype(int)] == skill).mean())
        for name, near in (("", by), ("_random", at))
    }
    return Half(skill, lacking, scores, by["nll_zero_shot"], same, facts)


# ── what is told ──────────────────────────────────────────────────────────────────────────────────────────────────────


def by_score(halves: list[Half], name: str) -> dict[str, Any]:
    """How well a high score finds the rows of lacking skills, over the halves."""
    found = [auc(last(one.scores[name]), one.lacking) for one in halves]
    out = {"kind": "score", "score": name, "halves": len(halves), **spread(found, "auc")}
    for word, wanted in (("present", False), ("lacking", True)):
        gone = [np.isnan(one.scores[name][one.lacking == wanted]).mean() for one in halves]
        out[f"{word}_filtered"] = float(np.mean(gone))
    suffix = "_random" if name.endswith("_random") else ""
    shows = name.startswith(("miwv", "one_shot"))
    return out | {"same_skill": float(np.mean([one.same[suffix] for one in halves])) if shows else None}


def by_skill(halves: list[Half], skill: str) -> dict[str, Any]:
    """Mean scores of a skill's rows where it is present and where it is lacking; the latter against present skills."""
    lacks = [one for one in halves if skill in one.facts["lacking"]]
    has = [one for one in halves if skill not in one.facts["lacking"]]
    out: dict[str, Any] = {"kind": "skill", "skill": skill, "halves_lacking": len(lacks)}
    for word, some in (("present", has), ("lacking", lacks)):
        out[f"{word}_zero_shot"] = mean([one.zero_shot[one.skill == skill] for one in some])
        for name in SCORES:
            if name not in ("perplexity", "ifd"):  # the former is what zero_shot is, the latter has no mean
                out[f"{word}_{name}"] = mean([one.scores[name][one.skill == skill] for one in some])
    for name in SCORES:
        found = []
        for one in lacks:
            rows = (one.skill == skill) | ~one.lacking
            found.append(auc(last(one.scores[name])[rows], one.lacking[rows]))
        out[f"auc_{name}"] = float(np.mean(found)) if found else None
    return out


def mean(parts: list[Floats]) -> float | None:
    return float(np.mean(np.concatenate(parts))) if parts else None


def main() -> None:
    args = arguments(steps=0, seeds=0)
    size = QUICK if args.quick else FULL
    size = Size(args.seeds or size.seeds, args.steps or size.steps, size.rows_per_skill)
    with tempfile.TemporaryDirectory() as folder:
        halves = [half(seed, size, Path(folder)) for seed in range(size.seeds)]
    records = [by_score(halves, name) for name in SCORES]
    records += [by_skill(halves, skill) for skill in SKILLS]
    finish(args, [*records, *(one.facts for one in halves)])


if __name__ == "__main__":
    main()
