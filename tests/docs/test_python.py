"""The pages and the notebook for Python say what runs."""

from __future__ import annotations

import json
import multiprocessing
import re
from pathlib import Path

import pytest

from .pages import ROOT, blocks

PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "docs" / "python.ipynb"


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path / "store"))
    for name, extra in (("datasets", "hub"), ("pandas", "pandas"), ("trl", "train"), ("plotly", "report")):
        pytest.importorskip(name, reason=f'{name} is missing; it comes with pip install "instdiff[{extra}]"')
    return tmp_path


def test_the_page_runs_as_printed(aside: Path) -> None:
    """Its blocks one after the other, as a reader takes them; one of them goes from a data set to a verdict."""
    space: dict[str, object] = {}
    codes = blocks(PAGE, "python")
    assert len(codes) >= 5
    for code in codes:
        exec(compile(code, str(PAGE), "exec"), space)
    chosen = (aside / "selected.jsonl").read_text().splitlines()
    assert 5 <= len(chosen) <= 15 and (aside / "trl").is_dir() and (aside / "report.html").is_file()
    script = next(code for code in codes if "use_lora" in code)
    assert len([line for line in script.splitlines() if line.strip()]) <= 12
    assert (aside / "adapter" / "adapter_config.json").is_file()
    assert re.search(r"ifd has a held-out NLL of [\d.]+", repr(space["found"]))
    assert {line["name"] for line in space["found"]["lines"]} == {"base", "random", "ifd"}  # type: ignore[index]


def test_the_notebook_runs(aside: Path) -> None:
    """With nbclient where it is installed; else its cells as a script, each value shown as a notebook shows it."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(codes) >= 6 and all(not cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    try:
        import ipykernel  # noqa: F401
        import nbclient
        import nbformat
    except ImportError:
        space: dict[str, object] = {"__name__": "notebook"}
        for code in codes:
            body, _, last = code.rstrip().rpartition("\n")
            exec(body, space)
            try:
                shown = eval(compile(last, str(NOTEBOOK), "eval"), space)
            except SyntaxError:
                exec(last, space)
                continue
            html = shown._repr_html_() if hasattr(shown, "_repr_html_") else repr(shown)
            assert html and "object at 0x" not in html
        assert multiprocessing.active_children() == []
        return
    nbclient.NotebookClient(nbformat.read(NOTEBOOK, 4), timeout=600).execute()
