"""The row that every generator makes, and the words they share."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


def split(text: str) -> list[str]:
    """The words of a table."""
    return text.split()


NAMES = split(
    "Anna Ben Carla David Emma Felix Grace Hassan Ines Jonas Kira Leo Maria Noah Olga Paul Rosa Samir Tara Victor "
    "Wendy Yuki Zoe Adam Bella Dario Elena Farid Greta Hugo"
)
FRUITS = split("apple pear plum cherry grape lemon mango melon orange peach banana fig kiwi lime apricot")
ANIMALS = split("cat dog horse cow sheep goat rabbit fox wolf bear lion tiger otter eagle owl duck frog snail")
COLOURS = split("red blue green yellow purple white black brown pink grey orange")
TOOLS = split("hammer saw drill ladder rope brush wrench shovel bucket knife needle broom")
CITIES = split("Paris Rome Oslo Cairo Lima Tokyo Berlin Madrid Vienna Dublin Athens Prague Delhi Seoul Havana")
VERBS = split("saw found drew followed carried painted washed lost bought sold")
PLACES = split("park garden market kitchen forest station school library harbour village")
TIMES = (
    "in the morning",
    "on Monday",
    "after lunch",
    "in winter",
    "last week",
    "before dinner",
    "every day",
    "at noon",
)


@dataclass(frozen=True)
class Row:
    """A clean row; `kind` says which template made it, so that a swapped response comes from another one."""

    instruction: str
    input: str
    output: str
    domain: str
    kind: str


def sentence(rng: Random) -> str:
    """A plain sentence, such as: Anna painted a green ladder in the garden after lunch."""
    thing = rng.choice([*FRUITS, *ANIMALS, *TOOLS])
    colour = rng.choice(COLOURS[:-1])
    where = f"in the {rng.choice(PLACES)}"
    body = f"{rng.choice(NAMES)} {rng.choice(VERBS)} a {colour} {thing}"
    tail = rng.choice([f"{where} {rng.choice(TIMES)}", where, f"near the {rng.choice(PLACES)} {rng.choice(TIMES)}"])
    return f"{body} {tail}."


def words(rng: Random, low: int, high: int) -> list[str]:
    """Between `low` and `high` different words of one sort."""
    table = rng.choice([FRUITS, ANIMALS, COLOURS, TOOLS, CITIES, NAMES])
    return rng.sample(table, rng.randint(low, high))
