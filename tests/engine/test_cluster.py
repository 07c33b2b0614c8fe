"""Workers on a Ray cluster give what one process gives, also when some of them are lost."""

from __future__ import annotations

import errno
import random
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from helpers import Counting, Lab, some_rows
from instdiff.config.commands import ScoreConfig
from instdiff.core import Entropy, ModelRef, Nll, Settings
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.distributed import ray_cluster as place
from instdiff.engine.distributed.arrow_blocks import Shared, block_of, in_time, results_of, rows_of, swept_of
from instdiff.engine.distributed.ray_actor import Errand, Scorer, Spread, at_hand, weights
from instdiff.engine.distributed.ray_cluster import AHEAD, Cluster, residence
from instdiff.engine.distributed.ray_settings import RaySettings, Terms, connect, share, spread
from instdiff.engine.distributed.workers import Task, Workers, runs
from instdiff.engine.models import Resident, resolve
from instdiff.engine.sweep import BatchResult, Sweep
from instdiff.errors import ConfigError, EngineError, PlanError, StoreError
from instdiff.methods import IFD, InstructDiff, Perplexity
from instdiff.rendering.rows import Noise, Rows
from instdiff.scoring.scorer import score
from onray import kill, scorers, started

pytestmark = pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::FutureWarning:ray", "ignore::pytest.PytestUnraisableExceptionWarning"
)
ROWS = some_rows(120, seed=5)
CPU = torch.device("cpu")
HOSTS = r"on 1 host"


class Kept(Cluster):
    """Workers that stay from test to test; ``said`` is what their report would say."""

    def close(self) -> None:
        for actor in [a for a in self._actors if a.blocks]:
            self._drop(actor)
        self.said, self._shared = str(self.report), None
        there = [actor for actor in self._actors if actor.starting is None]
        self.report = place.Count(workers=len(there), hosts={actor.host for actor in there})


@pytest.fixture(scope="module")
def kept_team() -> Iterator[Kept]:
    pytest.importorskip("ray")
    started()
    team = Kept(RaySettings(dtype="float32", device="cpu", workers=2), torch.float32)
    yield team
    Cluster.close(team)


@pytest.fixture
def team(kept_team: Kept) -> Kept:
    kept_team.close()
    return kept_team


@pytest.fixture
def room(kept_team: Kept) -> None:
    """The cluster without the workers of other tests."""
    Cluster.close(kept_team)


def same(table: Any, clean: Any) -> None:
    for name in clean:
        assert table[name].reason.tolist() == clean[name].reason.tolist()
        for detail, values in clean[name].details.items():
            np.testing.assert_allclose(table[name].details[detail], values, rtol=1e-5, atol=1e-5, err_msg=detail)
        assert table[name].best().tolist() == clean[name].best().tolist()


def some(count: int, *, noise: bool = False) -> Rows:
    rng = np.random.default_rng(count)
    ids = Ragged.of([rng.integers(5, 90, rng.integers(2, 9)) for _ in range(count)], np.int32)
    target = np.ones(len(ids.values), bool)
    target[ids.offsets[:-1]] = False
    made = Noise(2.5, rng.integers(-(2**62), 2**62, count), ids.lengths()) if noise else None
    return Rows(ids, target, np.zeros(count, bool), np.full(count, None, object), made)


# ── blocks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("noise", [False, True])
def test_rows_travel_whole(noise: bool) -> None:
    rows = some(20, noise=noise).take(np.array([3, 19, 0, 7]))
    back = rows_of(block_of(rows))
    assert back.keys().tolist() == rows.keys().tolist()
    assert (back.target.dtype, back.ids.values.dtype) == (np.dtype(bool), np.dtype(np.int32))
    assert (back.noise is None) != noise
    if back.noise is not None and rows.noise is not None:
        assert (back.noise.alpha, back.noise.first) == (rows.noise.alpha, rows.noise.first)
        assert back.noise.row.tolist() == rows.noise.row.tolist()


def test_values_travel_whole_and_nan_stays_nan() -> None:
    first = BatchResult(np.array([2, 0]), {Nll(): Ragged.of([[1.5, np.nan], []], np.float32)}, 9)
    second = BatchResult(np.array([1]), {Nll(): Ragged.of([[np.inf]], np.float32)}, 4)
    back = swept_of(results_of([first, second], (Nll(),)), (Nll(),))
    values = back.columns[Nll()]
    assert (back.at.tolist(), back.tokens, values.lengths().tolist()) == ([2, 0, 1], 13, [2, 0, 1])
    np.testing.assert_array_equal(values.values, np.array([1.5, np.nan, np.inf], np.float32))


# ── the shared folder ─────────────────────────────────────────────────────────────────────────────────────────────────


class Trouble(LocalFileSystem):  # type: ignore[misc]
    """A local folder that stalls, or is full, when it is opened so."""

    protocol = "trouble"
    cachable = False
    kind, gate = "", threading.Event()

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        if self.kind == "stalls" or self.kind == f"stalls {mode}":
            self.gate.wait()
        if self.kind == "full" and "w" in mode:
            raise OSError(errno.ENOSPC, "No space left on device")
        if self.kind == "read-only" and "w" in mode:
            raise OSError(errno.EROFS, "Read-only file system")
        return super().open(self._strip_protocol(path), mode, **more)


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Trouble]]:
    fsspec.register_implementation("trouble", Trouble, clobber=True)
    monkeypatch.setattr(Trouble, "gate", threading.Event())
    yield Trouble
    Trouble.kind = ""
    Trouble.gate.set()


def test_a_shared_folder_is_written_read_and_left_empty(tmp_path: Path) -> None:
    shared, rows = Shared(str(tmp_path / "deep" / "shared")), some(5)
    shared.check()
    assert shared.put("a.parquet", block_of(rows)) == "a.parquet"
    assert rows_of(shared.get("a.parquet")).keys().tolist() == rows.keys().tolist()
    shared.drop("a.parquet")
    assert list((tmp_path / "deep" / "shared").iterdir()) == []
    shared.drop()
    assert list((tmp_path / "deep").iterdir()) == []
    shared.drop()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("stalls", r"did not answer within 0\.2 s \(writing check\.parquet\); check that it is mounted"),
        ("stalls rb", r"did not answer within 0\.2 s \(reading check\.parquet\); check that it is mounted"),
        ("full", r"cannot be used \(writing check\.parquet: No space left on device\); it needs free space"),
        ("read-only", r"cannot be used \(writing check\.parquet: Read-only file system\)"),
    ],
)
def test_a_shared_folder_in_trouble_is_a_clear_error(
    kind: str, message: str, trouble: type[Trouble], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trouble, "kind", kind)
    with pytest.raises(StoreError, match=rf"^the shared folder 'trouble://{tmp_path}' {message}.*is kept$"):
        Shared(f"trouble://{tmp_path}", 0.2).check()


def test_addresses_that_nobody_knows() -> None:
    with pytest.raises(PlanError, match=r"^the shared folder 'nosuch://x' is no address that fsspec knows"):
        Shared("nosuch://x").check()


def test_in_time() -> None:
    assert in_time(lambda: None, 60) is None
    with pytest.raises(KeyError, match="mine"):
        in_time(lambda: {}["mine"], 60)
    gate = threading.Event()
    with pytest.raises(TimeoutError, match=r"not done within 0\.05 s"):
        in_time(gate.wait, 0.05)
    gate.set()


# ── what is asked for ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("cpus", "count", "each"), [([8], 2, 4), ([8, 8], 3, 4), ([2], 4, 1), ([], 1, 1), ([7, 3], 2, 3)]
)
def test_cores_are_shared_out(cpus: list[int], count: int, each: int) -> None:
    assert share(cpus, count) == each


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
    assert Terms.of(nodes, RaySettings(**settings)) == expected


def test_gpus_that_are_not_there() -> None:
    with pytest.raises(PlanError, match=r"^no node of the Ray cluster has a GPU; use --device cpu"):
        Terms.of([{"CPU": 2}], RaySettings(device="cuda"))
    with pytest.raises(PlanError, match=r"^gpus_per_worker is 4, and no node of the Ray cluster has so many"):
        Terms.of([{"CPU": 2, "GPU": 2.0}, {"GPU": 2}], RaySettings(gpus_per_worker=4))
    with pytest.raises(PlanError, match=r"^ray deals out the GPUs itself; use --device cuda in place of cuda:1$"):
        residence(RaySettings(device="cuda:1"), CPU, torch.float32)
    with pytest.raises(PlanError, match=r"^gpus_per_worker is given with --device cpu"):
        residence(RaySettings(device="cpu", gpus_per_worker=1), CPU, torch.float32)


def test_settings_of_a_configuration() -> None:
    plain = Settings(max_length=77, workers=3)
    assert spread(plain, ScoreConfig()) is plain
    asked = ScoreConfig(executor="ray", ray_address="auto", gpus_per_worker=2, shared="s3://b/x")
    there = spread(plain, asked)
    assert there == RaySettings(max_length=77, workers=3, address="auto", gpus_per_worker=2, shared="s3://b/x")
    assert isinstance(residence(there, CPU, torch.float32), Cluster)
    assert isinstance(residence(plain, CPU, torch.float32), Workers)
    assert isinstance(residence(Settings(), CPU, torch.float32), Resident)
    with pytest.raises(ConfigError, match=r"^'shared' is of use with the executor ray only; add --executor ray"):
        spread(plain, ScoreConfig(shared="x"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_no_cluster_there(address: str) -> None:
    message = rf"^no Ray cluster can be used at '{address}': .*Connection refused; check the address, and that Ray and"
    with pytest.raises(EngineError, match=message):
        connect(None, RaySettings(address=address))


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
    source = resolve(ModelRef(str(lab.models["llama"])))
    worker, errand = Scorer("float32", 0, 1), Errand.of(Task(source, (Nll(),), None), None)
    rows = some(6)
    good = worker.sweep(errand, block_of(rows), "")
    assert good.error is None and good.block is not None and sorted(good.block["at"].to_pylist()) == list(range(6))
    gone = Errand(errand.task, (("model.safetensors", 1),), None)
    said = worker.sweep(gone, block_of(rows), "").error
    assert isinstance(said, EngineError) and re.search(r"copy them again \(on .+\)$", str(said))
    bug = worker.sweep(errand, block_of(rows).drop_columns(["ids"]), "").error
    assert isinstance(bug, RuntimeError) and str(bug).startswith("a worker failed:\nTraceback ")


def test_a_model_over_several_devices_gives_the_same(lab: Lab) -> None:
    source = resolve(ModelRef(str(lab.models["llama"])))
    rows, measures, found = some(12), (Nll(), Entropy()), []
    for kind in (Resident, Spread):
        with kind(CPU, torch.float32).use(source) as model:
            swept = list(Sweep(model, print, None)(rows, measures))
        found.append([swept[0].columns[measure].values for measure in measures])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


# ── the same numbers ──────────────────────────────────────────────────────────────────────────────────────────────────


def on_ray(lab: Lab, rows: Any, methods: Any, *, base: str | Path = "llama", **more: Any) -> Any:
    """Score by workers on the shared cluster; ``more`` are settings or arguments of ``score``."""
    given = {key: more.pop(key) for key in ("resident", "store", "log", "progress") if key in more}
    bound = {"base": str(lab.models.get(str(base), base)), "calibrated": str(lab.models["other"])}
    settings = RaySettings(**{"dtype": "float32", "device": "cpu", "max_length": 200, "workers": 2, **more})
    return score(load(rows), methods, bound, settings=settings, **{"store": lab.store(), **given})


def test_as_one_process_and_as_two_workers(lab: Lab, team: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, one, two, ray = [InstructDiff(), IFD()], Counting(), Counting(), Counting()
    clean = lab.score(ROWS, methods, progress=one)
    pair = lab.score(ROWS, methods, workers=2, batch_tokens=500, progress=two)
    supply, most = Cluster._supply, list[int]()

    def watched(self: Cluster, *args: Any) -> None:
        supply(self, *args)
        most.append(max((len(actor.blocks) for actor in self._actors), default=0))

    monkeypatch.setattr(Cluster, "_supply", watched)
    said: list[str] = []
    table = on_ray(lab, ROWS, methods, resident=team, batch_tokens=500, progress=ray, log=said.append)
    same(table, clean)
    same(table, pair)
    assert (ray.rows, ray.tokens, ray.labels) == (one.rows, one.tokens, one.labels)
    assert (two.rows, two.tokens) == (one.rows, one.tokens)
    assert max(most) == AHEAD and said == []
    assert len(scorers()) == 2 and len(team._actors) == 2
    assert re.fullmatch(
        rf"ray: \d+ blocks by 2 workers {HOSTS}; 0 blocks \(0 rows\) done again, 0 workers lost", team.said
    )


def test_only_what_lacks_is_shipped(lab: Lab, team: Kept) -> None:
    store, count = lab.store(), Counting()
    lab.score(ROWS[:70], [Perplexity()], store=store)
    table = on_ray(lab, ROWS, [Perplexity()], resident=team, store=store, progress=count)
    same(table, lab.score(ROWS, [Perplexity()]))
    assert (count.rows, count.cached) == (50, 70)


def test_through_a_shared_folder(lab: Lab, team: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    team._shared = Shared(str(tmp_path / "run"))
    put, names = Shared.put, list[str]()
    monkeypatch.setattr(Shared, "put", lambda self, name, table: names.append(name) or put(self, name, table))
    table = on_ray(lab, ROWS, [Perplexity()], resident=team, batch_tokens=500)
    same(table, lab.score(ROWS, [Perplexity()]))
    assert len(names) > 2 and all(re.fullmatch(r"[0-9a-f]{32}\.rows\.parquet", name) for name in names)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_shared_folder_that_stalls_midway(lab: Lab, team: Kept, trouble: type[Trouble], tmp_path: Path) -> None:
    team._shared = Shared(f"trouble://{tmp_path}", 0.2)
    trouble.kind = "stalls"
    with pytest.raises(StoreError, match=r"did not answer within 0\.2 s \(writing [0-9a-f]{32}\.rows\.parquet\)"):
        on_ray(lab, ROWS, [Perplexity()], resident=team)


def test_numbers_that_are_not_finite(lab: Lab, team: Kept, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    broken = Path(shutil.copytree(lab.models["llama"], tmp_path / "broken"))
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.get_input_embeddings().weight[lab.tokenizer("llama").convert_tokens_to_ids("7")] = float("nan")
    model.save_pretrained(broken)
    clean = lab.score(ROWS, [Perplexity()], base=broken)
    said: list[str] = []
    table = on_ray(lab, ROWS, [Perplexity()], base=broken, resident=team, log=said.append)
    same(table, clean)
    gone = clean["perplexity"].reason.tolist().count("non_finite")
    assert 0 < gone < len(ROWS)
    assert said == [f"warning: {gone} rows of prompted by base came out non-finite"]


# ── losses ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killing(Counting):
    """Kills a worker each time that another block has come back, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.left = times

    @contextmanager
    def task(self, label: str, **facts: Any) -> Iterator[Any]:
        with super().task(label, **facts) as advance:

            def more(rows: int, tokens: int) -> None:
                advance(rows, tokens)
                there = scorers()
                if self.left and there:
                    self.left -= 1
                    kill(random.choice(there))

            yield more


def test_killed_workers_are_replaced(lab: Lab, team: Kept) -> None:
    clean_count, count, said = Counting(), Killing(2), list[str]()
    clean = lab.score(ROWS, [Perplexity()], progress=clean_count)
    table = on_ray(lab, ROWS, [Perplexity()], resident=team, batch_tokens=100, progress=count, log=said.append)
    same(table, clean)
    assert count.left == 0
    assert (count.rows, count.tokens) == (clean_count.rows, clean_count.tokens)  # none lost, none doubled
    assert 1 <= len(said) <= 2
    pattern = (
        r"a worker on \S+ was lost \((its worker process has died|.+)\) and is replaced; the (\d+) rows? that it .*"
    )
    again = sum(int(re.fullmatch(pattern, line)[2]) for line in said)  # type: ignore[index]
    report = (
        rf"ray: \d+ blocks by \d workers? {HOSTS}; \d blocks? \({again} rows?\) done again, {len(said)} workers? lost"
    )
    assert re.fullmatch(report, team.said)


@pytest.mark.slow
def test_workers_that_are_always_lost_are_an_error(lab: Lab, team: Kept) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            for pid in scorers():
                kill(pid)

    killer = threading.Thread(target=work)
    killer.start()
    said: list[str] = []
    try:
        message = r"^3 workers (were lost one after another over the same|one after another could not start on the Ray)"
        with pytest.raises(EngineError, match=message):
            on_ray(lab, ROWS, [Perplexity()], resident=team, log=said.append)
    finally:
        stop.set()
        killer.join()
    assert 2 <= len(said) <= 6


@pytest.mark.slow
@pytest.mark.usefixtures("room")
def test_a_node_goes_away(lab: Lab) -> None:
    cluster, count, said = started(), Counting(), list[str]()
    node = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    gone = []

    class Leaving(Counting):
        @contextmanager
        def task(self, label: str, **facts: Any) -> Iterator[Any]:
            with super().task(label, **facts) as advance:

                def more(rows: int, tokens: int) -> None:
                    advance(rows, tokens)
                    if not gone and len(scorers()) == 3:
                        gone.append(cluster.remove_node(node, allow_graceful=False))

                yield more

    clean = lab.score(ROWS, [IFD()], progress=count)
    left = Leaving()
    table = on_ray(lab, ROWS, [IFD()], workers=3, batch_tokens=1, progress=left, log=said.append)
    same(table, clean)
    assert (left.rows, left.tokens) == (count.rows, count.tokens)
    assert gone and any("was lost" in line for line in said)
    assert re.fullmatch(r"ray: .* [1-9]\d* workers? lost", said[-1])


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_users_error_in_a_worker_is_that_error(lab: Lab, team: Kept, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(lab.models["llama"], tmp_path / "broken"))
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(EngineError, match=r"^cannot load model '.*broken'.* \(on .+\)$"):
        on_ray(lab, ROWS[:9], [Perplexity()], base=broken, resident=team)


@pytest.mark.usefixtures("room")
def test_another_version_on_a_node(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "__version__", "99.1")
    with pytest.raises(EngineError, match=r"has instdiff \S+, and this machine 99\.1; install the same$"):
        on_ray(lab, ROWS[:9], [Perplexity()], workers=1)


def test_a_store_that_cannot_be_written(lab: Lab, team: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    from instdiff.store import Store

    append, calls, store = Store.append, list[int](), lab.store()

    def failing(self: Store, column: Any, keys: Any, values: Any) -> None:
        calls.append(len(keys))
        if len(calls) == 3:
            raise StoreError("the disk is full")
        append(self, column, keys, values)

    monkeypatch.setattr(Store, "append", failing)
    with pytest.raises(StoreError, match="the disk is full"):
        on_ray(lab, ROWS, [Perplexity()], resident=team, batch_tokens=100, store=store)
    monkeypatch.setattr(Store, "append", append)
    count = Counting()
    same(lab.score(ROWS, [Perplexity()], store=store, progress=count), lab.score(ROWS, [Perplexity()]))
    assert count.rows == len(ROWS) - (sum(calls) - calls[2])


def test_blocks_are_bounded() -> None:
    dealt = list(runs(some(300), 50, 1, 2))
    assert sorted(np.concatenate([run.at for run in dealt]).tolist()) == list(range(300))
    assert max(int(some(300).ids.lengths()[run.at].sum()) for run in dealt) <= 2 * 50
