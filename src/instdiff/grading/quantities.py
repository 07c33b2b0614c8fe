"""Numbers and their units, as people write them.

White space between digits belongs to a mixed number, such as ``2 1/2``, or the text is no number. Words after one
number are its unit. Units are compared and never converted.
"""

from __future__ import annotations

import re
import unicodedata
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)"
_POWERS = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
NUMBER = re.compile(rf"[-+\u2212]?(?:\d+\s+\d+/\d+|{_DIGITS}(?:/\d+)?)(?:\s+(?:{'|'.join(_POWERS)})\b)?", re.IGNORECASE)
"""A number within a text."""

_QUANTITY = re.compile(
    rf"(?P<currency>[-+\u2212]?[$€£¥])?\s*(?P<number>[-+\u2212]?(?:\d+\s+\d+/\d+|{_DIGITS}(?:[eE][-+]?\d+)?(?:/{_DIGITS})?))"
    r"(?P<gap>\s*)(?P<words>[^\d\s].*)?",
    re.DOTALL,
)
_WORD = re.compile(r"[A-Za-z]+(?:\^?[23](?!\d)|[²³])?|[%°$€£¥]")
_BETWEEN = re.compile(r"[\s./*·-]*")

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SPOKEN = {
    **{word: value for value, word in enumerate(f"{_ONES} eighteen nineteen".split())},
    **{word: 10 * value for value, word in enumerate(_TENS.split(), 2)},
}

_UNITS = {
    one: names[0]
    for names in (
        line.split()
        for line in (
            "km kilometer kilometre",
            "m meter metre",
            "cm centimeter centimetre",
            "mm millimeter millimetre",
            "mile mi",
            "foot ft feet",
            "inch in",
            "yard yd",
            "kg kilogram kilo",
            "g gram",
            "mg milligram",
            "pound lb",
            "ounce oz",
            "liter l litre",
            "ml milliliter millilitre",
            "gallon gal",
            "hour h hr",
            "minute min",
            "second s sec",
            "day",
            "week wk",
            "month",
            "year yr",
            "dollar usd $ buck",
            "cent",
            "euro eur €",
            "sterling gbp £",
            "yen jpy ¥",
            "percent %",
            "degree ° deg",
            "mph",
            "kmh kph",
            "person people",
            "child children",
            "man men",
            "woman women",
            "am",
            "pm",
        )
    )
    for one in names
}
_LITTLE = {"a", "an", "the", "of", "per", "each", "in", "total", "only", "altogether", "exactly"}
_ALGEBRA = "pi e i sqrt sin cos tan cot csc log ln exp arcsin arccos arctan theta alpha beta gamma mod choose"
_RELATIONS = "or and to plus minus times over divided by less more than not is are was between from least most"
_SHARES = "half halves third thirds quarter quarters fourth fourths fifth fifths"
_FORMULA = {*f"{_ALGEBRA} {_RELATIONS} {_SHARES}".split(), *_SPOKEN, *_POWERS}
"""Words that make something else of the number before them."""


class Quantity(NamedTuple):
    """A number with what it counts or measures; ``units`` are known ones, ``things`` other words."""

    value: Decimal
    units: tuple[str, ...] = ()
    things: frozenset[str] = frozenset()

    def agrees(self, other: Quantity) -> bool:
        """Whether the units are the same, or one of the two leaves them out."""
        named = bool(self.units or self.things) and bool(other.units or other.things)
        return not named or (self.units == other.units and (self.things <= other.things or other.things <= self.things))


def quantity(text: str) -> Quantity | None:
    """One number and the words after it, the number also in words; None for anything else."""
    text = _tidy(text)
    said = _spoken(text)
    match = _QUANTITY.fullmatch(said or text)
    value = _value(match["number"]) if match else None
    if match is None or value is None:
        return None
    words = match["words"] or ""
    named = _WORD.findall(words)
    if _BETWEEN.fullmatch(_WORD.sub("", words)) is None:
        return None
    if named and named[0].lower() in _POWERS and match["gap"]:
        value, named = value * 10 ** _POWERS[named[0].lower()], named[1:]
    found = _named(named, bool(match["gap"]))
    if found is None:
        return None
    currency = match["currency"] or ""
    known = [_UNITS[currency[-1]]] if currency else []
    sign = -1 if currency[:1] in ("-", "\u2212") else 1
    return Quantity(sign * value, tuple(sorted({*known, *found[0]})), frozenset(found[1]))


def is_row_of_numbers(text: str) -> bool:
    """Whether a text is several numbers with white space alone between them, which is no number."""
    return re.fullmatch(rf"[-+]?{_DIGITS}(?:\s+{_DIGITS})+", _tidy(text)) is not None


def _tidy(text: str) -> str:
    """Without what changes no meaning; white space stays where it may have one."""
    text = re.sub(r"\\(?:text|mathrm|textbf|mbox|mathbf)\s*\{([^{}]*)\}", r" \1", text.strip())
    text = re.sub(r"\^\{?\s*\\circ\s*\}?|\\degree\b", "°", text)
    if len(text) > 1 and text[0] == text[-1] == "$" and text[-2] != "\\":
        text = text[1:-1]
    text = text.removesuffix(".").replace("\\$", "$").replace("\\%", "%")
    text = re.sub(r"(?<=\d)(?:\\[,;! ]|\{,\}|[\u2009\u202f])(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"\\[!,; ]|~", " ", text)
    fraction = re.compile("[\u00bc-\u00be\u2150-\u215e]")
    text = fraction.sub(lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\u2044", "/"), text)
    return re.sub(r"(?<=\d)\$$", " $", text.strip())


def _value(text: str) -> Decimal | None:
    """Of a whole or decimal number, a fraction or a mixed number."""
    text = text.replace("\u2212", "-").replace(",", "")
    *whole, part = text.split()
    over, slash, under = part.partition("/")
    try:
        top, bottom = Decimal(over), Decimal(under if slash else 1)
        if whole:  # rounded once, as the improper fraction is
            top = Decimal(whole[0]) * bottom + top.copy_sign(Decimal(whole[0]))
        value = top / bottom
    except (InvalidOperation, ZeroDivisionError):
        return None
    return value if value.is_finite() else None


def _spoken(text: str) -> str | None:
    """A text that begins with a number in words, with digits for them; None for any other."""
    total, current, rest = 0, 0, text
    while match := re.match(r"(?:[\s-]+|^)([A-Za-z]+)", rest):
        word = match[1].lower()
        if word in _SPOKEN and (
            current % 100 == 0 or (current % 10 == 0 and current % 100 >= 20 and _SPOKEN[word] < 10)
        ):
            current += _SPOKEN[word]
        elif word == "hundred" and current:
            current *= 100
        elif word in _POWERS and current:
            total, current = total + current * 10 ** _POWERS[word], 0
        else:
            break
        rest = rest[match.end() :]
    return None if rest == text else f"{total + current}{rest}"


def _named(words: list[str], apart: bool) -> tuple[list[str], set[str]] | None:
    """The units and the other things that words name; None where a word belongs to a formula.

    Words that are not ``apart`` from the number must be units of several letters.
    """
    units, things, power = list[str](), set[str](), ""
    for word in words:
        base, exponent = word.lower().rstrip("^23\u00b2\u00b3"), word[-1].translate({0xB2: "2", 0xB3: "3"})
        if base in ("square", "sq", "cubic", "cu"):
            power = "2" if base.startswith("sq") else "3"
            continue
        unit = _UNITS.get(base) or _UNITS.get(_single(base))
        short = len(base) == 1 and base.isalpha()
        if base in _FORMULA or (short and unit is None and base != "a") or (not apart and (unit is None or short)):
            return None
        if unit and not (unit == "inch" and len(words) > 1):
            units.append(unit + (exponent if exponent in "23" else power))
            power = ""
        elif base not in _LITTLE:
            things.add(_single(base))
    return units, things


def _single(noun: str) -> str:
    """A noun without the ending of the plural."""
    if len(noun) <= 2 or noun.endswith("ss"):
        return noun
    if noun.endswith("ies"):
        return f"{noun[:-3]}y"
    return noun[:-2] if noun.endswith(("ches", "shes", "sses", "xes")) else noun.removesuffix("s")
