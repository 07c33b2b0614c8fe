"""Tiny Python functions: to write, to run in the head and to explain.

Each value that a response states was obtained by running its code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

from demo_parts.rows import ANIMALS, FRUITS, TOOLS, Row, sentence


@dataclass(frozen=True)
class Spec:
    """A function: two possible names, parameters, body, and what it does as a verb phrase.

    `{k}` stands for a number and `{c}` for a letter, drawn anew for every row.
    """

    names: str
    params: str
    body: str
    does: str


SPECS = (
    Spec("add_{k} plus_{k}", "n", "return n + {k}", "adds {k} to a number"),
    Spec("times_{k} multiply_by_{k}", "n", "return n * {k}", "multiplies a number by {k}"),
    Spec("minus_{k} subtract_{k}", "n", "return n - {k}", "subtracts {k} from a number"),
    Spec("power_{k} to_power_{k}", "b", "return b ** {k}", "raises a number to the power of {k}"),
    Spec("rest_{k} modulo_{k}", "n", "return n % {k}", "gives the remainder of a number divided by {k}"),
    Spec("divisible_by_{k} multiple_of_{k}", "n", "return n % {k} == 0", "tells whether {k} divides a number"),
    Spec("above_{k} keep_above_{k}", "xs", "return [x for x in xs if x > {k}]", "keeps the numbers greater than {k}"),
    Spec("below_{k} keep_below_{k}", "xs", "return [x for x in xs if x < {k}]", "keeps the numbers smaller than {k}"),
    Spec("scale_by_{k} stretch_{k}", "xs", "return [{k} * x for x in xs]", "multiplies each number by {k}"),
    Spec("shift_by_{k} raise_all_{k}", "xs", "return [x + {k} for x in xs]", "adds {k} to every number of a list"),
    Spec("count_above_{k} how_many_above_{k}", "xs", "return sum(x > {k} for x in xs)", "counts the numbers above {k}"),
    Spec("cap_at_{k} limit_{k}", "n", "return min(n, {k})", "returns a number, but at most {k}"),
    Spec("starts_with_{c} begins_with_{c}", "w", 'return w.startswith("{c}")', "tells whether a word starts with {c}"),
    Spec("count_{c} number_of_{c}", "w", 'return w.count("{c}")', "counts the letter {c} in a word"),
    Spec("without_{c} drop_{c}", "w", 'return w.replace("{c}", "")', "removes the letter {c} from a word"),
    Spec("words_with_{c} find_{c}", "ws", 'return [w for w in ws if "{c}" in w]', "keeps the words that contain {c}"),
    Spec("longer_than_{k} long_{k}", "ws", "return [w for w in ws if len(w) > {k}]", "keeps words over {k} letters"),
    Spec("first_{k} head_{k}", "s", "return s[:{k}]", "returns the first {k} characters of a text"),
    Spec("last_{k} tail_{k}", "s", "return s[-{k}:]", "returns the last {k} characters of a text"),
    Spec("repeat_{k} copies_{k}", "w", "return w * {k}", "repeats a word {k} times"),
    Spec("is_even even", "n", "return n % 2 == 0", "tells whether a number is even"),
    Spec("square squared", "n", "return n * n", "returns the square of a number"),
    Spec("add total_of_two", "a, b", "return a + b", "adds two numbers"),
    Spec("larger maximum", "a, b", "if a > b:\n        return a\n    return b", "returns the larger of two numbers"),
    Spec("distance gap", "a, b", "return abs(a - b)", "returns how far apart two numbers are"),
    Spec("area rectangle_area", "a, b", "return a * b", "computes the area of a rectangle from its sides"),
    Spec("total add_all", "xs", "return sum(xs)", "adds up the numbers of a list"),
    Spec("largest biggest", "xs", "return max(xs)", "finds the largest number of a list"),
    Spec("spread value_range", "xs", "return max(xs) - min(xs)", "returns the largest number minus the smallest"),
    Spec("evens keep_even", "xs", "return [x for x in xs if x % 2 == 0]", "keeps the even numbers of a list"),
    Spec("odds keep_odd", "xs", "return [x for x in xs if x % 2 == 1]", "keeps the odd numbers of a list"),
    Spec("squares all_squares", "xs", "return [x * x for x in xs]", "squares every number of a list"),
    Spec("ordered ascending", "xs", "return sorted(xs)", "sorts a list from small to large"),
    Spec("descending from_large", "xs", "return sorted(xs, reverse=True)", "sorts a list from large to small"),
    Spec("backwards reversed_list", "xs", "return xs[::-1]", "reverses a list"),
    Spec("mean average", "xs", "return round(sum(xs) / len(xs), 2)", "computes the average of a list"),
    Spec("running partial_sums", "xs",
         "sums = []\n    for x in xs:\n        sums.append(sum(sums[-1:]) + x)\n    return sums",
         "returns the running totals"),
    Spec("product multiply_all", "xs", "result = 1\n    for x in xs:\n        result *= x\n    return result",
         "multiplies all numbers of a list"),
    Spec("positions with_index", "ws", "return list(enumerate(ws))", "pairs every word with its position"),
    Spec("lengths word_lengths", "ws", "return [len(w) for w in ws]", "returns the length of every word"),
    Spec("longest longest_word", "ws", "return max(ws, key=len)", "finds the first of the longest words"),
    Spec("joined with_commas", "ws", 'return ", ".join(ws)', "joins words with commas"),
    Spec("capitals shout", "ws", "return [w.upper() for w in ws]", "writes every word in capital letters"),
    Spec("length_table lengths_by_word", "ws", "return {w: len(w) for w in ws}", "maps every word to its length"),
    Spec("reverse_text mirror", "w", "return w[::-1]", "reverses a word"),
    Spec("vowels count_vowels", "w", 'return sum(char in "aeiou" for char in w)', "counts the vowels of a word"),
    Spec("is_palindrome same_backwards", "w", "return w == w[::-1]", "tells whether a word reads the same backwards"),
    Spec("letters unique_letters", "w", "return sorted(set(w))", "lists the different letters of a word in order"),
    Spec("word_count count_words", "s", "return len(s.split())", "counts the words of a text"),
    Spec("initials first_letters", "s", "return [w[0] for w in s.split()]", "returns the first letter of each word"),
    Spec("last_word final_word", "s", "return s.split()[-1]", "returns the last word of a text"),
    Spec("factorial fact", "b", "result = 1\n    for i in range(2, b + 1):\n        result *= i\n    return result",
         "computes the factorial of a number"),
    Spec("count_up numbers_to", "b", "return list(range(1, b + 1))", "lists the numbers from one up to a limit"),
    Spec("digit_sum sum_of_digits", "n", "return sum(int(digit) for digit in str(n))", "adds the digits of a number"),
    Spec("sign direction", "n", 'if n > 50:\n        return "high"\n    return "low"', "calls numbers over 50 high"),
)  # fmt: skip
WRITE = (
    "Write a Python function `{name}` that {does}.",
    "In Python, define `{name}`, a function that {does}.",
    "Show a short Python function called `{name}` which {does}.",
    "Give me Python code for `{name}({params})`. It {does}.",
    "I need a function in Python that {does}. Call it `{name}`.",
)
PREDICT = (
    "What does this Python program print?",
    "Give the output of the following Python code.",
    "Run this code in your head. What is printed?",
    "Which output does this program produce?",
)
EXPLAIN = (
    "Explain briefly what this function does.",
    "What does the following Python function do?",
    "Describe this function briefly and give an example.",
    "What is this Python function for?",
)


def argument(rng: Random, params: str) -> str:
    """Literals for the parameters; the parameter name says of what sort they are."""
    table = rng.choice([FRUITS, ANIMALS, TOOLS])
    if params == "a, b":
        return f"{rng.randint(2, 40)}, {rng.randint(2, 40)}"
    if params == "xs":
        return repr([rng.randint(1, 20) for _ in range(rng.randint(3, 5))])
    if params == "ws":
        return repr(rng.sample(table, rng.randint(2, 4))).replace("'", '"')
    if params in ("w", "s"):
        text = rng.choice(table) if params == "w" else sentence(rng).rstrip(".").lower()
        return f'"{text}"'
    return str(rng.randint(2, 6) if params == "b" else rng.randint(2, 99))


def value_of(code: str, call: str) -> str:
    """What Python shows for `call` after `code`."""
    scope: dict[str, object] = {}
    exec(code, scope)
    return repr(eval(call, scope))


def make(rng: Random) -> Row:
    """A function to write, a program to run in the head, or a function to explain."""
    spec = rng.choice(SPECS)
    k, c = str(rng.randint(2, 12)), rng.choice("abcdegilmnoprstw")
    if spec.params in ("b", "w"):
        k = str(rng.randint(2, 4))
    filled = [
        re.sub(r"\{c\}", c, re.sub(r"\{k\}", k, text))
        for text in (rng.choice(spec.names.split()), spec.body, spec.does)
    ]
    name, body, does = filled
    code = f"def {name}({spec.params}):\n    {body}"
    call = f"{name}({argument(rng, spec.params)})"
    value = value_of(code, call)
    example = rng.choice(["For example, `{}` gives `{}`.", "`{}` gives `{}`.", "So `{}` gives `{}`."]).format(
        call, value
    )
    form = rng.choice(["write", "write", "write", "predict", "explain"])
    if form == "write":
        ask = rng.choice(WRITE).format(name=name, does=does, params=spec.params)
        return Row(ask, "", f"```python\n{code}\n```\nThe function {does}. {example}", "python", spec.names)
    if form == "predict":
        said = f"It prints `{value}`, because `{name}` {does}."
        return Row(rng.choice(PREDICT), f"{code}\n\nprint(repr({call}))", said, "python", spec.names)
    return Row(rng.choice(EXPLAIN), code, f"The function `{name}` {does}. {example}", "python", spec.names)
