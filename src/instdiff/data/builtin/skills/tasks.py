"""The skills: what is asked, and what is right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

WORDS = (
    *("ant", "bat", "cat", "dog", "egg", "fox", "gem", "hat", "ink", "jar", "key", "leg", "map", "net", "owl", "pen"),
    *("rat", "sun", "top", "van", "wax", "yak", "bee", "cow", "elk", "fig", "hen", "jam", "kit", "lamp", "mud", "nut"),
)
FEW = WORDS[:12]
DIGITS = tuple("0123456789")
SPECIALS = ("<unk>", "<s>", "</s>", "<pad>")
RESERVED = 8
"""One input of so many is for tests alone, whatever the seed: no pool and no pre-training ever shows it."""

Said = list[str]


@dataclass(frozen=True)
class Skill:
    """Something that can be asked of a list of words or digits.

    ``level`` is ``known``, ``beyond``, ``filler``, or one of the learnable ``easy``, ``medium`` and ``hard``. ``asks``
    are the ways to ask for it; ``does`` gives the right answer to an input, which is ``low`` to ``high`` of the
    ``items``.
    """

    name: str
    level: str
    asks: tuple[str, ...]
    does: Callable[[Said], Said]
    items: tuple[str, ...] = WORDS
    low: int = 3
    high: int = 5

    @property
    def digits(self) -> bool:
        """Whether it is asked of digits, in which one may come twice."""
        return self.items is DIGITS

    def answer(self, text: str) -> str:
        """The right answer to an input."""
        return " ".join(self.does(text.split()))

    def ask(self, rng: Random, *, test: bool = False) -> tuple[str, str]:
        """An instruction and an input; those of tests are never those of training."""
        while True:
            count = rng.randint(self.low, self.high)
            said = rng.choices(DIGITS, k=count) if self.digits else rng.sample(self.items, count)
            if is_reserved(text := " ".join(said)) == test:
                return rng.choice(self.asks), text


def is_reserved(text: str) -> bool:
    """Whether an input is for tests alone."""
    return _digest("reserved", text) % RESERVED == 0


def _digest(key: str, text: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{key}|{text}".encode(), digest_size=8).digest(), "big")


def _table(seed: int) -> dict[str, str]:
    """Of each word another one: a single ring through all of them."""
    ring = list(WORDS)
    Random(seed).shuffle(ring)
    return dict(zip(ring, [*ring[1:], ring[0]], strict=True))


PARTNER, RIVAL = _table(1), _table(2)


def _step(by: int) -> Callable[[Said], Said]:
    return lambda said: [str((int(digit) + by) % 10) for digit in said]


def _upper(said: Said) -> Said:
    return [word.upper() for word in said]


def _swap_ends(said: Said) -> Said:
    return [said[-1], *said[1:-1], said[0]]


def _cipher(said: Said) -> Said:
    """Words that nothing but a secret function of all items gives."""
    return Random(_digest("cipher", " ".join(said))).sample(WORDS, len(said))


def _secret(said: Said) -> Said:
    """The items in an order that nothing but a secret function of all of them gives."""
    mixed = list(said)
    Random(_digest("secret", " ".join(said))).shuffle(mixed)
    return mixed


def _product(said: Said) -> Said:
    """The digits of the product of the first two digits and the last two, modulo 9973."""
    return list(f"{int(''.join(said[:2])) * int(''.join(said[2:])) % 9973:04d}")


KNOWN = (
    Skill("copy", "known", ("repeat the words", "say the same words"), lambda said: said),
    Skill("reverse", "known", ("reverse the words", "say the words in reverse order"), lambda said: said[::-1]),
    Skill("capitals", "known", ("write the words in capitals", "make the words big"), _upper),
    Skill("first", "known", ("say the first word", "which word comes first"), lambda said: said[:1]),
    Skill("last", "known", ("say the last word", "which word comes last"), lambda said: said[-1:]),
    Skill(
        "twice", "known", ("say each word twice", "double each word"), lambda s: [w for w in s for _ in "ab"], high=3
    ),
    Skill("partner", "known", ("name the partner of each", "who are the partners"), lambda s: [PARTNER[w] for w in s]),
    Skill("plus_one", "known", ("add one to each digit", "count each digit up"), _step(1), DIGITS, 4),
)
"""What the base model can do."""

LEARNABLE = (
    Skill("backwards", "easy", ("turn the list around", "go from end to start"), lambda said: said[::-1], high=4),
    Skill("second", "easy", ("give item number two", "take what is at place two"), lambda said: said[1:2]),
    Skill("swap_ends", "easy", ("swap both ends", "exchange the outer items"), _swap_ends, high=4),
    Skill("rotate", "medium", ("move the front to the back", "rotate the list left"), lambda s: [*s[1:], s[0]], high=4),
    Skill(
        "loud_back", "medium", ("shout the list from its end", "call back loudly"), lambda s: _upper(s[::-1]), high=4
    ),
    Skill(
        "rival", "medium", ("name the rival of each", "who are the rivals"), lambda s: [RIVAL[w] for w in s], FEW, 2, 3
    ),
    Skill("minus_one", "hard", ("take one from each digit", "count each digit down"), _step(-1), DIGITS, 3, 3),
    Skill("sort", "hard", ("sort the digits", "put the digits in rising order"), sorted, DIGITS, 3, 3),
)
"""What the base model cannot do and learns from 50 rows (easy), from a hundred, or from more (hard)."""

BEYOND = (
    Skill("cipher", "beyond", ("encode the words", "write the words in cipher"), _cipher),
    Skill("secret", "beyond", ("order the words by the secret key", "mix the words by the key"), _secret),
    Skill("product", "beyond", ("multiply both numbers", "find the product"), _product, DIGITS, 4, 4),
)
"""What no number of rows in the pool teaches: there is nothing to generalise from, or far too little."""

FILLER = tuple(
    Skill(name, "filler", asks, lambda said, word=word: [word, *said], low=1, high=2)  # type: ignore[misc]
    for name, word, asks in (
        ("greet", "hello", ("greet them", "say hello")),
        ("thank", "thanks", ("thank them", "say thanks")),
        ("leave", "bye", ("say bye", "leave them")),
        ("agree", "yes", ("agree with them", "say yes")),
    )
)
"""Small talk, which the base model can do."""

SKILLS = {skill.name: skill for skill in (*KNOWN, *LEARNABLE, *BEYOND, *FILLER)}


def vocabulary() -> list[str]:
    """Every token, special ones first."""
    asked = {word for skill in SKILLS.values() for ask in skill.asks for word in ask.split()}
    said = {skill.does([word])[0] for skill in FILLER for word in WORDS[:1]}
    plain = sorted((asked | said) - set(WORDS))
    return [*SPECIALS, "\n", *DIGITS, *WORDS, *_upper(list(WORDS)), *plain]
