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
    "doctor",
    "evaluate",
    "read_results",
    "TaskResult",
    "SuiteResult",
    "AlpaGasus",
    "Brier",
    "HighEntropySum",
    "Lark",
    "LocalLogProbability",
    "Rank",
    "RankSurprisal",
    "RatersChoice",
    "Windowed",
    "Asked",
    "BM25",
    "Bill",
    "Blend",
    "Budget",
    "ByColumn",
    "Choice",
    "Column",
    "ConfigError",
    "CosineFilter",
    "CostEstimate",
    "DEITA",
    "DS2",
    "DSIR",
    "DataError",
    "Decontaminate",
    "decontaminate",
    "Leak",
    "Demonstrated",
    "Embedding",
    "EngineError",
    "Entropy",
    "FacilityLocation",
    "Folds",
    "Full",
    "GradSketch",
    "Grape",
    "IFD",
    "LESS",
    "Learnability",
    "QuRating",
    "Rho",
    "InsTag",
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
    "MIG",
    "MIWV",
    "MeanNll",
    "Message",
    "Method",
    "ModelRef",
    "Neurons",
    "Nll",
    "Number",
    "Noisy",
    "Nuggets",
    "Oracle",
    "PassRate",
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
    "RewardGap",
    "Sample",
    "ScoreTable",
    "Scored",
    "Scores",
    "S2L",
    "SelectIT",
    "SelectiveDPO",
    "Selection",
    "Settings",
    "Side",
    "Signal",
    "Signals",
    "Store",
    "StoreError",
    "Superfiltering",
    "SuperfilteringD",
    "TAP",
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
    "search",
    "select",
    "train",
    "vectors",
]
"""``instdiff.__all__``, sorted; filled when the package has one. A name that is here stays."""

# Verbs with their options; what is here stays, and what is new is added here.
TURNS = "--targets --reasoning --system"
COMMON = f"--config --data --limit --format --map {TURNS} --store --seed --quiet --json"
TEMPLATE = "--template --template-date"
JUDGE = "--judge-concurrency --judge-timeout --judge-tries --judge-max-tokens --judge-batch"
SURFACE = {
    "methods": "--json",
    "store info": "--store --json",
    "store gc": "--keep --older-than --dry-run --store --json",
    "store check": "--repair --store --json",
    "demo": "--output --device --quiet --json",
    "sample": "--config --data --output --max-samples --limit --seed --format --map --quiet --json",
    "render": f"--config --data --model --limit --row --format --map {TURNS} {TEMPLATE} --max-length --quiet --json",
    "doctor": f"{COMMON} --model --output {TEMPLATE} --max-length --dtype --device",
    "decontaminate": f"{COMMON.replace(' --seed', '')} --suite --task --data-dir --against --n --threshold --fields "
    "--near-duplicates --near --cosine --model --output --clean",
    "plan": f"{COMMON} --model --method --set {TEMPLATE} --max-length --dtype --device --target --holdout "
    "--cluster --judge-max-tokens --judge-price",
    "score": f"{COMMON} --model --method --set --output {TEMPLATE} --max-length --dtype --device --batch-tokens "
    f"--workers --executor --warmup --target --holdout --trust-held {JUDGE} --shards --shard-index --strict",
    "select": f"{COMMON} --scores --method --set --budget --per --rows --order --group-by --near-duplicates "
    "--with-scores --weights --output --record --model --strict",
    "train": f"{COMMON} --model --output {TEMPLATE} --device --print-launch --nodes --gpus-per-node --strict",
    "pipeline": f"{COMMON} --model --method --budget --per --near-duplicates --weights --output {TEMPLATE} "
    "--max-length --dtype --device --batch-tokens --workers --strict",
    "compare": f"{COMMON.replace(' --seed', '')} --model --method --budget --per --near-duplicates --headroom "
    f"--records --output --target {TEMPLATE} --max-length --dtype --device --batch-tokens --workers --strict",
    "search": f"{COMMON} --model --budget --per --trainings --output --target {TEMPLATE} --max-length --dtype --device "
    "--batch-tokens --workers --strict",
    "eval": f"{COMMON} --model --suite --task --data-dir --output --n --temperature --top-p --max-new-tokens --shots "
    f"--generator --concurrency --judge {JUDGE} --reference --answers --unsafe {TEMPLATE} "
    "--max-length --dtype --device --batch-tokens --workers --executor",
    "report": f"--data --selection --method --output --limit --format --map {TURNS} --store --quiet --json",
    "verdict": f"--data --output --limit --format --map {TURNS} --store --quiet --json",
    "explain": f"--config --data --scores --selection --by --limit --format --map {TURNS} --store --quiet --json",
    "diff": f"--config --data --scores --by --examples --limit --format --map {TURNS} --quiet --json",
    "export": "--config --data --format --output --name --layout --template --responses --half --set --store --model "
    f"--license --push --public --source --limit --data-format --map {TURNS} --quiet --json",
    "merge": "--output --data --model --method --warmup --target --store --strict --quiet --json",
}
ARGUMENTS: dict[str, list[str]] = {
    "methods": ["name"],
    "store info": [],
    "store gc": [],
    "store check": [],
    "demo": [],
    "report": ["where"],
    "verdict": ["run"],
    "explain": ["row", "overrides"],
    "diff": ["a", "b", "overrides"],
    "merge": ["folder"],
}  # fmt: skip - all others take overrides


@cache
def verbs() -> dict[str, Any]:
    from instdiff.cli.entry import app

    flat = {}
    for name, command in app.commands.items():
        inner = getattr(command, "commands", {"": command})
        flat |= {f"{name} {sub}".strip(): verb for sub, verb in inner.items()}
    return flat


def params(verb: str, kind: str) -> list[Any]:
    return [p for p in verbs()[verb].make_params() if p.param_type_name == kind]


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


UNCONFIGURED = ("demo", "methods", "store info", "store gc", "store check", "report", "verdict", "merge")
CONFIGURED = [verb for verb in SURFACE if verb not in UNCONFIGURED]


@pytest.mark.parametrize("verb", CONFIGURED)
def test_every_option_is_a_configuration_key(verb: str) -> None:
    kind = verbs()[verb].kind()
    # --config and --set are ways to give keys; --quiet and --json are how this one call speaks.
    aside = {"config", "set", "quiet", "json"}
    keys = {*kind.model_fields, *kind.aliases()}
    assert {p.name for p in params(verb, "option")} - aside - keys == set()


READING = [verb for verb in SURFACE if "--data " in SURFACE[verb] and verb != "merge"]  # merge reads as shards did


@pytest.mark.parametrize("verb", READING)
def test_the_same_keys_work_in_each_verb_that_reads_data(verb: str) -> None:
    kind = verbs()[verb].kind()
    wanted = {"data", "map", "limit", "longest_line_mb", "instruction_key", "input_key", "response_key"}
    assert wanted | {"targets", "reasoning", "system"} <= {*kind.model_fields}
    assert kind.aliases().get("max_samples") == "limit" or verb == "sample"
    shown = {p.name for p in params(verb, "option")}
    assert {"limit", "map"} <= shown and ({"targets", "reasoning", "system"} <= shown or verb == "sample")
    assert "format" in shown


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


RUN = """
import contextlib, io, sys
from instdiff.cli.entry import app
def run(*args):
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        app(args, prog_name="instdiff")
    assert said.getvalue(), args
"""


def test_help_loads_nothing_heavy() -> None:
    """Of every verb, in one process; its options are made of the configuration, which is made of pydantic."""
    code = f"{RUN}names = list(app.commands)\nassert len(names) >= 15, names\nfor name in names: run(name, '--help')"
    code += "\nassert 'instdiff.data' not in sys.modules and 'instdiff.engine' not in sys.modules"
    assert loaded(code) == ["pydantic"]


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["store", "--help"]])
def test_the_program_starts_without_pydantic(args: list[str]) -> None:
    code = f"{RUN}run(*{args!r})\nassert 'instdiff.config.base' not in sys.modules"
    assert loaded(code) == []


def test_listing_methods_loads_no_engine() -> None:
    assert "torch" not in loaded(f"{RUN}run('methods')")
