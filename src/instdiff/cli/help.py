"""Help texts: panels of options, required ones marked, examples that can be copied at any width."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import click

PANELS = {
    "Data": "config data scores selection source row limit format data_format map targets reasoning system target "
    "holdout warmup reference against",
    "Model": "model template template_date max_length dtype generator judge trust_held",
    "Method": "method set half responses budget per rows order group_by near_duplicates by headroom trainings "
    "max_samples seed suite task data_dir n threshold fields near cosine temperature top_p max_new_tokens shots unsafe "
    "keep older_than repair examples",
    "Output": "output record records answers with_scores weights clean name layout license push public print_launch "
    "dry_run strict quiet json",
    "Speed": "device batch_tokens workers executor store concurrency judge_concurrency judge_timeout judge_tries "
    "judge_max_tokens judge_batch judge_price cluster shards shard_index nodes gpus_per_node",
}
"""The panels of a verb's help, with the options that stand in each."""
PANEL_OF = {name: panel for panel, names in PANELS.items() for name in names.split()}


def write_options(options: Sequence[click.Parameter], ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """Every option in its panel, in the verb's own order."""
    panels: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
    for option in options:
        record = option.get_help_record(ctx) if isinstance(option, click.Option) else None
        if record is not None:
            panels[PANEL_OF.get(str(option.name), "Output")].append((click.style(record[0], fg="cyan"), record[1]))
    for panel, records in panels.items():
        write_section(panel, records, formatter)


def write_commands(
    sections: Mapping[str, Sequence[str]], commands: Mapping[str, click.Command], formatter: click.HelpFormatter
) -> None:
    """Every command with its first sentence, whole."""
    width = max(map(len, commands))
    for title, names in sections.items():
        records = [
            (click.style(name.ljust(width), fg="cyan"), first_sentence(commands[name].help or "")) for name in names
        ]
        write_section(title, records, formatter)


def write_section(title: str, records: list[tuple[str, str]], formatter: click.HelpFormatter) -> None:
    """A list under its title; nothing where it is empty."""
    if records:
        with formatter.section(click.style(title, bold=True)):
            formatter.write_dl(records, col_max=min(30, formatter.width // 2))


def first_sentence(text: str) -> str:
    """What a list of commands says of one."""
    return re.split(r"(?<=\.)\s(?=[A-Z`])", " ".join(text.split()), maxsplit=1)[0].removesuffix(".")


def write_epilog(text: str, formatter: click.HelpFormatter) -> None:
    """Examples as a shell takes them: a command that is too wide goes on in the next line after a backslash."""
    for block in text.replace("\\\n", "").split("\n\n"):
        title, _, rest = block.partition(":")
        formatter.write(f"\n{click.style(title, bold=True)}:\n")
        for line in filter(None, map(str.strip, rest.splitlines())):
            formatter.write("".join(f"{part}\n" for part in fold_command(line, formatter.width)))


def fold_command(line: str, width: int) -> Iterator[str]:
    """The command in lines of at most ``width`` characters, broken before options; those after the first go on."""
    first, *rest = re.split(r"\s+(?=-|\w+\.\w+=)", " ".join(line.split()))
    held = f"  {first}"
    for word in rest:
        if len(held) + len(word) + 3 > width:
            yield f"{held} \\"
            held = f"    {word}"
        else:
            held += f" {word}"
    yield held
