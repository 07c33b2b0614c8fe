"""Word problems and expressions with written steps.

Every step is an equation that can be checked alone, and the last number of a response is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from demo_parts.rows import NAMES, Row, split

GOODS = split("pens books cups plates candles tickets notebooks balls hats bags lamps stamps mugs chairs towels")
FOODS = split("apples oranges eggs rolls lemons cookies carrots peaches walnuts potatoes plums muffins")
Problem = tuple[str, str]


def expression(rng: Random) -> Problem:
    a, b, c = rng.randint(2, 60), rng.randint(2, 12), rng.randint(2, 12)
    ask = rng.choice(["Compute {}.", "What is {}?", "Work out {} and show the steps.", "Calculate: {}", "Evaluate {}."])
    if rng.random() < 0.35:
        text, first, second = f"({a} + {b}) * {c}", f"{a} + {b} = {a + b}", f"{a + b} * {c} = {(a + b) * c}"
        return ask.format(text), f"The bracket comes first: {first}. Then multiply: {second}."
    if rng.random() < 0.5:
        text, first, second = f"{a} + {b} * {c}", f"{b} * {c} = {b * c}", f"{a} + {b * c} = {a + b * c}"
        return ask.format(text), f"Multiplication comes first: {first}. Then add: {second}."
    a += b * c
    text, first, second = f"{a} - {b} * {c}", f"{b} * {c} = {b * c}", f"{a} - {b * c} = {a - b * c}"
    return ask.format(text), f"Multiplication comes first: {first}. Then subtract: {second}."


def sum_of_three(rng: Random) -> Problem:
    a, b, c = (rng.randint(11, 399) for _ in range(3))
    ask = rng.choice(["Add {}, {} and {}.", "What is the sum of {}, {} and {}?", "Find the total of {}, {} and {}."])
    return ask.format(a, b, c), f"{a} + {b} = {a + b}, and {a + b} + {c} = {a + b + c}. The sum is {a + b + c}."


def change(rng: Random) -> Problem:
    name, goods, n, price = rng.choice(NAMES), rng.choice(GOODS), rng.randint(2, 9), rng.randint(2, 11)
    total = n * price
    paid = next(note for note in (20, 50, 100, 200) if note > total + 1)
    ask = rng.choice(
        [
            "{name} buys {n} {goods} for {price} dollars each and pays with {paid} dollars. How much change is due?",
            "{goods} cost {price} dollars each. {name} takes {n} and hands over {paid} dollars. What is the change?",
        ]
    ).format(name=name, n=n, goods=goods, price=price, paid=paid)
    steps = (
        f"The {goods} cost {n} * {price} = {total} dollars together. The change is {paid} - {total} = {paid - total}."
    )
    return ask[0].upper() + ask[1:], f"{steps} {name} gets back {paid - total} dollars."


def two_goods(rng: Random) -> Problem:
    name = rng.choice(NAMES)
    (first, second), n, m = rng.sample(GOODS, 2), rng.randint(2, 8), rng.randint(2, 8)
    p, q = rng.randint(2, 12), rng.randint(2, 12)
    ask = (
        f"{name} buys {n} {first} at {p} dollars each and {m} {second} at {q} dollars each. What does it all cost?",
        f"How much does {name} pay for {n} {first} at {p} dollars each and {m} {second} at {q} dollars each?",
    )
    steps = f"The {first} cost {n} * {p} = {n * p} dollars. The {second} cost {m} * {q} = {m * q} dollars."
    return rng.choice(ask), f"{steps} Together that is {n * p} + {m * q} = {n * p + m * q} dollars."


def share(rng: Random) -> Problem:
    food, people, each = rng.choice(FOODS), rng.randint(3, 9), rng.randint(3, 12)
    left = rng.randint(1, people - 1)
    total = people * each + left
    ask = (
        f"{total} {food} are shared equally among {people} children. How many does each child get and how many remain?",
        f"{people} children share {total} {food} fairly. How many {food} does each get, and how many are left over?",
    )
    steps = f"Each child gets {each} {food}, because {people} * {each} = {people * each} and one more each is too many."
    return rng.choice(ask), f"{steps} What remains is {total} - {people * each} = {left}."


def journey(rng: Random) -> Problem:
    who, speed, hours = rng.choice(["train", "bus", "car", "ship", "truck"]), rng.randint(3, 18) * 5, rng.randint(2, 9)
    way = speed * hours
    if rng.random() < 0.5:
        ask = f"A {who} travels at {speed} kilometres per hour for {hours} hours. How far does it go?"
        return ask, f"Distance is speed times time: {speed} * {hours} = {way}. The {who} goes {way} kilometres."
    ask = f"A {who} needs {hours} hours for {way} kilometres. What is its average speed?"
    return (
        ask,
        f"Speed is distance divided by time: {way} / {hours} = {speed}. The average is {speed} kilometres per hour.",
    )


def discount(rng: Random) -> Problem:
    goods, percent, price = rng.choice(GOODS)[:-1], rng.choice([10, 20, 25, 50]), rng.randint(2, 15) * 20
    off = price * percent // 100
    ask = rng.choice(
        [
            f"A {goods} costs {price} dollars and is {percent} percent cheaper in a sale. What is the new price?",
            f"The price of a {goods} is {price} dollars. What is it after a discount of {percent} percent?",
        ]
    )
    steps = f"The discount is {price} * {percent} / 100 = {off} dollars."
    return ask, f"{steps} The new price is {price} - {off} = {price - off} dollars."


def rectangle(rng: Random) -> Problem:
    what, a, b = (
        rng.choice(["garden", "room", "field", "carpet", "table", "wall"]),
        rng.randint(3, 25),
        rng.randint(2, 14),
    )
    start = f"A {what} is {a} metres long and {b} metres wide."
    if rng.random() < 0.5:
        return f"{start} What is its area?", f"Area is length times width: {a} * {b} = {a * b} square metres."
    steps = f"Add length and width: {a} + {b} = {a + b} metres."
    return f"{start} How long is its edge all around?", f"{steps} Twice that is 2 * {a + b} = {2 * (a + b)} metres."


def average(rng: Random) -> Problem:
    numbers = [rng.randint(2, 30) for _ in range(rng.randint(3, 5))]
    numbers[-1] += -sum(numbers) % len(numbers)
    total, n = sum(numbers), len(numbers)
    listed = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    ask = rng.choice(["What is the average of {}?", "Find the mean of {}.", "Calculate the average of the numbers {}."])
    steps = f"The sum is {' + '.join(map(str, numbers))} = {total}. There are {n} numbers."
    return ask.format(listed), f"{steps} The average is {total} / {n} = {total // n}."


def age(rng: Random) -> Problem:
    (older, younger), a, gap, later = rng.sample(NAMES, 2), rng.randint(4, 30), rng.randint(2, 25), rng.randint(2, 15)
    ask = f"{younger} is {a} years old. {older} is {gap} years older. How old will {older} be in {later} years?"
    steps = f"Today {older} is {a} + {gap} = {a + gap} years old."
    return ask, f"{steps} In {later} years the age is {a + gap} + {later} = {a + gap + later}."


def saving(rng: Random) -> Problem:
    name, weekly, goal = rng.choice(NAMES), rng.randint(3, 15), rng.randint(4, 16)
    have = rng.randint(2, 40)
    total = have + weekly * goal
    thing = rng.choice(["bicycle", "guitar", "tent", "camera", "coat", "desk"])
    ask = f"{name} has {have} dollars and saves {weekly} dollars a week for a {thing} that costs {total} dollars."
    steps = f"{name} still needs {total} - {have} = {total - have} dollars."
    return f"{ask} How many weeks does it take?", f"{steps} That takes {total - have} / {weekly} = {goal} weeks."


def recipe(rng: Random) -> Problem:
    food, people, each, more = rng.choice(FOODS), rng.randint(2, 6), rng.randint(2, 6), rng.randint(7, 20)
    ask = f"A recipe for {people} people needs {people * each} {food}. How many {food} are needed for {more} people?"
    steps = f"One person needs {people * each} / {people} = {each} {food}."
    return ask, f"{steps} For {more} people that makes {more} * {each} = {more * each} {food}."


def passengers(rng: Random) -> Problem:
    start, off, on = rng.randint(15, 60), rng.randint(2, 14), rng.randint(2, 25)
    place = rng.choice(["bus", "train", "tram", "ferry", "boat"])
    ask = f"There are {start} people on a {place}. {off} get off and {on} get on. How many are on the {place} now?"
    steps = f"After {off} get off, {start} - {off} = {start - off} remain."
    return ask, f"{steps} With the {on} new ones there are {start - off} + {on} = {start - off + on}."


def unknown(rng: Random) -> Problem:
    x, k, b = rng.randint(2, 20), rng.randint(2, 9), rng.randint(2, 30)
    ask = rng.choice(["Solve for x: {}", "Find x if {}.", "Which number x makes {} true?"])
    steps = f"Subtract {b} from both sides: {k * x + b} - {b} = {k * x}, so {k} times x is {k * x}."
    return ask.format(f"{k} * x + {b} = {k * x + b}"), f"{steps} Divide by {k}: {k * x} / {k} = {x}. So x is {x}."


def part(rng: Random) -> Problem:
    (word, below), times = rng.choice([("half", 2), ("third", 3), ("quarter", 4), ("fifth", 5)]), rng.randint(3, 40)
    total, food = below * times, rng.choice(FOODS)
    name = rng.choice(NAMES)
    ask = f"{name} has {total} {food} and gives away one {word} of them. How many {food} are left?"
    steps = f"One {word} of {total} is {total} / {below} = {times}."
    return ask, f"{steps} What is left is {total} - {times} = {total - times} {food}."


def units(rng: Random) -> Problem:
    one, small, factor = rng.choice(
        [("metre", "centimetres", 100), ("hour", "minutes", 60), ("week", "days", 7), ("kilogram", "grams", 1000)]
    )
    n, extra = rng.randint(2, 12), rng.randint(2, 6)
    steps = f"One {one} has {factor} {small}, so {n} {one}s are {n} * {factor} = {n * factor} {small}."
    if rng.random() < 0.5:
        return f"How many {small} are {n} {one}s?", steps
    ask = f"How many {small} are {n} {one}s and {extra} {small} together?"
    return ask, f"{steps} With the rest that is {n * factor} + {extra} = {n * factor + extra} {small}."


def sequence(rng: Random) -> Problem:
    start, step = rng.randint(1, 40), rng.randint(2, 15)
    shown = [start + i * step for i in range(4)]
    ask = rng.choice(["Which number comes next: {}?", "Continue the sequence with one number: {}.", "What follows {}?"])
    steps = f"Each number is {step} more than the one before."
    return ask.format(
        ", ".join(map(str, shown))
    ), f"{steps} So the next one is {shown[-1]} + {step} = {shown[-1] + step}."


KINDS: tuple[Callable[[Random], Problem], ...] = (
    *(expression, expression, sum_of_three, change, two_goods, share, journey, discount, rectangle, average, age),
    *(saving, recipe, passengers, unknown, part, units, sequence),
)


def make(rng: Random) -> Row:
    """One problem with its solution."""
    kind = rng.choice(KINDS)
    instruction, output = kind(rng)
    return Row(instruction, "", output, "arithmetic", kind.__name__)
