"""Whole evaluations: a real environment, a real checkpoint, lerobot's own PolicyServer in a process of its own."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.envs.configs import PushtEnv
from policy_server_peer import policy_server_peer

from async_delta_inference.client import EpisodeResult, RunObserver, SimClient, SimClientConfig
from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.errors import (
    FeatureMismatchError,
    PeerUnreachableError,
    PolicyError,
    SetupRefusedError,
)
from async_delta_inference.transport import open_transport
from async_delta_inference.transport.testing import ServedPeer


def config(checkpoint: Path, peer: ServedPeer, output_dir: Path, **flags: Any) -> SimClientConfig:
    return SimClientConfig(
        **{
            "env": PushtEnv(episode_length=60),
            "policy_type": "act",
            "pretrained_name_or_path": str(checkpoint),
            "actions_per_chunk": 20,
            "n_episodes": 1,
            "server_address": peer.uri,
            "output_dir": output_dir,
            "progress": False,
            "fps": 100.0,
            "reconnect_timeout_s": 1.0,
        }
        | flags
    )


class AtStep(RunObserver):
    """Does something once, at one step of the run."""

    def __init__(self, step: int, action: Any) -> None:
        self._step, self._action = step, action
        self._steps = 0

    def stepped(self, environment: Any, outcome: Any) -> None:
        self._steps += 1
        if self._steps == self._step:
            self._action()


def test_episode_is_asynchronous(pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path) -> None:
    """In the simulated clock, so that it does not hang on how fast this machine infers."""
    flags = config(pusht_checkpoint, policy_server, tmp_path, clock="simulated", inference_delay="3")
    (episode,) = SimClient(flags).run().episodes
    assert episode.length == 60
    assert [chunk.queued for chunk in episode.chunks] == [0] + [7] * (len(episode.chunks) - 1)
    assert episode.asynchronous_chunks == 5
    assert np.isfinite(episode.actions).all()
    assert all(chunk.latency_s > 0 for chunk in episode.chunks)


def test_unlike_upstream_the_similarity_filter_does_not_make_it_synchronous(
    pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path
) -> None:
    """A state that stays within PolicyServer's distance of 1, as LIBERO's metres and radians do."""

    def episode_of(folder: str, **flags: Any) -> EpisodeResult:
        (environment,) = make_environments(PushtEnv(episode_length=60))
        original = environment.write_observation

        def shrink(observation: Any) -> None:
            original(observation)
            observation.state[:] *= 1e-4

        environment.write_observation = shrink  # type: ignore[method-assign]
        client_config = config(pusht_checkpoint, policy_server, tmp_path / folder, **flags)
        (episode,) = SimClient(client_config, environments=[environment]).run().episodes
        return episode

    assert episode_of("ours", clock="simulated", inference_delay="3").asynchronous_chunks == 5
    as_upstream = episode_of("upstreams", must_go="queue_empty")
    assert as_upstream.asynchronous_chunks == 0
    assert len(as_upstream.chunks) == 3


def test_interface_of_robot_client(pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path) -> None:
    client = SimClient(config(pusht_checkpoint, policy_server, tmp_path, n_episodes=2))
    client.start()
    action_thread = threading.Thread(target=client.receive_actions, daemon=True)
    action_thread.start()
    client.control_loop(task="")
    client.stop()
    action_thread.join(10)
    assert len(client.result.episodes) == 2
    assert not action_thread.is_alive()


def test_same_seed_and_delay_give_the_same_run(
    pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path
) -> None:
    def trajectories(name: str) -> list[bytes]:
        flags = config(
            pusht_checkpoint,
            policy_server,
            tmp_path / name,
            clock="simulated",
            inference_delay="3",
            n_episodes=2,
            save_trajectories=True,
        )
        SimClient(flags).run()
        return [path.read_bytes() for path in sorted((tmp_path / name / "trajectories").glob("*.npz"))]

    first = trajectories("first")
    assert len(first) == 2
    assert first == trajectories("second")


def test_death_of_the_server_in_mid_episode_ends_the_run(
    pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path
) -> None:
    client = SimClient(config(pusht_checkpoint, policy_server, tmp_path), observers=[AtStep(25, policy_server.kill)])
    with pytest.raises(PeerUnreachableError, match="did not come back within 1 s"):
        client.run()


def test_restart_of_the_server_in_mid_episode_lets_the_run_go_on(pusht_checkpoint: Path, tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/server.sock"
    peers = [policy_server_peer("grpc", address)]

    def restart() -> None:
        peers[-1].kill()
        peers.append(policy_server_peer("grpc", address))

    flags = config(pusht_checkpoint, peers[0], tmp_path, reconnect_timeout_s=60.0)
    try:
        result = SimClient(flags, observers=[AtStep(25, restart)]).run()
    finally:
        for peer in peers:
            peer.kill()
    assert result.episodes[0].length == 60
    assert result.episodes[0].chunks[-1].requested_step > 25


def test_checkpoint_that_is_not_there_is_refused_by_the_server(policy_server: ServedPeer, tmp_path: Path) -> None:
    """Where the transport is the user's own, the client does not look for it."""
    flags = config(Path("nobody/nothing"), policy_server, tmp_path)
    client = SimClient(flags, transport=open_transport(policy_server.uri))
    with pytest.raises(SetupRefusedError, match="nobody/nothing"):
        client.run()


def test_camera_that_does_not_match_is_refused_before_the_run(
    pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path
) -> None:
    from stub_environment import StubEnvironment

    client = SimClient(config(pusht_checkpoint, policy_server, tmp_path), environments=[StubEnvironment()])
    with pytest.raises(FeatureMismatchError, match=r"images\.camera.*images\.image"):
        client.run()


def test_camera_that_does_not_match_is_refused_by_the_server_too(
    pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path
) -> None:
    """Where the transport is the user's own, the client does not know which checkpoint is served."""
    from stub_environment import StubEnvironment

    client = SimClient(
        config(pusht_checkpoint, policy_server, tmp_path),
        environments=[StubEnvironment()],
        transport=open_transport(policy_server.uri),
    )
    with pytest.raises(SetupRefusedError, match=r"images\.camera.*images\.image"):
        client.run()
    assert client.result.episodes == []


def test_inference_that_fails_on_the_server_is_an_error_here(
    pusht_checkpoint: Path, policy_server: ServedPeer, tmp_path: Path
) -> None:
    """Upstream answers empty, as for "no observation yet": its client would wait for ever."""
    (environment,) = make_environments(PushtEnv(episode_length=60))
    original = environment.write_observation

    def spoil(observation: Any) -> None:
        original(observation)
        observation.state[0] = np.nan

    environment.write_observation = spoil  # type: ignore[method-assign]
    client = SimClient(config(pusht_checkpoint, policy_server, tmp_path), environments=[environment])
    with pytest.raises(PolicyError, match="state of timestep 0 is not finite"):
        client.run()
    assert client.result.episodes == []
