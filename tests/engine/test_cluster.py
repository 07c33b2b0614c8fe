"""Tasks on a Ray cluster give what one process gives, also when some of their workers are lost."""

from __future__ import annotations

import re
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Counting, Lab, some_rows
from instdiff.config.base import build
from instdiff.config.commands import ScoreConfig, SelectConfig, TrainConfig
from instdiff.core import Entropy, ModelRef, Nll, Settings
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.distributed import ray_host as place
from instdiff.engine.distributed.hosts import make_model_host
from instdiff.engine.distributed.ray_host import RayHost, Terms, connect, sweep_shard
from instdiff.engine.distributed.workers import Workers, runs
from instdiff.engine.models import Resident
from instdiff.engine.sources import at_hand, resolve, weights
from instdiff.errors import ConfigError, EngineError, PlanError, StoreError
from instdiff.methods import IFD, InstructDiff, Perplexity
from instdiff.rendering.rows import Rows
from instdiff.scoring.models import settings_of
from instdiff.scoring.scorer import score
from instdiff.version import __version__
from onray import kill, scorers, started

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning:ray", "ignore::pytest.PytestUnraisableExceptionWarning"
)
ROWS = some_rows(120, seed=5)
CPU = torch.device("cpu")
REPORT = r"ray: \d+ shards? on 1 host"


@pytest.fixture(scope="module")
def cluster() -> Any:
    pytest.importorskip("ray")
    return started()


def same(table: Any, clean: Any) -> None:
    for name in clean:
        assert table[name].reason.tolist() == clean[name].reason.tolist()
        for detail, values in clean[name].details.items():
            np.testing.assert_allclose(table[name].details[detail], values, rtol=1e-5, atol=1e-5, err_msg=detail)
        assert table[name].best().tolist() == clean[name].best().tolist()


def some(count: int) -> Rows:
    rng = np.random.default_rng(count)
    ids = Ragged.of([rng.integers(5, 90, rng.integers(2, 9)) for _ in range(count)], np.int32)
    target = np.ones(len(ids.values), bool)
    target[ids.offsets[:-1]] = False
    return Rows(ids, target, np.zeros(count, bool), np.full(count, None, object))


# ── what is asked for ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cpus", "count", "each"), [([8], 2, 4), ([8, 8], 3, 4), ([2], 4, 1), ([], 1, 1), ([7, 3], 2, 3)]
)
def test_cores_are_shared_out(cpus: list[int], count: int, each: int) -> None:
    assert Terms.of([{"CPU": float(cpu)} for cpu in cpus], Settings(workers=count)) == Terms(count, each, 0)


@pytest.mark.parametrize(
    ("nodes", "settings", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 8}, {"memory": 9}], {}, Terms(2, 8, 0)),
        ([{"CPU": 8}], {"workers": 4}, Terms(4, 2, 0)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 2}, {"CPU": 4}], {}, Terms(6, 1, 1)),
        ([{"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 3}], {"gpus_per_worker": 2}, Terms(3, 1, 2)),
        ([{"CPU": 8, "GPU": 4}], {"gpus_per_worker": 2, "workers": 1}, Terms(1, 1, 2)),
        ([{"CPU": 8, "GPU": 4}], {"device": "cpu"}, Terms(1, 8, 0)),
    ],
)
def test_workers_of_a_cluster(nodes: list[dict[str, float]], settings: dict[str, Any], expected: Terms) -> None:
    assert Terms.of(nodes, Settings(**settings)) == expected


def test_gpus_that_are_not_there() -> None:
    with pytest.raises(PlanError, match=r"^no node of the Ray cluster has a GPU; use --device cpu"):
        Terms.of([{"CPU": 2}], Settings(device="cuda"))
    with pytest.raises(PlanError, match=r"^gpus_per_worker is 4, and no node of the Ray cluster has so many"):
        Terms.of([{"CPU": 2, "GPU": 2.0}, {"GPU": 2}], Settings(gpus_per_worker=4))
    with pytest.raises(PlanError, match=r"^ray deals out the GPUs itself; use --device cuda instead of cuda:1$"):
        RayHost(Settings(device="cuda:1"), CPU, torch.float32)
    with pytest.raises(PlanError, match=r"^gpus_per_worker is given with --device cpu"):
        RayHost(Settings(device="cpu", gpus_per_worker=1), CPU, torch.float32)


def test_settings_of_a_configuration() -> None:
    plain = settings_of(ScoreConfig(max_length=77, workers=3))
    assert plain == Settings(max_length=77, workers=3)
    there = settings_of(ScoreConfig(max_length=77, workers=3, executor="ray", ray_address="auto", gpus_per_worker=2))
    assert there == Settings(max_length=77, workers=3, executor="ray", ray_address="auto", gpus_per_worker=2)
    assert isinstance(make_model_host(there, CPU, torch.float32), RayHost)
    assert isinstance(make_model_host(plain, CPU, torch.float32), Workers)
    assert isinstance(make_model_host(Settings(), CPU, torch.float32), Resident)
    with pytest.raises(ConfigError, match=r"^'shared' is of use with the executor ray only; add --executor ray"):
        ScoreConfig(shared="x")


@pytest.mark.parametrize("kind", [SelectConfig, TrainConfig])
@pytest.mark.parametrize("key", ["executor", "ray_address", "gpus_per_worker", "shared"])
def test_keys_of_ray_are_unknown_where_no_pass_goes_to_it(kind: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^here: unknown key '{key}'"):
        build(kind, {key: "ray"}, "here")


def test_hosts_say_which_devices_of_this_machine_compute() -> None:
    hosts = [make_model_host(Settings(**how), CPU, torch.float32) for how in ({}, {"workers": 2}, {"executor": "ray"})]
    assert [list(host.devices) for host in hosts] == [["cpu"], ["cpu"], []]
    assert all(isinstance(host.local(), Resident) and host.local().dtype is torch.float32 for host in hosts)
    assert hosts[0].local() is hosts[0]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_there(address: str) -> None:
    message = rf"^no Ray cluster can be used at '{address}': .*Connection refused; check the address, and that Ray and"
    with pytest.raises(EngineError, match=message):
        connect(None, Settings(ray_address=address))


def test_a_ray_that_does_not_start_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.")

    ray = types.SimpleNamespace(init=slow, is_initialized=lambda: False)
    monkeypatch.setattr(pytest.importorskip("ray"), "is_initialized", ray.is_initialized)  # whatever came before
    monkeypatch.setattr(place, "connect", lambda _, settings: connect(ray, settings))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    host = RayHost(Settings(executor="ray"), torch.device("cpu"), torch.float32)
    with pytest.raises(EngineError, match="Ray cannot be started on this machine: The current node timed out"):
        host.join(print)
    host.close()


def test_without_ray(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    message = r'^the executor ray needs Ray, which is missing; run: pip install "instdiff\[ray\]"$'
    with pytest.raises(PlanError, match=message):
        on_ray(lab, ROWS[:3], [Perplexity()])


# ── a worker ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_worker_knows_its_model(lab: Lab, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(lab.models["llama"], tmp_path / "copy"))
    source = resolve(ModelRef(str(copy)))
    expected = weights(source)
    assert [name for name, _ in expected] == ["model.safetensors"]
    assert at_hand(source, expected) is source
    with (copy / "model.safetensors").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(EngineError, match=r"^the weights in '.*copy' have other names or sizes here than at"):
        at_hand(source, expected)
    shutil.rmtree(copy)
    with pytest.raises(EngineError, match=r"^there is no model folder '.*copy' here; put it where every node sees it"):
        at_hand(source, expected)


def test_a_worker_says_what_went_wrong(lab: Lab) -> None:
    pytest.importorskip("ray")
    source, rows = resolve(ModelRef(str(lab.models["llama"]))), some(6)
    how = (__version__, "float32", Terms(1, 1, 0), source)
    batches, host, said = sweep_shard((*how, weights(source), (Nll(),), None), rows)
    assert sorted(at for one in batches for at in one.at.tolist()) == list(range(6)) and host and said == []
    with pytest.raises(EngineError, match=r"copy them again \(on .+\)$"):
        sweep_shard((*how, (("model.safetensors", 1),), (Nll(),), None), rows)


def test_a_model_over_several_devices_gives_the_same(lab: Lab) -> None:
    source = resolve(ModelRef(str(lab.models["llama"])))
    rows, measures, found = some(12), (Nll(), Entropy()), []
    for over_gpus in (False, True):
        swept = list(Resident(CPU, torch.float32, over_gpus=over_gpus).sweep(source, rows, measures, print))
        found.append([swept[0].columns[measure].values for measure in measures])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


# ── the same numbers ──────────────────────────────────────────────────────────────────────────────────────────────────


def on_ray(lab: Lab, rows: Any, methods: Any, *, base: str | Path = "llama", **more: Any) -> Any:
    """Score by workers on the shared cluster; ``more`` are settings or arguments of ``score``."""
    given = {key: more.pop(key) for key in ("resident", "store", "log", "progress") if key in more}
    bound = {"base": str(lab.models.get(str(base), base)), "calibrated": str(lab.models["other"])}
    how = {"executor": "ray", "dtype": "float32", "device": "cpu", "max_length": 200, "workers": 2}
    settings = Settings(**{**how, "templates": {"*": "alpaca"}, **more})
    return score(load(rows), methods, bound, settings=settings, **{"store": lab.store(), **given})


def test_as_one_process_and_as_two_workers(lab: Lab, cluster: Any) -> None:
    methods, one, two, ray = [InstructDiff(), IFD()], Counting(), Counting(), Counting()
    clean = lab.score(ROWS, methods, progress=one)
    pair = lab.score(ROWS, methods, workers=2, batch_tokens=500, progress=two)
    said: list[str] = []
    table = on_ray(lab, ROWS, methods, batch_tokens=500, progress=ray, log=said.append)
    same(table, clean)
    same(table, pair)
    assert (ray.rows, ray.tokens, ray.labels) == (one.rows, one.tokens, one.labels)
    assert (two.rows, two.tokens) == (one.rows, one.tokens)
    assert len(said) == 1 and re.fullmatch(REPORT, said[0])


def test_only_what_lacks_is_shipped(lab: Lab, cluster: Any) -> None:
    store, count = lab.store(), Counting()
    lab.score(ROWS[:70], [Perplexity()], store=store)
    table = on_ray(lab, ROWS, [Perplexity()], store=store, progress=count)
    same(table, lab.score(ROWS, [Perplexity()]))
    assert (count.rows, count.cached) == (50, 70)


def test_numbers_that_are_not_finite(lab: Lab, cluster: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    broken = Path(shutil.copytree(lab.models["llama"], tmp_path / "broken"))
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.get_input_embeddings().weight[lab.tokenizer("llama").convert_tokens_to_ids("7")] = float("nan")
    model.save_pretrained(broken)
    clean = lab.score(ROWS, [Perplexity()], base=broken)
    said: list[str] = []
    table = on_ray(lab, ROWS, [Perplexity()], base=broken, log=said.append)
    same(table, clean)
    gone = clean["perplexity"].reason.tolist().count("non_finite")
    assert 0 < gone < len(ROWS)
    assert said[0] == f"warning: {gone} rows of prompted by base came out non-finite"
    assert len(said) == 2 and re.fullmatch(REPORT, said[1])


# ── losses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def killing(times: int) -> Iterator[list[int]]:
    """Kills so many workers as soon as they are at work; gives those that were killed."""
    killed, stop = list[int](), threading.Event()

    def work() -> None:
        while len(killed) < times and not stop.wait(0.01):
            for pid in scorers()[: times - len(killed)]:
                if pid not in killed:
                    kill(pid)
                    killed.append(pid)

    killer = threading.Thread(target=work)
    killer.start()
    try:
        yield killed
    finally:
        stop.set()
        killer.join()


def test_killed_workers_are_replaced(lab: Lab, cluster: Any) -> None:
    clean_count, count, said = Counting(), Counting(), list[str]()
    clean = lab.score(ROWS, [Perplexity()], progress=clean_count)
    with killing(2) as killed:
        table = on_ray(lab, ROWS, [Perplexity()], batch_tokens=100, progress=count, log=said.append)
    same(table, clean)
    assert len(killed) == 2
    assert (count.rows, count.tokens) == (clean_count.rows, clean_count.tokens)  # none lost, none doubled
    said = [line for line in said if not line.startswith("shards at work")]  # told where the machine is busy
    assert len(said) == 1 and re.fullmatch(REPORT, said[0])


@pytest.mark.slow
def test_workers_that_are_always_lost_are_an_error(lab: Lab, cluster: Any) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            for pid in scorers():
                kill(pid)

    killer = threading.Thread(target=work)
    killer.start()
    said: list[str] = []
    try:
        message = r"^3 workers were lost one after another over the same shard \(the last: .+\); where memory is short"
        with pytest.raises(EngineError, match=message):
            on_ray(lab, ROWS, [Perplexity()], log=said.append)
    finally:
        stop.set()
        killer.join()
    assert all(line.startswith("shards at work or waiting: ") for line in said)


@pytest.mark.slow
def test_a_node_goes_away(lab: Lab, cluster: Any) -> None:
    count, said = Counting(), list[str]()
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    gone = []

    class Leaving(Counting):
        @contextmanager
        def task(self, label: str, **facts: Any) -> Iterator[Any]:
            with super().task(label, **facts) as advance:

                def more(rows: int, tokens: int) -> None:
                    advance(rows, tokens)
                    if not gone and scorers(node):
                        gone.append(cluster.remove_node(node, allow_graceful=False))

                yield more

    clean = lab.score(ROWS, [IFD()], progress=count)
    left = Leaving()
    table = on_ray(lab, ROWS, [IFD()], workers=3, batch_tokens=20, progress=left, log=said.append)
    same(table, clean)
    assert (left.rows, left.tokens) == (count.rows, count.tokens)
    assert gone and re.fullmatch(REPORT, said[-1])


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_users_error_in_a_worker_is_that_error(lab: Lab, cluster: Any, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(lab.models["llama"], tmp_path / "broken"))
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EngineError, match=r"^cannot load model '.*broken'.* \(on .+\)$"):
        on_ray(lab, ROWS[:9], [Perplexity()], base=broken)


def test_another_version_on_a_node(lab: Lab, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "__version__", "99.1")
    with pytest.raises(EngineError, match=r"has instdiff \S+, and this machine 99\.1; install the same$"):
        on_ray(lab, ROWS[:9], [Perplexity()], workers=1)


def test_a_store_that_cannot_be_written(lab: Lab, cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from instdiff.store import Store

    append, calls, store = Store.append, list[int](), lab.store()

    def failing(self: Store, column: Any, keys: Any, values: Any) -> None:
        calls.append(len(keys))
        if len(calls) == 3:
            raise StoreError("the disk is full")
        append(self, column, keys, values)

    monkeypatch.setattr(Store, "append", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        on_ray(lab, ROWS, [Perplexity()], batch_tokens=100, store=store)
    monkeypatch.setattr(Store, "append", append)
    count = Counting()
    same(lab.score(ROWS, [Perplexity()], store=store, progress=count), lab.score(ROWS, [Perplexity()]))
    assert count.rows == len(ROWS) - (sum(calls) - calls[2])


def test_shards_are_bounded() -> None:
    dealt = list(runs(some(300), 50, 1, 2))
    assert sorted(np.concatenate([run.at for run in dealt]).tolist()) == list(range(300))
    assert max(int(some(300).ids.lengths()[run.at].sum()) for run in dealt) <= 2 * 50
