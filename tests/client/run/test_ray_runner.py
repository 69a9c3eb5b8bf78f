"""An evaluation over a Ray cluster of two nodes: the same bytes, whatever dies there, and nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from worker_world import WorldConfig, make_policy

from async_delta_inference.client import Evaluation, SimClientConfig, evaluate
from async_delta_inference.client.record.events import EpisodeEnded, EpisodeFailed, EpisodeStarted, Event, ServerStarted
from async_delta_inference.errors import ConfigError, MissingExtraError, PeerUnreachableError
from async_delta_inference.transport.testing import ServedPeer

ray = pytest.importorskip("ray", reason="needs the extra 'ray'")

pytestmark = pytest.mark.timeout(240)

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of two CPUs, so that one server and three workers are on both of them, however Ray places them; and the
    head, which has none.
    """
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="adi-ray-"))
    (folder / "ray").mkdir()
    node: dict[str, Any] = {"num_cpus": 2, "node_ip_address": LOOPBACK, "object_store_memory": 80 * 2**20}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_TMPDIR", str(folder))
        # Ray takes another address for the loopback one, unless it thinks that it cannot have several nodes.
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
        try:
            for _ in range(2):
                cluster.add_node(wait=False, **node)
            cluster.wait_for_nodes()
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one simulator on this machine leaves."""
    folder = tmp_path_factory.mktemp("alone")
    with ServedPeer("shm", make_policy=make_policy) as server:
        evaluate(config(folder, server_address=server.uri))
    return kept(folder)


@pytest.fixture(autouse=True)
def light_server(monkeypatch: pytest.MonkeyPatch) -> None:
    from async_delta_inference.client.run.on_ray import ray_servers

    monkeypatch.setattr(ray_servers, "MODULE", "serve_world")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "policy"
    folder.mkdir()
    cameras = {"observation.images.camera": {"shape": [3, 4, 4]}}
    (folder / "config.json").write_text(json.dumps({"input_features": cameras}))
    return folder


def config(folder: Path, world: WorldConfig | None = None, **flags: Any) -> SimClientConfig:
    usual = {"actions_per_chunk": 5, "n_episodes": 5, "save_trajectories": True}
    clock = {"clock": "simulated", "inference_delay": "1"}
    return SimClientConfig(env=world or WorldConfig(tasks=2), output_dir=folder, **usual | clock | flags)


def on_ray(folder: Path, checkpoint: Path, world: WorldConfig | None = None, **flags: Any) -> SimClientConfig:
    policy = {"policy_type": "act", "pretrained_name_or_path": str(checkpoint)}
    return config(folder, world, **policy | {"runner": "ray", "n_envs": 3} | flags)


def kept(folder: Path) -> dict[str, Any]:
    """Lines without what the run added, sorted, and the bytes of the trajectories."""
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]
    found: dict[str, Any] = {path.name: path.read_bytes() for path in (folder / "trajectories").iterdir()}
    found["lines"] = sorted(json.dumps({k: v for k, v in line.items() if k != "run"}) for line in lines)
    return found


def actors(name: str) -> list[psutil.Process]:
    """Processes of the actors of a class; Ray names them so."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # It may be ending.
            found += [process] if any(name in word for word in process.cmdline()) else []
    return found


def test_two_nodes_give_the_bytes_of_one_simulator(
    cluster: Any, alone: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    """Two workers wait until the third one has run an episode, so that each of them does."""
    world = WorldConfig(2, does={"0 0": "wait", "1 0": "wait"}, folder=tmp_path)
    run = Evaluation(on_ray(tmp_path / "out", checkpoint, world, ray_address=cluster.address))
    for event in run:
        if isinstance(event, EpisodeEnded):
            (tmp_path / "go").touch()
    assert kept(tmp_path / "out") == alone
    assert sorted(run.result.spoken.split("; ")) == ["grpc, native between nodes", "shm within a node"]
    figures = json.loads((tmp_path / "out" / "eval_info.json").read_text())["overall"]
    assert figures["async"]["spoken"] == run.result.spoken


def test_a_worker_that_is_killed_changes_nothing(
    cluster: Any, alone: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    run = on_ray(tmp_path / "out", checkpoint, WorldConfig(2, step_s=0.02), ray_address=cluster.address)
    failed: list[Event] = []
    killed = False
    for event in Evaluation(run):
        failed += [event] if isinstance(event, EpisodeFailed) else []
        if isinstance(event, EpisodeStarted) and not killed:
            killed = True
            for actor in actors("WorkerActor"):
                actor.send_signal(signal.SIGKILL)
    assert failed
    assert kept(tmp_path / "out") == alone


def test_a_run_that_is_left_ends_its_own_cluster_and_goes_on_elsewhere(
    cluster: Any, alone: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = set(Path(tempfile.gettempdir()).glob("adi-ray-*"))
    for event in Evaluation(on_ray(out, checkpoint, ray_address="local", n_envs=1)):
        if isinstance(event, EpisodeEnded):
            break
    assert not ray.is_initialized()
    assert set(Path(tempfile.gettempdir()).glob("adi-ray-*")) <= before
    assert len(kept(out)["lines"]) == 1
    evaluate(on_ray(out, checkpoint, ray_address=cluster.address, resume=True))
    assert kept(out) == alone


def test_what_a_node_has_not_got_is_said_before_the_first_episode(
    cluster: Any, checkpoint: Path, tmp_path: Path
) -> None:
    """A path that leads to something in this process, and in no other."""
    (tmp_path / "here").mkdir()
    descriptor = os.open(tmp_path / "here", os.O_PATH)
    try:
        folder = Path(f"/proc/self/fd/{descriptor}/out")
        run = on_ray(folder, checkpoint, ray_address=cluster.address, n_videos=1)
        with pytest.raises(ConfigError, match=rf"node {LOOPBACK} \(\w+\) has no {folder}, which --n_videos needs"):
            evaluate(run)
    finally:
        os.close(descriptor)


def test_a_cluster_that_is_not_there(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(PeerUnreachableError, match=r"--ray_address=127\.0\.0\.1:1: no Ray cluster answers"):
        evaluate(on_ray(tmp_path / "out", checkpoint, ray_address="127.0.0.1:1"))


def test_without_ray_one_line_names_the_extra(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if ".on_ray" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"--runner=ray needs the extra 'ray'"):
        evaluate(on_ray(tmp_path / "out", checkpoint))


def test_a_node_that_is_removed_takes_no_episode_with_it(
    cluster: Any, alone: dict[str, Any], checkpoint: Path, tmp_path: Path
) -> None:
    """The one that the server is on, so that three workers are left with two CPUs. The last test: it stays removed."""
    run = on_ray(tmp_path / "out", checkpoint, WorldConfig(2, step_s=0.02), ray_address=cluster.address)
    restarts = []
    for event in Evaluation(run):
        if isinstance(event, ServerStarted):
            restarts.append(event.restarts)
        if isinstance(event, EpisodeEnded) and len(cluster.worker_nodes) == 2:
            (server,) = actors("ServerActor")
            cluster.remove_node(node_of(server, cluster), allow_graceful=False)
    # Ray may have placed the first of its successors on the node that it did not yet know to be gone.
    assert len(restarts) == 2
    assert restarts[0] == 0
    assert kept(tmp_path / "out") == alone


def node_of(actor: psutil.Process, cluster: Any) -> Any:
    """Actors are children of their node's raylet."""
    return next(
        node
        for node in cluster.worker_nodes
        if any(raylet.process.pid == actor.ppid() for raylet in node.all_processes["raylet"])
    )
