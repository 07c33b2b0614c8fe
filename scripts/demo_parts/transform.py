"""Transformations of words, lists and sentences whose result follows from the input alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random

from demo_parts.rows import ANIMALS, CITIES, COLOURS, FRUITS, NAMES, TOOLS, Row, sentence, words

Task = tuple[str, str, str]
ORDINALS = ("first", "second", "third", "fourth", "fifth")


def listed(items: list[str]) -> str:
    return ", ".join(items)


def numbers(rng: Random) -> list[int]:
    return rng.sample(range(2, 100), rng.randint(5, 9))


def sort_words(rng: Random) -> Task:
    items, back = words(rng, 4, 8), rng.random() < 0.3
    asks = ["Sort these words in reverse alphabetical order.", "Put the words in order from Z to A."]
    if not back:
        asks = [
            "Sort these words alphabetically.",
            "Put the words in order from A to Z.",
            "Arrange the list by alphabet.",
        ]
    return rng.choice(asks), listed(items), listed(sorted(items, key=str.lower, reverse=back))


def sort_numbers(rng: Random) -> Task:
    items, back = numbers(rng), rng.random() < 0.5
    asks = ["Sort the numbers from {} to {}.", "Put these numbers in order, {} to {}.", "Order the list from {} to {}."]
    ends = ("largest", "smallest") if back else ("smallest", "largest")
    return rng.choice(asks).format(*ends), listed([*map(str, items)]), listed([*map(str, sorted(items, reverse=back))])


def reverse_list(rng: Random) -> Task:
    items = words(rng, 3, 7)
    asks = ["Reverse the order of this list.", "Write the list backwards, last item first.", "Turn the list around."]
    return rng.choice(asks), listed(items), listed(items[::-1])


def reverse_word(rng: Random) -> Task:
    word = rng.choice([*FRUITS, *ANIMALS, *TOOLS, *COLOURS])
    asks = [
        "Spell the word backwards.",
        "Reverse the letters of this word.",
        "Write this word from its end to its start.",
    ]
    return rng.choice(asks), word, f"{word} spelled backwards is {word[::-1]}."


def change_case(rng: Random) -> Task:
    text = sentence(rng)
    asks = [
        ("Write the sentence in capital letters.", text.upper()),
        ("Convert the text to upper case.", text.upper()),
        ("Convert the text to lower case.", text.lower()),
        ("Write everything in small letters.", text.lower()),
        ("Start every word with a capital letter.", text.title()),
    ]
    ask, result = rng.choice(asks)
    return ask, text, result


def count_words(rng: Random) -> Task:
    text = sentence(rng)
    asks = ["How many words does this sentence have?", "Count the words.", "Give the number of words in the text."]
    return rng.choice(asks), text, f"The sentence has {len(text.split())} words."


def count_letter(rng: Random) -> Task:
    text = sentence(rng)
    letter = rng.choice(sorted({char for char in text.lower() if char.isalpha()}))
    n = text.lower().count(letter)
    asks = [f"How often does the letter {letter} occur in this text?", f"Count the letter {letter}, large or small."]
    return rng.choice(asks), text, f"The letter {letter} occurs {n} time{'s' if n > 1 else ''}."


def long_words(rng: Random) -> Task:
    text, n = sentence(rng), rng.randint(4, 6)
    found = [word for word in text.rstrip(".").split() if len(word) > n]
    asks = [f"List the words with more than {n} letters.", f"Which words are longer than {n} letters?"]
    return rng.choice(asks), text, listed(found) if found else f"No word has more than {n} letters."


def starting_with(rng: Random) -> Task:
    items = words(rng, 6, 9)
    letter = rng.choice(items)[0].lower()
    found = [word for word in items if word.lower().startswith(letter)]
    asks = [f"Keep only the words that start with {letter}.", f"Which words begin with the letter {letter}?"]
    return rng.choice(asks), listed(items), listed(found)


def even_or_odd(rng: Random) -> Task:
    items, odd = numbers(rng), rng.randint(0, 1)
    found = [str(n) for n in items if n % 2 == odd]
    name = ("even", "odd")[odd]
    asks = [
        f"Keep only the {name} numbers.",
        f"Which of these numbers are {name}?",
        f"Filter the list: {name} numbers only.",
    ]
    return rng.choice(asks), listed([*map(str, items)]), listed(found) if found else f"None of the numbers is {name}."


def larger_than(rng: Random) -> Task:
    items, limit = numbers(rng), rng.randint(10, 80)
    found = [str(n) for n in items if n > limit]
    asks = [f"Remove every number up to {limit}.", f"List the numbers that are greater than {limit}."]
    return rng.choice(asks), listed([*map(str, items)]), listed(found) if found else f"No number is above {limit}."


def largest(rng: Random) -> Task:
    items, top = numbers(rng), rng.random() < 0.5
    word, value = ("largest", max(items)) if top else ("smallest", min(items))
    asks = [f"Find the {word} number.", f"Which number is the {word}?"]
    place = items.index(value) + 1
    return (
        rng.choice(asks),
        listed([*map(str, items)]),
        f"The {word} number is {value}, at position {place} of the list.",
    )


def replace(rng: Random) -> Task:
    text = sentence(rng)
    old = rng.choice([word for word in text.rstrip(".").split() if word in [*COLOURS, *FRUITS, *ANIMALS, *TOOLS]])
    table = next(t for t in (FRUITS, COLOURS, ANIMALS, TOOLS) if old in t)
    new = rng.choice([word for word in table if word != old and word[0] not in "aeiou"])
    asks = [f"Replace the word {old} by {new}.", f"Rewrite the sentence with {new} instead of {old}."]
    body = " ".join(new if word == old else word for word in text.rstrip(".").split())
    return rng.choice(asks), text, f"{body}."


def unique(rng: Random) -> Task:
    items = words(rng, 4, 6)
    noisy = [*items, *rng.sample(items, rng.randint(1, 3))]
    rng.shuffle(noisy)
    asks = ["Remove the repeated words, keep the first of each.", "Delete duplicates from the list and keep the order."]
    return rng.choice(asks), listed(noisy), listed(list(dict.fromkeys(noisy)))


def join(rng: Random) -> Task:
    items = words(rng, 3, 6)
    name, mark = rng.choice(
        [("hyphens", "-"), ("slashes", "/"), ("plus signs", "+"), ("underscores", "_"), ("colons", ":")]
    )
    asks = [f"Join the words with {name}.", f"Write the list as one string with {name} between the words."]
    return rng.choice(asks), listed(items), mark.join(items)


def pick(rng: Random) -> Task:
    items = words(rng, 5, 7)
    place = rng.randrange(5)
    asks = [f"What is the {ORDINALS[place]} item of the list?", f"Give me the {ORDINALS[place]} word."]
    return rng.choice(asks), listed(items), f"The {ORDINALS[place]} item is {items[place]}."


def initials(rng: Random) -> Task:
    items = words(rng, 4, 7)
    asks = ["Write the first letter of each word in capitals.", "Take the initials of these words as one string."]
    return rng.choice(asks), listed(items), "".join(word[0].upper() for word in items)


def bullets(rng: Random) -> Task:
    items, counted = words(rng, 3, 8), rng.random() < 0.5
    lines = [f"{i}. {word}" if counted else f"- {word}" for i, word in enumerate(items, 1)]
    asks = ["Turn the list into bullet points.", "Write one item per line, each after a dash."]
    if counted:
        asks = ["Turn this into a numbered list.", "Number the items, one per line."]
    return rng.choice(asks), listed(items), "\n".join(lines)


def extract(rng: Random) -> Task:
    name, a, b, c = rng.choice(NAMES), rng.randint(2, 90), rng.randint(2, 90), rng.randint(100, 999)
    x, y = rng.sample(TOOLS[:5], 2)
    text = f"{name} stored {a} boxes with a {x} in room {c} and {b} boxes with a {y} in the cellar."
    asks = ["Extract all numbers from the text.", "Which numbers occur in this sentence, in order?"]
    return rng.choice(asks), text, f"{a}, {c}, {b}"


def record(rng: Random) -> Task:
    name, age, city, colour = rng.choice(NAMES), rng.randint(18, 80), rng.choice(CITIES), rng.choice(COLOURS)
    text = f"{name} is {age} years old, lives in {city} and likes the colour {colour}."
    fields = {"name": name, "age": age, "city": city, "colour": colour}
    if rng.random() < 0.5:
        return "Write the facts as JSON with the keys name, age, city and colour.", text, json.dumps(fields)
    ask = rng.choice(["List name, age, city and colour, one per line.", "Turn the sentence into lines of key: value."])
    return ask, text, "\n".join(f"{key}: {value}" for key, value in fields.items())


def no_vowels(rng: Random) -> Task:
    items = words(rng, 2, 4)
    asks = ["Remove all vowels (a, e, i, o, u).", "Write the words without the vowels a, e, i, o and u."]
    plain = ["".join(char for char in word if char.lower() not in "aeiou") for word in items]
    return rng.choice(asks), listed(items), listed(plain)


def group(rng: Random) -> Task:
    tables = rng.sample([("Animals", ANIMALS), ("Fruits", FRUITS), ("Tools", TOOLS), ("Cities", CITIES)], 2)
    picked = [(title, rng.sample(table, rng.randint(2, 4))) for title, table in tables]
    mixed = [word for _, table in picked for word in table]
    rng.shuffle(mixed)
    ask = f"Sort the words into two groups: {picked[0][0].lower()} and {picked[1][0].lower()}."
    lines = [f"{title}: {listed([word for word in mixed if word in table])}" for title, table in picked]
    return ask, listed(mixed), "\n".join(lines)


KINDS: tuple[Callable[[Random], Task], ...] = (
    *(sort_words, sort_numbers, reverse_list, reverse_word, change_case, change_case, count_words, count_letter),
    *(long_words, starting_with, even_or_odd, larger_than, largest, replace, replace, unique, join, pick, initials),
    *(bullets, extract, record, record, no_vowels, group, group),
)


def make(rng: Random) -> Row:
    """One transformation; a quarter of the rows carry their data inside the instruction."""
    kind = rng.choice(KINDS)
    instruction, data, output = kind(rng)
    if rng.random() < 0.25:
        instruction, data = f"{instruction}\n{data}", ""
    return Row(instruction, data, output, "transform", kind.__name__)
