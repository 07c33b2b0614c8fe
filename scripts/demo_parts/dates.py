"""Questions on months and days of the week, whose answers follow from the calendar."""

from __future__ import annotations

import calendar
from collections.abc import Callable
from random import Random

from demo_parts.rows import Row

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SEASONS = ("winter", "spring", "summer", "autumn")


def month(number: int) -> Callable[[Random], Row]:
    """Questions on one month."""
    name, days = calendar.month_name[number], calendar.monthrange(2023, number)[1]
    leap = " In a leap year it has 29." if number == 2 else ""
    season, opposite = SEASONS[number % 12 // 3], SEASONS[(number % 12 // 3 + 2) % 4]
    after, before = calendar.month_name[number % 12 + 1], calendar.month_name[(number - 2) % 12 + 1]

    def row(rng: Random) -> Row:
        north = f"In the northern half of the world {name} belongs to {season}, in the southern half to {opposite}."
        question, answer = rng.choice(
            [
                (f"How many days does {name} have?", f"{name} has {days} days.{leap} It is month number {number}."),
                (f"Which month comes after {name}?", f"After {name} comes {after}. {name} itself follows {before}."),
                (f"Which month comes before {name}?", f"Before {name} comes {before}."),
                (f"To which season does {name} belong?", north),
                (
                    f"Tell me about the month of {name}.",
                    f"{name} is month number {number} and has {days} days.{leap} {north}",
                ),
            ]
        )
        return Row(question, "", answer, "everyday", "months")

    return row


def weekday(start: int) -> Callable[[Random], Row]:
    """Questions that count on or back from one day of the week."""

    def row(rng: Random) -> Row:
        shift = rng.randint(2, 6)
        if rng.random() < 0.5:
            question, end = (
                f"Today is {WEEKDAYS[start]}. Which day is it in {shift} days?",
                WEEKDAYS[(start + shift) % 7],
            )
            way = [WEEKDAYS[(start + i) % 7] for i in range(1, shift + 1)]
            return Row(question, "", f"Count on: {', '.join(way)}. It will be {end}.", "everyday", "weekdays")
        question, end = f"Today is {WEEKDAYS[start]}. Which day was it {shift} days ago?", WEEKDAYS[(start - shift) % 7]
        way = [WEEKDAYS[(start - i) % 7] for i in range(1, shift + 1)]
        return Row(question, "", f"Count back: {', '.join(way)}. It was {end}.", "everyday", "weekdays")

    return row
