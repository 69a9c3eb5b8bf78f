"""One side of a shared-memory session as a process without lerobot, which can stop at a point of the protocol.

    python shm_actor.py serve NAME [POINT]
    python shm_actor.py client NAME [POINT]

Says ``ready`` when it is, and ``reached`` when it has come to POINT, where it stays until it is killed. A server ends
when its standard input does.
"""

from __future__ import annotations

import os
import select
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.transport import (
    Answer,
    EpisodeStart,
    Observation,
    ObservationFeatures,
    PolicyNeeds,
    PolicySession,
    Request,
    Server,
    SessionHost,
    SessionSpec,
    open_transport,
)
from async_delta_inference.transport.shm.client.attachment import Attachment
from async_delta_inference.transport.shm.server.listener import ShmListener
from async_delta_inference.transport.shm.shared import rendezvous
from async_delta_inference.transport.shm.shared.connection import Connection
from async_delta_inference.transport.shm.shared.ring import ActionReader, ActionWriter, ObservationWriter
from async_delta_inference.transport.shm.shared.segment import Segment, SegmentNames

ROWS, COLUMNS = 10, 4
INFERENCE_S = 1.0
FEATURES = ObservationFeatures(("x", "y"), {"front": (24, 32, 3), "wrist": (7, 5, 3)})


def policy_spec(features: ObservationFeatures = FEATURES, kind: str = "checksum") -> SessionSpec:
    return SessionSpec(kind, "nowhere", ROWS, features, COLUMNS)


def make_observation(timestep: int, features: ObservationFeatures = FEATURES, task: str = "") -> Observation:
    """Random pixels that follow from the timestep."""
    rng = np.random.default_rng(timestep)
    observation = Observation.empty(features)
    fill(observation, rng)
    observation.timestep, observation.task, observation.timestamp_s = timestep, task, timestep / 8
    return observation


def fill(observation: Observation, rng: np.random.Generator) -> None:
    for image in observation.images.values():
        image[...] = rng.integers(0, 256, image.shape, np.uint8)
    observation.state[...] = rng.random(observation.state.shape)


def checksum(observation: Observation) -> int:
    """A checksum of everything that the sender wrote, in 24 bits: exact in float32."""
    value = zlib.crc32(observation.task.encode())
    for array in (observation.state, *observation.images.values()):
        value = zlib.crc32(np.ascontiguousarray(array), value)
    return value & 0xFFFFFF


def expected_actions(observation: Observation) -> NDArray[np.float32]:
    rows = observation.timestep % ROWS + 1
    actions = np.zeros((rows, COLUMNS), np.float32)
    actions[:, 0] = checksum(observation)
    actions[:, 1] = np.arange(rows)
    return actions


class ChecksumPolicy:
    """Answers what was received; raises for the task ``raise ...``, and takes as long as ``sleep N`` says."""

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        return PolicyNeeds("checksums")

    def open(self, spec: SessionSpec) -> PolicySession:
        return Stateless()

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        return [self.answer(request.observation, request.release) for request in requests]

    def answer(self, observation: Observation, release: Callable[[], None]) -> NDArray[np.float32] | None:
        verb, _, rest = observation.task.partition(" ")
        if verb == "raise":
            raise RuntimeError(rest)
        if verb == "sleep":
            time.sleep(float(rest))
        if verb == "filter":
            return None
        return expected_actions(observation)


class Stateless:
    def reset(self, episode: EpisodeStart) -> None:
        pass

    def close(self) -> None:
        pass


def shm_server(name: str, policy: ChecksumPolicy | None = None, *, max_sessions: int = 64, **options: Any) -> Server:
    """Not started; ``options`` are `ShmListener`'s."""
    host = SessionHost(policy or ChecksumPolicy(), max_sessions=max_sessions)
    return Server(host, (ShmListener(name, host, **options),))


def reached(*_: Any, **__: Any) -> Any:
    print("reached", flush=True)
    time.sleep(3600)


def stop_before(owner: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(owner, name, reached)


def stop_after(owner: Any, name: str) -> Callable[[], None]:
    def patch() -> None:
        original = getattr(owner, name)

        def call(*arguments: Any, **keywords: Any) -> Any:
            original(*arguments, **keywords)
            reached()

        setattr(owner, name, staticmethod(call) if isinstance(owner, type) and name in ("create", "attach") else call)

    return patch


def stop_in_inference() -> None:
    """The slot is given back, the answer is not there yet."""

    def answer(self: ChecksumPolicy, observation: Observation, release: Callable[[], None]) -> None:
        release()
        reached()

    ChecksumPolicy.answer = answer  # type: ignore[assignment, method-assign]


def stop_at_receive(count: int) -> Callable[[], None]:
    """Before the ``count``-th message of the handshake is received."""

    def patch() -> None:
        original, calls = Connection.receive, [0]

        def receive(self: Connection, timeout_s: float | None) -> Any:
            calls[0] += 1
            return reached() if calls[0] == count else original(self, timeout_s)

        Connection.receive = receive  # type: ignore[method-assign]

    return patch


def stop_in_store(owner: Any) -> Callable[[], None]:
    """Half of a record is written."""

    def patch() -> None:
        original = owner.publish

        def publish(self: Any, *arguments: Any) -> None:
            store = self._store

            def half(position: int, sequence: int, *_: Any) -> None:
                store.args[0][position : position + 8] = sequence.to_bytes(8, "little")
                reached()

            self._store = half
            original(self, *arguments)

        owner.publish = publish

    return patch


SERVER_POINTS: dict[str, Callable[[], None]] = {
    "bound": stop_before(rendezvous.socket.socket, "listen"),
    "listening": stop_before(ShmListener, "_hang_bell"),
    "accepted": stop_at_receive(1),
    "segment made": stop_after(Segment, "create"),
    "offered": stop_at_receive(2),
    "attached": stop_before(SegmentNames, "unlink"),
    "loading": stop_before(ChecksumPolicy, "open"),
    "holding a slot": stop_before(ChecksumPolicy, "infer"),
    "in inference": stop_in_inference,
    "answered in part": stop_in_store(ActionWriter),
    "answered": stop_after(ActionWriter, "publish"),
}

CLIENT_POINTS: dict[str, Callable[[], None]] = {
    "connected": stop_before(Connection, "send"),
    "said hello": stop_at_receive(1),
    "attached": stop_after(Segment, "attach"),
    "loading": stop_at_receive(2),
    "before the first message": stop_after(Attachment, "__init__"),
    "writing a slot": stop_after(ObservationWriter, "claim"),
    "published in part": stop_in_store(ObservationWriter),
    "published": stop_after(ObservationWriter, "publish"),
    "while it is answered": lambda: None,
    "reading a chunk": stop_after(ActionReader, "take"),
    "holding a loan": lambda: None,
    "forked": lambda: None,
}


def serve(name: str) -> None:
    server = shm_server(name)
    server.start()
    print("ready", flush=True)
    sys.stdin.read()
    server.stop()


def be_client(name: str, point: str) -> None:
    with open_transport(f"shm://{name}") as transport:
        transport.connect(policy_spec())
        print("ready", flush=True)
        if point == "holding a loan":
            loan = transport.loan_observation()
            loan.state[0] = 1
            reached()
        if point == "while it is answered":
            transport.send_observation(make_observation(0, task=f"sleep {INFERENCE_S}"))
            time.sleep(INFERENCE_S / 4)
            reached()
        if point == "forked":
            if os.fork() == 0:
                os.closerange(0, 3)  # The test reads them to their end.
                time.sleep(5)
                os._exit(0)
            reached()
        for timestep in range(3):
            transport.send_observation(make_observation(timestep))
            transport.receive_actions(30.0)
        sys.stdin.read()


def chatter(name: str) -> None:
    """Exchanges until standard input ends, and checks every answer."""
    with open_transport(f"shm://{name}") as transport:
        transport.connect(policy_spec())
        print("ready", flush=True)
        timestep = 0
        while not select.select([sys.stdin], [], [], 0)[0]:
            observation = make_observation(timestep)
            transport.send_observation(observation)
            chunk = transport.receive_actions(30.0)
            assert chunk is not None
            assert chunk.actions.tobytes() == expected_actions(observation).tobytes()
            timestep += 1
            if timestep % 100 == 0:
                print(f"at {timestep}", flush=True)


def main() -> None:
    role, name, *point = sys.argv[1:]
    if point:
        (SERVER_POINTS if role == "serve" else CLIENT_POINTS)[point[0]]()
    if role == "serve":
        serve(name)
    elif role == "chatter":
        chatter(name)
    else:
        be_client(name, *point or [""])


if __name__ == "__main__":
    main()
