"""What users have come to rely on: public names, verbs, options, configuration keys, and an instant start."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

HEAVY = ["torch", "transformers", "pyarrow", "pydantic", "peft", "trl", "accelerate", "datasets", "huggingface_hub"]

PUBLIC: list[str] = [
    "export",
    "report",
    "compare",
    "evaluate",
    "read_results",
    "TaskResult",
    "SuiteResult",
    "AlpaGasus",
    "Asked",
    "Bill",
    "Blend",
    "Budget",
    "Choice",
    "Column",
    "ConfigError",
    "CosineFilter",
    "CostEstimate",
    "DEITA",
    "DS2",
    "DataError",
    "Demonstrated",
    "Embedding",
    "EngineError",
    "Entropy",
    "FacilityLocation",
    "Full",
    "IFD",
    "InstDiffError",
    "InstructDiff",
    "Judged",
    "KCenter",
    "KMeansQuota",
    "Length",
    "Listed",
    "Longest",
    "MADS",
    "METHODS",
    "MIWV",
    "MeanNll",
    "Message",
    "Method",
    "ModelRef",
    "Neurons",
    "Nll",
    "Noisy",
    "Nuggets",
    "Perplexity",
    "PlanError",
    "Pool",
    "Pooled",
    "PromptOnly",
    "Prompted",
    "RDS",
    "Ragged",
    "Random",
    "ResponseEntropy",
    "ResponseOnly",
    "Sample",
    "ScoreTable",
    "Scored",
    "Scores",
    "SelectIT",
    "Selection",
    "Settings",
    "Signal",
    "Signals",
    "Store",
    "StoreError",
    "Superfiltering",
    "SuperfilteringD",
    "TShirt",
    "Text",
    "Then",
    "Top1",
    "WholeText",
    "Words",
    "Zip",
    "__version__",
    "load",
    "pipeline",
    "plan",
    "read_scores",
    "reasons",
    "score",
    "select",
    "train",
    "vectors",
]
"""``instdiff.__all__``, sorted; filled when the package has one. A name that is here stays."""

# Verbs with their options; what is here stays, and what is new is added here.
COMMON = "--config --data --limit --format --map --targets --store --seed --quiet --json"
SURFACE = {
    "methods": "--json",
    "store info": "--store --json",
    "store gc": "--keep --older-than --dry-run --store --json",
    "sample": "--config --data --output --max-samples --limit --seed --format --map --quiet --json",
    "plan": f"{COMMON} --model --method --set --template --max-length --dtype --device --target --cluster",
    "score": f"{COMMON} --model --method --set --output --template --max-length --dtype --device --batch-tokens "
    "--workers --executor --warmup --target --judge-concurrency --shards --shard-index --strict",
    "select": f"{COMMON} --scores --method --set --budget --order --group-by --with-scores --output --record --model",
    "train": f"{COMMON} --model --output --template --device --print-launch --nodes --gpus-per-node",
    "pipeline": f"{COMMON} --model --output --template --max-length --dtype --device --batch-tokens --workers",
    "compare": f"{COMMON.replace(' --seed', '')} --model --method --budget --output --target --template --max-length "
    "--dtype --device --batch-tokens --workers --strict",
    "eval": f"{COMMON} --model --suite --task --data-dir --output --n --temperature --top-p --max-new-tokens --shots "
    "--generator --concurrency --judge --judge-concurrency --reference --answers --unsafe --template "
    "--max-length --dtype --device --batch-tokens --workers --executor",
    "report": "--data --output --store --quiet --json",
    "explain": "--config --data --scores --selection --by --format --map --targets --store --quiet --json",
    "diff": "--config --data --scores --by --examples --format --map --targets --quiet --json",
    "export": "--config --data --format --output --name --layout --template --model --license --push --public "
    "--source --data-format --map --targets --quiet --json",
    "merge": "--output --data --model --method --warmup --target --store --strict --quiet --json",
}
ARGUMENTS: dict[str, list[str]] = {
    "methods": ["name"],
    "store info": [],
    "store gc": [],
    "report": ["where"],
    "explain": ["row", "overrides"],
    "diff": ["a", "b", "overrides"],
    "merge": ["folder"],
}  # fmt: skip - all others take overrides

ALL_VERBS = """
import importlib
from instdiff.cli import app as place
importlib.import_module("instdiff.cli.entry")
names = [verb.name for verb in place.app.registered_commands]
"""


@cache
def verbs() -> dict[str, Any]:
    import typer.main

    place: dict[str, Any] = {}
    exec(ALL_VERBS, place)
    group: Any = typer.main.get_command(place["place"].app)
    flat = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {"": command})
        flat |= {f"{name} {sub}".strip(): verb for sub, verb in inner.items()}
    return flat


def params(verb: str, kind: str) -> list[Any]:
    return [p for p in verbs()[verb].params if p.param_type_name == kind and p.name != "help"]


def test_the_verbs() -> None:
    assert sorted(verbs()) == sorted(SURFACE)


@pytest.mark.parametrize("verb", list(SURFACE))
def test_the_options(verb: str) -> None:
    found = {flag for p in params(verb, "option") for flag in (*p.opts, *p.secondary_opts)} - {"-h", "--help"}
    assert found == set(SURFACE[verb].split())
    assert [p.name for p in params(verb, "argument")] == ARGUMENTS.get(verb, ["overrides"])


@pytest.mark.parametrize("verb", list(SURFACE))
def test_help_says_what_every_option_is_and_shows_an_example(verb: str) -> None:
    command = verbs()[verb]
    assert command.help and f"instdiff {verb}" in (command.epilog or "")
    for param in params(verb, "option"):
        assert param.help, f"--{param.name} has no help"


CONFIGURED = [verb for verb in SURFACE if verb not in ("methods", "store info", "store gc", "report", "merge")]


@pytest.mark.parametrize("verb", CONFIGURED)
def test_every_option_is_a_configuration_key(verb: str) -> None:
    from instdiff.config import commands as verbs
    from instdiff.config import compare, evaluate
    from instdiff.config import selection as show

    kinds = {"plan": verbs.ScoreConfig, "compare": compare.CompareConfig, "eval": evaluate.EvalConfig}
    kinds |= {"explain": show.ExplainConfig, "diff": show.DiffConfig, "export": show.ExportConfig}
    kind = kinds.get(verb) or getattr(verbs, f"{verb.capitalize()}Config")
    # --config and --set are ways to give keys; --quiet and --json are how this one call speaks.
    aside = {"config", "set", "quiet", "json"}
    keys = {*kind.model_fields, *kind.aliases()}
    assert {p.name for p in params(verb, "option")} - aside - keys == set()


def test_public_names() -> None:
    import instdiff

    if not hasattr(instdiff, "__all__"):
        pytest.skip("instdiff has no __all__ yet")
    assert sorted(instdiff.__all__) == sorted(PUBLIC)
    for name in instdiff.__all__:
        assert getattr(instdiff, name) is not None


def loaded(code: str) -> list[str]:
    """The heavy packages that are imported after this code."""
    tail = f"\nimport json, sys\nprint('\\n' + json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded("import instdiff") == []


def test_methods_need_no_heavy_package() -> None:
    assert loaded("import instdiff.methods, instdiff.scoring.planner") == []


def test_help_loads_nothing_heavy() -> None:
    """Of the program and of every verb, in one process."""
    code = f"""
import contextlib, io
{ALL_VERBS}
assert len(names) >= 5, names
for args in (["--help"], ["--version"], *([name, "--help"] for name in names)):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        place.app(args, prog_name="instdiff")
    assert said.getvalue(), args
"""
    # This typer imports pydantic to show an option's type; our own configuration, which is made of it, stays out.
    code += "assert 'instdiff.config.base' not in sys.modules and 'instdiff.data' not in sys.modules"
    assert set(loaded(f"import sys\n{code}")) <= {"pydantic"}


def test_the_program_starts_without_pydantic() -> None:
    code = f"""
import contextlib, io
{ALL_VERBS}
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    place.app(["--help"], prog_name="instdiff")
"""
    assert loaded(code) == []


def test_listing_methods_loads_no_engine() -> None:
    code = f"""
import contextlib
{ALL_VERBS}
with contextlib.suppress(SystemExit):
    place.app(["methods"], prog_name="instdiff")
"""
    assert "torch" not in loaded(code)
