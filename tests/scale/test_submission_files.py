"""The example files for clusters parse, and every instdiff command in them is one that the program knows."""

from __future__ import annotations

import os
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


SKY_KEYS = {"name", "num_nodes", "resources", "envs", "file_mounts", "setup", "run"}


def test_skypilot() -> None:
    """A pipeline: the first document names it, the others are its tasks, one after the other."""
    name, score, merge = documents(HOME / "skypilot.yaml")
    assert name == {"name": "instdiff"} and set(score) <= SKY_KEYS and set(merge) <= SKY_KEYS
    assert score["num_nodes"] > 1 and score["resources"]["accelerators"] == "L4:1"
    for task in (score, merge):
        assert task["file_mounts"]["/work"] == {"source": "s3://my-bucket/instdiff", "mode": "MOUNT"}
        assert subprocess.run(["bash", "-n"], input=task["run"], text=True, check=False).returncode == 0
    # What SkyPilot tells each machine.
    told = {"SKYPILOT_NUM_NODES": str(score["num_nodes"]), "SKYPILOT_NODE_RANK": "3"}
    run = re.sub(r"\$(SKYPILOT_\w+)", lambda found: told[found[1]], score["run"]).replace("\\\n", " ")
    (verb, options), (last, merged) = (command(shlex.split(text)[1:]) for text in (run, merge["run"]))
    assert (verb, last) == ("score", "merge") and merged["folder"] == options["output"] == "/work/runs/shards"
    assert (str(options["shards"]), int(options["shard_index"])) == ("4", 3)


def test_huggingface_jobs(tmp_path: Path) -> None:
    """Run as it is, with an ``hf`` that writes down what it is asked; the real one knows these options."""
    fake = tmp_path / "hf"
    fake.write_text(f'#!/bin/bash\nprintf "%q " "$@" >> {tmp_path}/asked\necho >> {tmp_path}/asked\necho id-$4-$5\n')
    fake.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    script = ["bash", str(HOME / "huggingface_jobs.sh")]
    assert subprocess.run(script, env={"PATH": path}, capture_output=True, check=False).returncode != 0  # no bucket
    subprocess.run(script, env={"PATH": path, "BUCKET": "me/mine", "SHARDS": "3"}, check=True, capture_output=True)
    asked = [shlex.split(line) for line in (tmp_path / "asked").read_text().splitlines()]
    assert [words[1] for words in asked] == ["run"] * 3 + ["wait", "run", "wait"]
    jobs = [words for words in asked if words[1] == "run"]
    found = [command(shlex.split(words[-1].partition("&& instdiff ")[2])) for words in jobs]
    assert [verb for verb, _ in found] == ["score"] * 3 + ["merge"]
    assert [int(options["shard_index"]) for _, options in found[:3]] == [0, 1, 2]
    assert {str(options["shards"]) for _, options in found[:3]} == {"3"}
    assert {options["output"] for _, options in found[:3]} == {found[3][1]["folder"]} == {"/work/runs/shards"}
    for words in jobs:
        assert "hf://buckets/me/mine:/work" in words
        at = words.index("python:3.12")
        check_options(words[2:at])


def check_options(words: list[str]) -> None:
    """Options of ``hf jobs run``, by the program itself."""
    typer = pytest.importorskip("typer")
    hf = pytest.importorskip("huggingface_hub.cli.hf")
    group: Any = hf.app if hasattr(hf.app, "get_command") else typer.main.get_command(hf.app)
    for name in ("jobs", "run"):
        group = group.get_command(None, name)
    group.make_context("run", [*words, "python:3.12", "true"])


def test_every_file_is_in_the_list() -> None:
    listed = set(re.findall(r"^\| `(.+?)` \|", (HOME / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.name for path in [*SCRIPTS, *YAMLS, *HOME.glob("*.sh")]} and len(listed) == 6
