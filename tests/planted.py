"""Benchmark items planted among the rows of a pool: word for word, nearly so, and in other words."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

KINDS = ("verbatim", "near_verbatim", "paraphrased")
OTHER_WORDS = {
    "how many": "what number of", "how much": "what amount of", "what is": "find", "each": "every",
    "if": "suppose that",
    "buys": "purchases", "has": "owns", "needs": "requires", "total": "sum", "makes": "produces", "in a": "per",
    "and": "as well as", "will": "is going to", "does": "would", "gets": "receives", "than": "compared with",
    "wants": "would like", "all": "the whole of", "there are": "one counts", "costs": "is priced at", "his": "their",
    "her": "their", "he": "this person", "she": "this person", "the": "that", "a": "one", "for": "to have",
}  # fmt: skip
FRAMES = ("{}", "Solve this problem. {}", "{} Explain your answer.", "Please help me with my homework: {}")


def plant(items: Sequence[str], share: float = 0.05, seed: int = 0) -> list[tuple[int, str, str]]:
    """A share of the items, a third of them in each way: the item's number, the kind, and the planted prompt."""
    rng = random.Random(seed)
    chosen = rng.sample(range(len(items)), round(share * len(items)))
    ways = {"verbatim": verbatim, "near_verbatim": near_verbatim, "paraphrased": paraphrased}
    kinds = [KINDS[n % len(KINDS)] for n in range(len(chosen))]
    return [(at, kind, ways[kind](rng, items[at])) for at, kind in zip(chosen, kinds, strict=True)]


def verbatim(rng: random.Random, text: str) -> str:
    """In other case, punctuation and surroundings."""
    text = rng.choice([str, str.upper, str.lower])(text)
    return rng.choice(FRAMES).format(text.replace(", ", rng.choice([", ", " - ", " "])))


def near_verbatim(rng: random.Random, text: str) -> str:
    """One word of twelve replaced, dropped, or said twice."""
    words, out = text.split(), list[str]()
    for word in words:
        way = rng.randrange(36)
        out += [] if way == 0 else [word, word] if way == 1 else [rng.choice(words)] if way == 2 else [word]
    return rng.choice(FRAMES).format(" ".join(out))


def paraphrased(rng: random.Random, text: str) -> str:
    """Other words for all that are known, and the sentences in another order, the last one first."""
    sentences = re.split(r"(?<=[.?!])\s+", text)
    sentences = sentences[-1:] + rng.sample(sentences[:-1], len(sentences) - 1)
    words = sorted(OTHER_WORDS, key=len, reverse=True)
    known = re.compile(rf"\b({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)
    return known.sub(lambda found: OTHER_WORDS[found[1].lower()], " ".join(sentences))
