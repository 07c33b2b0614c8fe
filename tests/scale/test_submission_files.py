"""The example files for clusters parse, and every instdiff command in them is one that the program knows."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

HOME = Path(__file__).resolve().parents[2] / "configs" / "cluster"
SCRIPTS = sorted(HOME.glob("*.sbatch"))
YAMLS = sorted(HOME.glob("*.yaml"))


def command(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The verb and its options as the program parses them."""
    from instdiff.cli.entry import app

    verb = app.commands[words[0]]
    return words[0], verb.make_context(words[0], list(words[1:])).params


def in_script(path: Path) -> list[list[str]]:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [re.sub(r"^#\s*", "", line.strip()) for line in text.splitlines()]
    return [
        shlex.split(re.sub(r"^.*?\binstdiff ", "", line)) for line in lines if re.match(r"(srun .*)?instdiff ", line)
    ]


def documents(path: Path) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all(path.read_text(encoding="utf-8")) if found]


def containers(path: Path) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    jobs = [found for found in documents(path) if found.get("kind") == "Job"]
    return [(job["spec"], one) for job in jobs for one in job["spec"]["template"]["spec"]["containers"]]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts(path: Path) -> None:
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    found = dict(command(words) for words in in_script(path))
    assert set(found) == {"score", "merge"}
    assert found["merge"]["folder"] == found["score"]["output"] == "runs/shards"
    array = re.search(r"--array=0-(\d+)", path.read_text(encoding="utf-8"))
    assert found["score"]["shards"] == (str(int(array[1]) + 1) if array else "auto")
    assert found["score"]["shard_index"] is None


def test_kubernetes() -> None:
    (score, merge) = containers(HOME / "kubernetes_indexed_job.yaml")
    (verb, options), (last, merged) = (command([*c["command"][1:], *c["args"]]) for _, c in (score, merge))
    assert (verb, last) == ("score", "merge")
    assert score[0]["completionMode"] == "Indexed"
    assert int(options["shards"]) == score[0]["completions"] and options["shard_index"] is None
    assert merged["folder"] == options["output"]
    for spec, one in (score, merge):
        volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in one["volumeMounts"]} <= volumes


def test_ray_cluster() -> None:
    (found,) = documents(HOME / "ray_cluster.yaml")
    assert found["min_workers"] <= found["max_workers"] == len(found["provider"]["worker_ips"])
    assert any(line.startswith("ray start --head") for line in found["head_start_ray_commands"])
    assert any("$RAY_HEAD_IP" in line for line in found["worker_start_ray_commands"])


def test_every_file_is_in_the_list() -> None:
    listed = set(re.findall(r"^\| `(.+?)` \|", (HOME / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.name for path in [*SCRIPTS, *YAMLS]} and len(listed) == 4
