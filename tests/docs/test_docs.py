"""What the documents say is what the program does."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S)


def commands(path: Path) -> list[list[str]]:
    text = "\n".join(blocks(path, "sh")).replace("\\\n", " ")
    return [shlex.split(line) for line in text.splitlines() if line.startswith("instdiff ")]


def test_generated_parts_are_fresh() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "make_docs.py"), "--check"], check=False)
    assert done.returncode == 0, "run: python scripts/make_docs.py"


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_quickstart_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score, select and plan command, with the embedded model in place of the hub's."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"{n} + {n} = {2 * n}."} for n in range(30)]
    Path("my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = 0
    for words in commands(ROOT / "docs" / "quickstart.md"):
        if words[1] not in ("score", "select", "plan"):
            continue
        words = [word.replace("Qwen/Qwen2.5-0.5B", "builtin:tiny") for word in words[1:]]
        command = [sys.executable, "-m", "instdiff.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        ran += 1
    assert ran == 4
    assert len(Path("selected.jsonl").read_text().splitlines()) == 3
    (code,) = blocks(ROOT / "docs" / "quickstart.md", "python")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert 1 <= len(Path("selected.jsonl").read_text().splitlines()) <= 6


@pytest.mark.parametrize("page", ["combining", "raters-and-judges"])
def test_commands_on_embedded_rows_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are printed, in the order of the page, with the files that it shows."""
    path = ROOT / "docs" / f"{page}.md"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    Path("configs").symlink_to(ROOT / "configs")
    shown = {re.findall(r"^# (\S+)", text)[0]: text for text in blocks(path, "yaml")}
    for name, text in shown.items():
        Path(name).write_text(text)
    outputs = []
    for words in commands(path):
        if "builtin:demo" in words or "--config" in words:
            done = run(*words[1:])
            assert done.exit_code == 0, (words, done.stderr)
            outputs += [words[words.index("--output") + 1]] if "--output" in words else []
    assert len(outputs) >= 2 and all(Path(output).stat().st_size for output in outputs)
    assert shown.keys() <= {word.rpartition("=")[2] for words in commands(path) for word in words}
    for code in blocks(path, "python"):
        exec(code, {})
    for output, rows in TAKEN.get(page, {}).items():
        assert len(Path(output).read_text().splitlines()) == rows, output


TAKEN = {
    "combining": {
        **{name: 10 for name in ("then.jsonl", "loss.jsonl", "apart.jsonl", "blend.jsonl", "file.jsonl")},
        **{"even.jsonl": 12, "later.jsonl": 12, "python.jsonl": 3},
    }
}
"""Rows in the files that a page's commands write."""


def run(*words: str) -> Any:
    """A command in this process."""
    from typer.testing import CliRunner

    from instdiff.cli import entry

    return CliRunner().invoke(entry.app, list(words), prog_name="instdiff")


@pytest.mark.parametrize("path", DOCS, ids=lambda p: p.name)
def test_commands_in_documents_parse(path: Path) -> None:
    """Verbs and options exist, and configuration files named are there."""
    import typer.main

    from instdiff.cli import entry

    verbs = typer.main.get_command(entry.app).commands  # type: ignore[attr-defined]
    for words in commands(path):
        assert words[1] in verbs, words
        known = {flag for param in verbs[words[1]].params for flag in param.opts}
        for word in words[2:]:
            if word.startswith("--"):
                assert word.partition("=")[0] in known, words
            if word.startswith("configs/"):
                yaml.safe_load((ROOT / word).read_text(encoding="utf-8"))
