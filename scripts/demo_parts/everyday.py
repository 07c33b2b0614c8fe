"""Everyday questions whose answers are put together from the hand-written tables of `everyday.txt`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

from demo_parts.dates import month, weekday
from demo_parts.rows import Row

Record = dict[str, str]


@dataclass(frozen=True)
class Aspect:
    """What can be asked about each record of a table; `{Name}` is the column `name` with a capital letter."""

    table: str
    questions: tuple[str, ...]
    answers: tuple[str, ...]


ASPECTS = (
    Aspect(
        "animals",
        ("What do {plural} eat?", "What is the food of {plural}?", "Tell me what {plural} feed on."),
        ("{Plural} eat {eats}. {fact}", "The {name} is {sort} that eats {eats}. It lives {home}.", "They eat {eats}."),
    ),
    Aspect(
        "animals",
        ("Where do {plural} live?", "Where can I find {plural}?", "In what kind of place do {plural} live?"),
        ("{Plural} live {home}. {fact}", "They live {home}. There they eat {eats}.", "{Plural} live {home}."),
    ),
    Aspect(
        "animals",
        ("What kind of animal is the {name}?", "Is the {name} a mammal, a bird, a fish or something else?"),
        ("The {name} is {sort}. {fact}", "The {name} is {sort}. It eats {eats} and lives {home}."),
    ),
    Aspect(
        "animals",
        ("Tell me something about {plural}.", "Describe the {name} in a few sentences.", "Give me facts on {plural}."),
        ("The {name} is {sort}. {Plural} live {home} and eat {eats}. {fact}", "{fact} {Plural} live {home}."),
    ),
    Aspect(
        "countries",
        ("What is the capital of {country}?", "Name the capital of {country}.", "I forgot the capital of {country}."),
        ("The capital of {country} is {capital}. {extra}", "{capital} is the capital of {country}."),
    ),
    Aspect(
        "countries",
        ("Which language is spoken in {country}?", "What language helps a traveller in {country}?"),
        ("{language} is a main language of {country}.", "In {country} it helps to know some {language}."),
    ),
    Aspect(
        "countries",
        ("Which currency does {country} use?", "How do people pay in {country}?", "What is the money of {country}?"),
        ("The currency of {country} is {currency}. Many places also take cards.", "The currency is {currency}."),
    ),
    Aspect(
        "countries",
        ("Where is {capital}?", "Tell me about {capital}.", "I am going to {capital}. What should I know?"),
        ("{capital} is the capital of {country} in {continent}. {extra} The currency is {currency}.",
         "{capital} is the capital of {country}. {extra} {language} is a main language there."),
    ),
    Aspect(
        "plants",
        ("How much light do {plants} need?", "Where should I put {plants}?", "Do {plants} like sun?"),
        ("{light} {tip}", "{light}"),
    ),
    Aspect(
        "plants",
        ("How often should I water {plants}?", "How much water do {plants} need?", "Do {plants} need much water?"),
        ("{water} {tip}", "{water}"),
    ),
    Aspect(
        "plants",
        ("How do I care for {plants}?", "Give me advice on growing {plants}.", "What do {plants} need to do well?"),
        ("{light} {water} {tip}", "{water} {light} {tip}"),
    ),
    Aspect(
        "tools",
        ("What is {tool} used for?", "When do I need {tool}?", "What can I do with {tool}?"),
        ("{Tool} is used to {use}. {tip}", "You need it to {use}.", "With {tool} you can {use}. {tip}")
    ),
    Aspect(
        "tools",
        ("How do I use {tool} well?", "Give me a tip for using {tool}.", "What should I watch when I use {tool}?"),
        ("{tip} The tool is there to {use}.", "It is made to {use}. {tip}", "{tip}"),
    ),
    Aspect(
        "cleaning",
        ("How do I clean {thing}?", "What helps with {thing}?", "What is the best way to deal with {thing}?"),
        ("{how} {tip}", "{how}"),
    ),
    Aspect(
        "weather",
        ("What is {term}?", "Explain {term} in simple words.", "How does {term} come about?"),
        ("{what} {tip}", "{what}"),
    ),
    Aspect(
        "weather",
        ("Give me a tip about {term}.", "What should I know about {term}?"),
        ("{tip} {what}", "{what} {tip}", "{tip}"),
    ),
    Aspect(
        "body",
        ("What is the job of {part}?", "What do we need {part} for?", "Explain in short what is done by {part}."),
        ("{does} {tip}", "{does}"),
    ),
    Aspect(
        "body",
        ("What should I know about {part}?", "Tell me something useful about {part}."),
        ("{does} {tip}", "{tip} {does}"),
    ),
    Aspect(
        "jobs",
        ("What does {job} do?", "Describe the work of {job}.", "Explain to a child what {job} does."),
        ("{Job} {does}.", "{Job} {does}. The work is done {place}.", "It is somebody who {does}."),
    ),
    Aspect(
        "jobs",
        ("Where does {job} work?", "In what place would I meet {job} at work?"),
        ("{Job} works {place}.", "You find {job} {place}. It is a person who {does}."),
    ),
    Aspect(
        "materials",
        ("What is {material} made of?", "Where does {material} come from?", "How do we get {material}?"),
        ("It is made from {source}. It is used for {used}.", "It comes from {source}."),
    ),
    Aspect(
        "materials",
        ("What is {material} used for?", "Name a few uses of {material}.", "What can be made with {material}?"),
        ("It is used for {used}.", "Common uses are {used}. It is made from {source}."),
    ),
    Aspect(
        "planets",
        ("Which planet is the {place} from the sun?", "What is the name of the {place} planet from the sun?"),
        ("The {place} planet from the sun is {name}. {fact}", "It is {name}."),
    ),
    Aspect(
        "planets",
        ("Tell me about the planet {name}.", "What is special about the planet {name}?"),
        ("{name} is the {place} planet from the sun. {fact}", "{fact} Counted from the sun it is the {place} planet."),
    ),
    Aspect("why", ("{question}", "Explain in a few words: {question}", "A child asks: {question}"), ("{answer}",)),
)  # fmt: skip
STEP_QUESTIONS = (
    "How do I {task}?",
    "Give me step-by-step instructions: {task}.",
    "Explain how to {task}.",
    "I have never had to {task} before. What do I do?",
    "List the steps to {task}.",
)


def load() -> dict[str, list[Record]]:
    """Read the tables: a header names the columns, a line is a record."""
    tables: dict[str, list[Record]] = {}
    name, columns = "", list[str]()
    for line in (Path(__file__).parent / "everyday.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            name, _, header = line[1:].partition("] ")
            columns, tables[name] = header.split(" | "), []
            continue
        cells = line.split(" | ")
        if len(cells) != len(columns):
            raise ValueError(f"table {name}: {len(columns)} columns expected: {line}")
        tables[name].append(dict(zip(columns, cells, strict=True)))
    return tables


TABLES = load()


def fill(template: str, record: Record) -> str:
    capitals = {key.capitalize(): value[0].upper() + value[1:] for key, value in record.items()}
    return template.format(**record, **capitals)


def about(aspect: Aspect, record: Record) -> Callable[[Random], Row]:
    def row(rng: Random) -> Row:
        question, answer = rng.choice(aspect.questions), rng.choice(aspect.answers)
        return Row(fill(question, record), "", fill(answer, record), "everyday", aspect.table)

    return row


def steps(table: str, record: Record) -> Callable[[Random], Row]:
    def row(rng: Random) -> Row:
        parts, name = record["steps"].split("; "), record.get("task") or record["dish"]
        question = rng.choice(STEP_QUESTIONS).format(task=name)
        text = " ".join(f"{part}." for part in parts)
        if rng.random() < 0.5:
            text = "\n".join(f"{i}. {part}." for i, part in enumerate(parts, 1)) + "\n"
        return Row(question, "", f"{text.rstrip(' ')} {record['tip']}".replace("\n ", "\n"), "everyday", table)

    return row


def heavier(light: Record, heavy: Record) -> Callable[[Random], Row]:
    def article(name: str) -> str:
        return f"an {name}" if name[0] in "aeiou" else f"a {name}"

    def row(rng: Random) -> Row:
        a, b = rng.sample([article(light["name"]), article(heavy["name"])], 2)
        question = rng.choice(
            ["Which is heavier, {} or {}?", "Does {} or {} weigh more?", "Compare the weight of {} and {}."]
        )
        end = f"A grown one weighs {heavy['weight']}, {article(light['name'])} only {light['weight']}."
        answer = f"{article(heavy['name']).capitalize()} is heavier than {article(light['name'])}. {end}"
        return Row(question.format(a, b), "", answer, "everyday", "weights")

    return row


def two_animals(rng: Random) -> Row:
    a, b = rng.sample(TABLES["animals"], 2)
    ask = rng.choice(["Compare {} and {}.", "How do {} and {} differ?", "Write a short text about {} and {}."])
    if a["sort"] == b["sort"]:
        start = f"Both are {a['sort'].split()[-1]}s.".replace("fishs", "fish")
    else:
        start = fill("The {name} is {sort}, ", a) + fill("and the {name} is {sort}.", b)
    text = " ".join(fill("{Plural} live {home} and eat {eats}. {fact}", record) for record in (a, b))
    return Row(ask.format(a["plural"], b["plural"]), "", f"{start} {text}", "everyday", "animals")


def enumerated(names: list[str]) -> str:
    return ", ".join(names[:-1]) + f" and {names[-1]}"


def tour(rng: Random) -> Row:
    stops = rng.sample(TABLES["countries"], rng.randint(2, 4))
    ask = rng.choice(["I want to visit {}. Tell me about each place.", "Describe these capitals for a traveller: {}."])
    each = "{capital} is the capital of {country} in {continent}. {extra} {language} is a main language there, "
    text = " ".join(fill(each + "and the currency is {currency}.", stop) for stop in stops)
    return Row(ask.format(enumerated([stop["capital"] for stop in stops])), "", text, "everyday", "countries")


def two_tasks(rng: Random) -> Row:
    pair = rng.sample([*TABLES["howto"], *TABLES["cooking"]], 2)
    names = [record.get("task") or record["dish"] for record in pair]
    ask = rng.choice(["How do I {}, and how do I {}?", "Explain how to {} and how to {}.", "Teach me to {} and to {}."])
    texts = [f"{record['steps'].replace(';', '.')}. {record['tip']}" for record in pair]
    text = "\n\n".join(f"To {name}: {text}" for name, text in zip(names, texts, strict=True))
    return Row(ask.format(*names), "", text, "everyday", "howto")


def bed(rng: Random) -> Row:
    chosen = rng.sample(TABLES["plants"], rng.randint(2, 3))
    ask = rng.choice(["I have {}. How do I look after them?", "Give me advice on {}.", "How do I grow {}?"])
    text = "\n".join(fill("{Plants}: {light} {water} {tip}", record) for record in chosen)
    return Row(ask.format(enumerated([record["plants"] for record in chosen])), "", text, "everyday", "plants")


def topics() -> list[Callable[[Random], Row]]:
    """One maker per fact, so that each fact is equally likely to be asked for."""
    makers = [about(aspect, record) for aspect in ASPECTS for record in TABLES[aspect.table]]
    makers += [steps(table, record) for table in ("cooking", "howto") for record in TABLES[table] for _ in range(2)]
    makers += [heavier(light, heavy) for light, heavy in combinations(TABLES["weights"], 2)]
    makers += [month(number) for number in range(1, 13) for _ in range(2)]
    makers += [maker for maker in (two_animals, tour, two_tasks, bed) for _ in range(45)]
    return makers + [weekday(start) for start in range(7) for _ in range(2)]


TOPICS = topics()


def make(rng: Random) -> Row:
    """One question with its answer."""
    return rng.choice(TOPICS)(rng)
