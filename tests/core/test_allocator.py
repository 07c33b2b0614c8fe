"""What glibc's allocator is told: by a program that starts again for it, by nothing that uses instdiff as a library."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from instdiff.engine.allocator import NAME, NO_SMALL_CACHES, tuned

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc to be told anything")

PROGRAM = """
import os, sys
from instdiff.engine.allocator import NAME, restart

print(os.getpid(), os.environ.get(NAME), sys.argv[1:], sys.flags.no_user_site, flush=True)
restart()
print("goes on", os.getpid(), os.environ.get(NAME), flush=True)
"""


def run(command: list[str], **given: str) -> list[str]:
    env = {name: value for name, value in os.environ.items() if name != NAME} | given
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()


def program(folder: Path, name: str) -> str:
    file = folder / name
    file.write_text(PROGRAM, encoding="utf-8")
    return str(file)


def test_the_program_starts_again_once_with_the_same_command(tmp_path: Path) -> None:
    first, second, last = run([sys.executable, "-s", program(tmp_path, "instdiff"), "score", "a b", ""])
    pid = first.split()[0]
    assert first == f"{pid} None ['score', 'a b', ''] 1"
    assert second == f"{pid} {NO_SMALL_CACHES} ['score', 'a b', ''] 1"
    assert last == f"goes on {pid} None"  # so that programs which it starts do not inherit it


@pytest.mark.parametrize(
    ("name", "given"),
    [("my_script.py", {}), ("instdiff", {NAME: "glibc.malloc.arena_max=2"}), ("instdiff", {NAME: ""})],
    ids=["as a library", "the user's own settings", "the user's none"],
)
def test_what_does_not_start_again(tmp_path: Path, name: str, given: dict[str, str]) -> None:
    first, last = run([sys.executable, program(tmp_path, name)], **given)
    pid = first.split()[0]
    assert last == f"goes on {pid} {given.get(NAME)}"


@pytest.mark.parametrize("how", ["script", "module"])
def test_the_real_command_starts_again(tmp_path: Path, how: str) -> None:
    """A module that every start of this Python imports writes down with what it was started."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os\nopen({str(tmp_path / 'starts')!r}, 'a').write(os.environ.get({NAME!r}, 'none') + '\\n')\n",
        encoding="utf-8",
    )
    script = shutil.which("instdiff", path=str(Path(sys.executable).parent))
    if how == "script" and script is None:
        pytest.skip("instdiff is not installed beside this Python")
    command = [str(script)] if how == "script" else [sys.executable, "-m", "instdiff"]
    said = run([*command, "--help"], PYTHONPATH=os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    assert any("score" in line for line in said)
    assert (tmp_path / "starts").read_text(encoding="utf-8").split() == ["none", NO_SMALL_CACHES]


def test_a_worker_is_told_too_unless_the_user_says_something() -> None:
    assert tuned({"A": "1"}) == {NAME: NO_SMALL_CACHES, "A": "1"}
    assert tuned({NAME: "mine"}) == {NAME: "mine"}
