"""A judge behind a server that others wrote: ``transformers serve`` with a small model, on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instdiff.engine.text import endpoint

from .shell import ROWS, ok, write_jsonl

MODEL = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models")) / "smollm2-135m"
SHORT = ["--judge-max-tokens", 40, "--judge-concurrency", 2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``openai:MODEL@URL`` of a server that has loaded the model."""
    if not MODEL.is_dir():
        pytest.skip("the real models are not here")
    if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")):
        pytest.skip("transformers serve needs fastapi, uvicorn and openai")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = "import sys; from transformers.cli.transformers import main; sys.exit(main())"
    words = ["serve", str(MODEL), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    with open(tmp_path_factory.mktemp("serve") / "log", "w+") as log:
        serving = subprocess.Popen([sys.executable, "-c", start, *words], stdout=log, stderr=log)
        try:
            for _ in range(240):
                if serving.poll() is not None or healthy(port):
                    break
                time.sleep(0.5)
            log.seek(0)
            assert serving.poll() is None and healthy(port), log.read()
            yield f"openai:{MODEL}@http://127.0.0.1:{port}/v1"
        finally:
            serving.terminate()
            serving.wait(30)


def healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The bodies of all requests."""
    post, bodies = endpoint.post, list[dict[str, Any]]()

    async def counted(client: Any, url: str, body: dict[str, Any], *how: Any) -> Any:
        bodies.append(body)
        return await post(client, url, body, *how)

    monkeypatch.setattr(endpoint, "post", counted)
    return bodies


def test_alpagasus(where: str, sent: list[dict[str, Any]]) -> None:
    """Each row is answered, asked at most three times, and costs nothing the second time."""
    write_jsonl("my.jsonl", ROWS[:5])
    words = ["score", "--data", "my.jsonl", "--method", "alpagasus", "--model", f"judge={where}", *SHORT]
    first = ok(*words, "--output", "scores.jsonl")
    assert 5 <= len(sent) <= 3 * 5
    assert "questions: 5, calls under way: 2" in first.err and "5 rows answered" in first.err
    assert "no answer" not in first.err and sent[-1]["max_tokens"] == 40
    before = len(sent)
    assert ok(*words, "--output", "again.jsonl").out.replace("again", "scores") == first.out
    assert len(sent) == before
    assert Path("again.jsonl").read_text() == Path("scores.jsonl").read_text()


def test_a_pairwise_judge(where: str, sent: list[dict[str, Any]]) -> None:
    """Two prompts in both orders, each asked at most three times; a second run pays for nothing."""
    prompts = [{"instruction": f"Say {word}.", "output": f"{word}!"} for word in ("yes", "no")]
    write_jsonl("koala.jsonl", prompts)
    words = ["eval", "--model", "builtin:tiny", "--suite", "general", "--task", "koala", "--judge", where, *SHORT]
    words += ["--max-new-tokens", 8, "--answers", "answers", "data.koala=koala.jsonl"]
    first = ok(*words, "--output", "one.json")
    assert 4 <= len(sent) <= 3 * 4 and "no answer" not in first.err
    before = len(sent)
    assert ok(*words, "--output", "two.json").code == 0
    assert len(sent) == before
    assert json.loads(Path("two.json").read_text())["tasks"] == json.loads(Path("one.json").read_text())["tasks"]
