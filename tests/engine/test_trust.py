"""Code that lies beside a model, or in the working folder, is never run."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from multiprocessing import Pipe
from pathlib import Path

import pytest

from helpers import make_llama
from instdiff.errors import EngineError
from instdiff.grading.processes import Solution, Verdict, grade_all
from instdiff.grading.sandbox import Program, Sandbox

SRC = Path(__file__).resolve().parents[2] / "src" / "instdiff"
LOADERS = ("from_pretrained", "SentenceTransformer", "LLM")
MAIN = "from instdiff.cli.entry import main; main()"
POISON = ("decimal", "json", "numpy", "re", "signal", "torch")


@pytest.fixture
def coded(tmp_path: Path) -> Path:
    """A model whose configuration asks for a file of its own."""
    folder = make_llama(tmp_path / "rc")
    path = folder / "config.json"
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "xrc", "auto_map": auto}))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\n")
    return folder


@pytest.mark.parametrize(("verb", "answer"), [("score", "yes"), ("score", None), ("train", "yes"), ("eval", "yes")])
def test_code_of_a_model_is_not_run_whatever_standard_input_says(
    coded: Path, tmp_path: Path, verb: str, answer: str | None
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "say 3", "output": "3"}\n' * 4)
    words = {
        "score": ["--method", "entropy", "--model", f"base={coded}", "--output", "e.parquet"],
        "train": ["--model", str(coded), "--output", "trained"],
        "eval": ["--suite", "heldout", "--model", str(coded), "--output", "r.json"],
    }[verb]
    said = {"input": "yes\n" * 20} if answer else {"stdin": subprocess.DEVNULL}
    ran = subprocess.run(  # type: ignore[call-overload]
        [sys.executable, "-c", MAIN, verb, *words, "--data", str(rows), "--store", "st"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        **said,
    )
    assert ran.returncode == 2, ran
    assert "needs Python code that comes with it, and such code is never run" in ran.stderr
    assert "Traceback" not in ran.stderr and "[y/N]" not in ran.stdout + ran.stderr
    assert not (tmp_path / "RAN").exists()


def test_every_loading_refuses_code() -> None:
    """By name, since a default of another library may change."""
    found = 0
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = ast.unparse(node.func).partition(".")[0]
            if name in LOADERS and owner != "PeftModel":  # it puts weights into a model that is there
                refused = [k.value for k in node.keywords if k.arg == "trust_remote_code"]
                assert [ast.unparse(value) for value in refused] == ["False"], f"{path}:{node.lineno}"
                found += 1
    assert found >= 6


@pytest.fixture
def poisoned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files that stand in for modules."""
    for name in POISON:
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'RAN')!r}, 'w').close()\nraise SystemExit(3)\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "RAN"


def test_every_helper_process_leaves_the_working_folder_out() -> None:
    found = 0
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.List | ast.Tuple) and node.elts and ast.unparse(node.elts[0]) == "sys.executable":
                assert ast.unparse(node.elts[1]) == "'-P'", f"{path}:{node.lineno}"
                found += 1
    assert found >= 3


def test_graders_do_not_run_a_file_of_the_working_folder(poisoned: Path) -> None:
    assert grade_all([Solution(r"\boxed{\frac{2}{4}}", (r"\frac{1}{2}",))], timeout=60.0) == [Verdict(True)]
    assert not poisoned.exists()


def test_workers_do_not_run_a_file_of_the_working_folder(poisoned: Path) -> None:
    ours, theirs = Pipe()
    command = [sys.executable, "-P", "-m", "instdiff.engine.distributed.worker", str(theirs.fileno()), "cpu", "float32"]
    with subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.PIPE) as process:
        theirs.close()
        assert ours.recv() is None
        ours.close()
        process.communicate()
    assert not poisoned.exists()


def test_the_sandbox_does_not_run_a_file_of_the_working_folder(poisoned: Path) -> None:
    sandbox = Sandbox(workers=1, unsafe=True)
    try:
        sandbox.check()
    except EngineError as error:
        pytest.skip(str(error))
    ((_, verdict),) = sandbox.run([Program("import json, decimal\nassert json.dumps([1]) == '[1]'")])
    assert verdict.reason == "passed"
    assert not poisoned.exists()
    assert os.getcwd() == str(poisoned.parent)
