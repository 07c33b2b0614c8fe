"""A verdict as a card: text, Markdown for a model or data card, and a picture for a page."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from instdiff.core.display import span, visible
from instdiff.core.files import write_record, writing
from instdiff.errors import ConfigError
from instdiff.experiments.summary import BETTER, FEW, SAME, WORSE
from instdiff.reporting.verdict import NO_OUTCOME, Verdict
from instdiff.version import __version__

ENDINGS = (".svg", ".md", ".txt", ".json")
COLOURS = {
    BETTER: ("#1a7f37", "#3fb950"),
    WORSE: ("#cf222e", "#f85149"),
    SAME: ("#57606a", "#9da7b3"),
    FEW: ("#9a6700", "#d29922"),
    NO_OUTCOME: ("#57606a", "#9da7b3"),
}
"""Of each kind of verdict, on white and on black."""
LETTERS, WIDTH = 84, 680
"""Characters of a line in the picture, and its width in pixels."""


def write_card(found: Verdict, path: str | Path) -> None:
    """Write a card as what the path ends in; a ConfigError for another ending than those of ``ENDINGS``."""
    check_ending(path)
    place = Path(path)
    if place.suffix == ".json":
        write_record(place, asdict(found))
        return
    made = {".svg": svg, ".md": markdown, ".txt": text}[place.suffix](found)
    with writing(place) as aside:
        aside.write_text(made, encoding="utf-8")


def check_ending(path: str | Path) -> None:
    """Refuse what no card is written as."""
    if Path(path).suffix not in ENDINGS:
        raise ConfigError(f"a card goes to {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}, not to '{path}'")


def facts(found: Verdict) -> Iterator[tuple[str, str]]:
    """What the verdict rests on, each under its name."""
    if found.difference is not None:
        unit = f" {found.unit}" if found.unit else ""
        known = found.low is not None and found.high is not None
        ends = f", 95 % interval {found.low:+.3f} to {found.high:+.3f}" if known else ", too few seeds for an interval"
        better = "lower" if found.lower_is_better else "higher"
        yield "difference", f"{found.difference:+.3f}{unit} in {found.measured}{ends}; {better} is better"
    if found.seeds is not None:
        yield "seeds", f"{found.seeds} of {found.line}, {found.seeds_against} of {found.against}"
    counts = {"rows": found.rows, "tokens": found.tokens}
    taken = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count is not None)
    if taken:
        by, budget = found.method or found.line, found.budget
        yield "chosen", taken + (f" by {by}" if by else "") + (f", budget {budget}" if budget else "")
    if found.seconds is not None:
        where = f" on a {found.device}" if found.device else ""
        yield "cost", f"{span(found.seconds)}{where}, to choose and train"
    for told in found.others:
        yield "also", told
    for alert in found.alerts:
        yield "look at", alert.text


def text(found: Verdict) -> str:
    """For a terminal or a file: the word, the sentence, the facts."""
    return "\n".join([found.word, f"  {found.sentence}", *(f"  {name}: {said}" for name, said in facts(found))]) + "\n"


def markdown(found: Verdict) -> str:
    """For a model card or a data card; it links nothing."""
    lines = [f"### {_escaped(found.word)}", "", _escaped(found.sentence), ""]
    if rows := [f"| {name} | {_escaped(said)} |" for name, said in facts(found)]:
        lines += ["| | |", "|---|---|", *rows, ""]
    return "\n".join([*lines, f"Told by instdiff {__version__}.", ""])


def _escaped(said: str) -> str:
    """Text that Markdown takes as text."""
    return "".join(f"\\{c}" if c in r"\`*_[]|<>#~" else c for c in " ".join(visible(said).split()))


# ── the picture ───────────────────────────────────────────────────────────────────────────────────────────────────────


def svg(found: Verdict) -> str:
    """A picture that is right on light and dark pages; it asks for no font, script or address."""
    light, dark = COLOURS[found.kind]
    out, y = [_word(found)], 74
    if found.low is not None and found.high is not None and found.difference is not None:
        out.append(_interval(found, y))
        y += 62
    for name, said in [("", found.sentence), *facts(found)]:
        for at, line in enumerate(textwrap.wrap(visible(said), LETTERS - 12 * bool(name), break_on_hyphens=False)):
            label = f'<text class="name" x="28" y="{y}">{name}</text>' if name and not at else ""
            out.append(f'{label}<text x="{112 if name else 28}" y="{y}">{html.escape(line)}</text>')
            y += 20
        y += 4
    height = y + 8
    style = (
        "text{font:14px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}"
        f".word{{font-size:22px;font-weight:600;fill:{light}}}.name,.end{{fill:#57606a}}.end{{font-size:12px}}"
        f".card{{fill:#fff;stroke:#d0d7de}}.bar{{fill:{light}}}.range{{stroke:{light}}}.axis{{stroke:#8c959f}}"
        "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.name,.end{fill:#9da7b3}"
        f".card{{fill:#0d1117;stroke:#3d444d}}.word,.bar{{fill:{dark}}}.range{{stroke:{dark}}}.axis{{stroke:#6e7681}}}}"
    )
    said = html.escape(visible(f"{found.word}: {found.sentence}"))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
            f'role="img" aria-label="{said}">',
            f"<title>{said}</title><style>{style}</style>",
            f'<rect class="card" x=".5" y=".5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            f'<rect class="bar" x="10" y="14" width="5" height="{height - 28}" rx="2.5"/>',
            *out,
            "</svg>\n",
        ]
    )


def _word(found: Verdict) -> str:
    return f'<text class="word" x="28" y="42">{html.escape(visible(found.word))}</text>'


def _interval(found: Verdict, y: int) -> str:
    """The difference with its interval beside that of the control, which is zero; better is to the right."""
    sign = -1 if found.lower_is_better else 1
    assert found.low is not None and found.high is not None and found.difference is not None
    values = sorted((sign * found.low, sign * found.high))
    left, right = min(values[0], 0.0), max(values[1], 0.0)
    room = (right - left) * 0.08 or 1.0

    def x(value: float) -> str:
        return f"{40 + (WIDTH - 80) * (value - left + room) / (right - left + 2 * room):.1f}"

    low, high, zero, at = (x(value) for value in (*values, 0.0, sign * found.difference))
    against = html.escape(visible(found.against))
    return (
        f'<line class="axis" x1="40" x2="{WIDTH - 40}" y1="{y}" y2="{y}"/>'
        f'<line class="axis" x1="{zero}" x2="{zero}" y1="{y - 8}" y2="{y + 12}"/>'
        f'<line class="range" x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke-width="6" stroke-linecap="round"/>'
        f'<circle class="bar" cx="{at}" cy="{y}" r="7"/>'
        f'<text class="end" x="{zero}" y="{y + 28}" text-anchor="middle">{against}</text>'
        f'<text class="end" x="{WIDTH - 40}" y="{y - 14}" text-anchor="end">better →</text>'
        f'<text class="end" x="40" y="{y - 14}">← worse</text>'
    )
