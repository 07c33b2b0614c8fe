"""What the documents say is what the program does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .pages import PAGES, ROOT, blocks, commands, lines, run, shown, title

ELSEWHERE = {
    "README.md": "tests/cli/test_readme_journey.py and tests/cli/test_demo.py",
    "CONTRIBUTING.md": "only targets of the Makefile",
    "docs/add-a-method.md": "tests/cli/test_docs.py",
    "docs/export.md": "tests/cli/test_export_page.py",
    "docs/scale.md": "its commands are parts of a job on a cluster; tests/scale has such jobs",
}
"""Pages whose commands are not run here, and where they are."""

RUN = [path for path in PAGES if blocks(path, "sh") and title(path) not in ELSEWHERE]
MINUTES = {"docs/skills.md", "docs/training.md"}

TAKEN = {
    "docs/quickstart.md": {"selected.jsonl": 3, "trl/tenth.jsonl": 3},
    "docs/looking.md": {"ifd/selected.jsonl": 12, "random/selected.jsonl": 12},
    "docs/configuration.md": {},
    "docs/combining.md": {
        **{name: 10 for name in ("then.jsonl", "loss.jsonl", "apart.jsonl", "blend.jsonl", "file.jsonl")},
        **{"even.jsonl": 12, "later.jsonl": 12},
    },
    **{title(path): {f"{path.stem}.jsonl": 5} for path in RUN if path.parent.name == "methods"},
}
"""Rows in the files that a page's commands write."""


def test_generated_parts_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_docs

    monkeypatch.setattr(sys, "argv", ["make_docs.py", "--check"])
    assert make_docs.main() == 0, "run: python scripts/make_docs.py"


def test_generated_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The imports of methods and the homes of public names are those that the program has."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import make_docs

    import instdiff
    from instdiff.methods import METHODS

    classes = {name: kind.__name__ for name, kind in METHODS.items()}
    assert {kind for _, kind in make_docs.named_classes()} == set(classes.values()) and len(classes) == 47
    assert list(classes)[8:] == sorted(list(classes)[8:])
    assert {"METHODS", *classes.values()} < set(instdiff.__all__)
    for path in make_docs.SOURCES:
        text = path.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if "IFD " not in line]
        assert make_docs.filled_source(text) == text
        assert make_docs.filled_source("\n".join([*lines, ""])) == text  # what lacks is found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all pages: most ask for the same columns of the same rows."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=title(p), marks=[pytest.mark.slow] * (title(p) in MINUTES)) for p in RUN]
)
def test_commands_run(path: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed and in their order, with the files that the page shows and the embedded model for a hub's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTDIFF_STORE", str(store))
    Path("configs").symlink_to(ROOT / "configs")
    rows = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"{n} + {n} = {2 * n}."} for n in range(30)]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {found[1]: text for text in blocks(path, "yaml") if (found := re.match(r"# (\S+)\n", text))}
    for name, text in files.items():
        Path(name).write_text(text)
    asked = commands(path)
    assert len(asked) == len(lines(path)), "an sh block holds instdiff commands alone"
    for words in asked:
        done = run(*(word.replace("Qwen/Qwen2.5-0.5B", "builtin:tiny") for word in words[1:]))
        assert done.exit_code == 0, (words, done.stderr, done.exception)
        if "--output" in words:
            assert Path(words[words.index("--output") + 1]).stat().st_size, words
    assert files.keys() <= {word.rpartition("=")[2] for words in asked for word in words}
    for name, count in TAKEN.get(title(path), {}).items():
        assert len(Path(name).read_text().splitlines()) == count, name
    for code in blocks(path, "python"):
        exec(code, {})


@pytest.mark.parametrize("path", PAGES, ids=title)
def test_commands_in_documents_parse(path: Path) -> None:
    """Verbs and options exist, also of commands that are only shown, and configuration files named are there."""
    from instdiff.cli.entry import app

    for words in shown(path):
        verb: Any = app.commands.get(words[1])
        assert verb is not None, words
        verb = getattr(verb, "commands", {}).get(words[2] if len(words) > 2 else "", verb)
        known = {flag for param in verb.make_params() for flag in param.opts}
        for word in words[2:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, words
            if word.startswith("configs/"):
                assert isinstance(yaml.safe_load((ROOT / word).read_text(encoding="utf-8")), dict)


def test_targets_named_are_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = [line.split()[1] for path in PAGES for line in lines(path) if line.startswith("make ")]
    assert named and set(named) <= targets


def test_each_method_has_a_page() -> None:
    from instdiff.methods import METHODS

    pages = {path.stem: path.read_text(encoding="utf-8") for path in PAGES if path.parent.name == "methods"}
    assert pages.keys() == METHODS.keys()
    for name, text in pages.items():
        assert text.startswith(f"# `{name}`\n")
        heads = re.findall(r"^## (.*)", text, re.M)
        assert [head for head in heads if head in HEADS] == HEADS, name
        assert all(f"scripts/make_docs.py: {kind} {name} -->" in text for kind in KINDS)
        idea = re.search(r"idea \S+ -->\n(.+)\n<!-- end -->\n\n" + PICTURE + r"## When to use it\n\n(.+)", text)
        assert idea and 20 < len(idea[1]) < 220 and idea[2].startswith("Take it "), name


PICTURE = r"(?:<!-- generated by scripts/make_docs.py: picture [\s\S]*?<!-- end -->\n\n)?"
HEADS = ["When to use it", "Formula", "Cost", "Options", "When it fails", "Evidence", "Try it"]
KINDS = ("idea", "cost", "options", "found", "try")


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 900
    first = [
        text.index(one) for one in ("# instdiff", "pip install", "instdiff demo", "instdiff score", "Does it work?")
    ]
    assert first == sorted(first) and "make demo" in text and "make test" in text
