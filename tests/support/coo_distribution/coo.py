"""A third party's transport, both halves: ``coo://name`` over a Unix socket. Small rather than fast.

Its protocol has no word for an episode nor for what is served, as one that somebody else laid down may not have.
It stands for whatever somebody else may add: nothing in the project knows it but for its entry point.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from secrets import token_hex
from typing import Any

import msgpack
import numpy as np

from async_delta_inference.transport import (
    ActionChunk,
    Backend,
    Listener,
    Observation,
    ObservationFeatures,
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SessionSpec,
    SetupRefusedError,
    Transport,
    TransportTimeout,
)
from async_delta_inference.transport.mailbox import Filtered, MailboxSession

LONGEST_BYTES = 2**24
TURN_S = 0.5
SCALARS = ("timestep", "task", "must_go", "timestamp_s")


class Line:
    """Messages over a socket; `hang_up` ends a wait of another thread's."""

    def __init__(self, link: socket.socket) -> None:
        self._socket = link
        self._connection = Connection(os.dup(link.fileno()))

    def tell(self, kind: str, **content: Any) -> None:
        try:
            self._connection.send_bytes(msgpack.packb({"kind": kind, **content}))
        except OSError as exc:
            raise PeerGoneError(f"the other side of coo is gone: {exc}") from exc

    def hear(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        try:
            if timeout_s is not None and not self._connection.poll(timeout_s):
                return None
            return msgpack.unpackb(self._connection.recv_bytes(LONGEST_BYTES))
        except (OSError, EOFError) as exc:
            raise PeerGoneError(f"the other side of coo is gone: {exc}") from exc

    def hang_up(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()
        self._socket.close()


class CooTransport(Transport):
    _line: Line | None = None

    def _connect(self, spec: SessionSpec) -> str:
        self._line = Line(self._reach())
        self._line.tell(
            "spec",
            names=[spec.policy_type, spec.pretrained_name_or_path, spec.device],
            sizes=[spec.actions_per_chunk, spec.action_dim],
            state=spec.features.state_names,
            images=dict(spec.features.images),
        )
        reply = self._line.hear(self.options.setup_timeout_s)
        if reply is None:
            raise TransportTimeout("the pigeon did not come back")
        if reply["kind"] == "refused":
            raise SetupRefusedError(reply["reason"])
        return ""

    def _reach(self) -> socket.socket:
        deadline_s = time.monotonic() + self.options.connect_timeout_s
        while True:
            link = socket.socket(socket.AF_UNIX)
            try:
                link.connect(_name(self.address))
            except ConnectionRefusedError as exc:
                link.close()
                if time.monotonic() > deadline_s or self._closed.wait(0.05):
                    raise PeerUnreachableError(f"nobody listens at coo://{self.address}") from exc
            else:
                return link

    def _send(self, observation: Observation) -> None:
        images = {name: image.tobytes() for name, image in observation.images.items()}
        scalars = {name: getattr(observation, name) for name in SCALARS}
        self._line.tell("observation", state=observation.state.tobytes(), images=images, scalars=scalars)

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        until_s = time.monotonic() + timeout_s
        while (reply := self._line.hear(max(0.0, until_s - time.monotonic()))) is not None:
            if reply["kind"] != "filtered":
                return self._chunk(reply)
            self._note_answer(reply["timestep"])
        return None

    def _chunk(self, reply: dict[str, Any]) -> ActionChunk:
        if reply["kind"] == "end":
            raise PeerGoneError(reply["reason"])
        if reply["kind"] == "error":
            raise PolicyError(reply["reason"], reply["timestep"])
        actions = np.frombuffer(reply["actions"], np.float32).reshape(reply["shape"])
        return ActionChunk(actions, reply["timestep"], reply["timestamp_s"])

    def _close(self) -> None:
        if self._line is not None:
            self._line.hang_up()


class CooListener(Listener):
    reach = "host"

    @classmethod
    def default_address(cls) -> str:
        return "loft"

    @classmethod
    def unused_address(cls) -> str:
        return token_hex(8)

    @property
    def uri(self) -> str:
        return f"coo://{self.address}"

    def start(self) -> None:
        self._lines: set[Line] = set()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(_name(self.address))
        self._socket.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def stop(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        # Sessions have been told that they are over: each says so to its client, and hangs up by itself.
        until_s = time.monotonic() + 2.0
        for thread in self._threads[1:]:
            thread.join(max(0.0, until_s - time.monotonic()))
        for line in list(self._lines):
            line.hang_up()
        for thread in self._threads[1:]:
            thread.join()
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                link, _ = self._socket.accept()
            except OSError:
                return
            line = Line(link)
            self._lines.add(line)
            thread = threading.Thread(target=self._serve, args=(line, f"pigeon {len(self._threads)}"))
            self._threads.append(thread)
            thread.start()

    def _serve(self, line: Line, label: str) -> None:
        with suppress(PeerGoneError, ProtocolError):
            asked = line.hear()
            policy_type, path, device = asked["names"]
            features = ObservationFeatures(asked["state"], asked["images"])
            spec = SessionSpec(policy_type, path, asked["sizes"][0], features, asked["sizes"][1], device)
            session = MailboxSession(spec, label, self.host.ring)
            try:
                self.host.reserve(session, self.host.describe(spec))
                self.host.enter(session)
                while session.wait_until_open(TURN_S) is None:
                    pass
            except SetupRefusedError as exc:
                line.tell("refused", reason=str(exc))
            else:
                line.tell("open")
                self._exchange(line, session)
            finally:
                session.end("the pigeon is gone")
                self.host.leave(session)
        self._lines.discard(line)
        line.close()

    def _exchange(self, line: Line, session: MailboxSession) -> None:
        writer = threading.Thread(target=_answer, args=(line, session))
        writer.start()
        try:
            while (message := line.hear()) is not None:
                session.post(_observation(message, session.spec.features))
        finally:
            session.end("the pigeon is gone")
            writer.join()


def _answer(line: Line, session: MailboxSession) -> None:
    """Replies as they come, until the session is over."""
    with suppress(PeerGoneError):
        while True:
            try:
                reply = session.next_reply(TURN_S)
            except PeerGoneError as exc:
                line.tell("end", reason=str(exc))
                line.hang_up()
                return
            if isinstance(reply, PolicyError):
                line.tell("error", reason=str(reply), timestep=reply.timestep)
            elif isinstance(reply, Filtered):
                line.tell("filtered", timestep=reply.timestep)
            elif reply is not None:
                actions = reply.actions
                content = {"actions": actions.tobytes(), "shape": actions.shape}
                line.tell("chunk", **content, timestep=reply.timestep, timestamp_s=reply.timestamp_s)


def _observation(message: dict[str, Any], features: ObservationFeatures) -> Observation:
    """Read-only arrays, of the message's own memory."""
    images = {
        name: np.frombuffer(message["images"][name], np.uint8).reshape(shape) for name, shape in features.images.items()
    }
    return Observation(images, np.frombuffer(message["state"], np.float32), **message["scalars"])


def _name(address: str) -> str:
    """In no folder: nothing can be left behind."""
    return f"\0coo-{address}"


BACKEND = Backend(transport=CooTransport, listener=CooListener)
