"""SIGKILL of either side at every step: the other learns of it within a second, nothing is left, the next is served."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shm_actor import CLIENT_POINTS, INFERENCE_S, SERVER_POINTS, expected_actions, make_observation, policy_spec
from shm_processes import Actor, actor, eventually, left_behind, of_server

from async_delta_inference.errors import PeerGoneError, TransportError
from async_delta_inference.transport import Transport, open_transport

NOTICED_WITHIN_S = 1.0
NAME = "victim"


def exchange(transport: Transport, timestep: int) -> None:
    observation = make_observation(timestep)
    transport.send_observation(observation)
    chunk = transport.receive_actions(30.0)
    assert chunk is not None
    assert chunk.actions.tolist() == expected_actions(observation).tolist()


def serve_one_client() -> None:
    with open_transport(f"shm://{NAME}") as transport:
        transport.connect(policy_spec())
        exchange(transport, 3)


class Watched:
    """Runs something in a thread that must end with an error, and notes when."""

    def __init__(self, run: Callable[[], object]) -> None:
        self.error: BaseException | None = None
        self.ended_s = 0.0
        self._run = run
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _main(self) -> None:
        try:
            self._run()
        except TransportError as exc:
            self.error = exc
        self.ended_s = time.monotonic()


@pytest.mark.parametrize("point", SERVER_POINTS)
def test_death_of_the_server(shm_folder: Path, point: str) -> None:
    with actor("serve", NAME, point) as server, open_transport(f"shm://{NAME}") as transport:

        def use() -> None:
            transport.connect(policy_spec())
            if point != "answered":
                exchange(transport, 1)
            server.wait_for("reached")
            while True:
                transport.receive_actions(30.0)

        server.wait_for("reached" if point in ("bound", "listening") else "ready")
        if point == "bound":
            server.kill()
        user = Watched(use)
        if point == "answered":
            eventually(lambda: transport._usable, "connected")
            transport.send_observation(make_observation(1))
        if point != "bound":
            server.wait_for("reached")
            eventually(lambda: transport._hang_up is not None, "there is a connection")  # type: ignore[attr-defined]
            killed_s = time.monotonic()
            server.kill()
            user.join()
            assert user.ended_s - killed_s < NOTICED_WITHIN_S
        else:
            # Nobody is there: the client waits for a server that starts, up to its time limit.
            with actor("serve", NAME) as second:
                second.wait_for("ready")
                eventually(lambda: transport._usable, "connected to the second server")
                second.kill()
                user.join()
        assert isinstance(user.error, PeerGoneError)
        transport.close()
        assert left_behind(shm_folder) == []
    with actor("serve", NAME) as successor:
        successor.wait_for("ready")
        serve_one_client()
        assert successor.end() == 0
    assert left_behind(shm_folder) == []


@pytest.mark.parametrize("point", CLIENT_POINTS)
def test_death_of_the_client(shm_folder: Path, point: str) -> None:
    with actor("serve", NAME) as server, open_transport(f"shm://{NAME}") as neighbour:
        server.wait_for("ready")
        neighbour.connect(policy_spec())
        exchange(neighbour, 1)
        with actor("client", NAME, point) as client:
            client.wait_for("reached")
            killed_s = time.monotonic()
            client.kill()
            serve_one_client()  # Whose turn comes once the inference for the dead one is done.
            exchange(neighbour, 2)  # It has noticed nothing.
            busy_s = INFERENCE_S if point == "while it is answered" else 0.0
            assert time.monotonic() - killed_s < busy_s + 2 * NOTICED_WITHIN_S
        eventually(lambda: left_behind(shm_folder) == of_server(NAME), "only the live server's socket is left")
        assert server.end() == 0
    assert left_behind(shm_folder) == []


def test_next_client_waits_for_the_inference_of_one_that_died(shm_folder: Path) -> None:
    with actor("serve", NAME) as server:
        server.wait_for("ready")
        with open_transport(f"shm://{NAME}") as transport:
            transport.connect(policy_spec())
            transport.send_observation(make_observation(1, task="sleep 1.5"))
        serve_one_client()
        server.end()


def test_chunk_of_a_server_that_died_after_it_is_delivered(shm_folder: Path) -> None:
    with actor("serve", NAME) as server, open_transport(f"shm://{NAME}") as transport:
        server.wait_for("ready")
        transport.connect(policy_spec())
        observation = make_observation(1)
        transport.send_observation(observation)
        eventually(lambda: transport._actions_ready.value == 1, "the chunk is there")  # type: ignore[attr-defined]
        server.kill()
        eventually(lambda: transport._attachment.end is not None, "the death was noticed")  # type: ignore[attr-defined]
        chunk = transport.receive_actions(1.0)
        assert chunk is not None
        assert chunk.actions.tolist() == expected_actions(observation).tolist()
        for _ in range(2):
            with pytest.raises(PeerGoneError):
                transport.receive_actions(0.0)


def test_both_die(shm_folder: Path) -> None:
    """Names that nobody is left to remove are swept by the next server at this name."""
    with actor("serve", NAME, "offered") as server, actor("client", NAME, "attached") as client:
        client.wait_for("reached")
        server.wait_for("reached")
        client.kill()
        server.kill()
    assert len(left_behind(shm_folder)) == 7
    with actor("serve", NAME) as successor:
        successor.wait_for("ready")
        assert left_behind(shm_folder) == of_server(NAME)
        serve_one_client()
        successor.end()


def test_segment_of_two_that_died_is_removed_by_any_server(shm_folder: Path) -> None:
    """An embedded server's name is random: no successor of the same name will ever come."""
    with actor("serve", "embedded-1", "offered") as server, actor("client", "embedded-1", "attached") as client:
        client.wait_for("reached")
        server.wait_for("reached")
        client.kill()
        server.kill()
    assert len(left_behind(shm_folder)) == 7
    with actor("serve", NAME) as other:
        other.wait_for("ready")
        assert left_behind(shm_folder) == of_server(NAME)
        other.end()


def test_actor_ends_by_itself(shm_folder: Path) -> None:
    server = Actor("serve", NAME)
    server.wait_for("ready")
    assert server.end() == 0
    assert left_behind(shm_folder) == []
