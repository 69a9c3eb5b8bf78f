"""Our own service over a `SessionHost`: a stream is a session, until it breaks and another one takes its place.

A stream has two threads: gRPC's own sends replies, one of ours takes observations.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import grpc

from async_delta_inference.errors import InvalidMessageError, PeerGoneError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.addresses import is_loopback
from async_delta_inference.transport.grpc import greeting, native
from async_delta_inference.transport.grpc.observations import PIECE_BYTES
from async_delta_inference.transport.grpc.server.native_session import NativeSession, goodbye
from async_delta_inference.transport.grpc.server.silences import Silences
from async_delta_inference.transport.host import SessionHost
from async_delta_inference.transport.policy import PolicyNeeds

__all__ = ["NativeService"]

logger = logging.getLogger(__name__)

RESUME_S = 30.0
"""How long a session waits for its client after the stream broke."""
RESUME_ON_THIS_MACHINE_S = 0.0
"""The same where no network is between: there a stream breaks because the client died."""
_OPEN_SLICE_S = 10.0


class NativeService:
    """``async_delta.v1.Inference``.

    Args:
        host: Where the sessions go.
        silences: Bounds how long a stream may take to say what it wants.
    """

    def __init__(self, host: SessionHost, silences: Silences) -> None:
        self._host = host
        self._silences = silences
        self._lock = threading.Lock()
        self._sessions: dict[bytes, NativeSession] = {}

    def handler(self) -> grpc.GenericRpcHandler:
        """The service as gRPC takes it; messages stay bytes, for us to read."""
        handlers: dict[str, Any] = {"Session": grpc.stream_stream_rpc_method_handler(self.converse)}
        return grpc.method_handlers_generic_handler(native.SERVICE, handlers)

    def end_all(self, reason: str) -> None:
        """End every session, so that no stream waits any longer."""
        with self._lock:
            sessions = list(self._sessions.values())
        for session in sessions:
            session.stop_waiting()
            session.end(reason)

    def converse(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """One stream."""
        with self._silences.bounded(context):
            first = next(requests, None)
        if first is None:
            return
        context.send_initial_metadata(())  # The client knows that somebody is there, however long the policy loads.
        try:
            session, answer = self._begin(greeting.read_hello(first), context)
        except (SetupRefusedError, ProtocolError, InvalidMessageError) as exc:
            logger.warning("refused a client: %s", str(exc))
            yield greeting.refused(str(exc))
            return
        except PeerGoneError as exc:
            yield greeting.bye(str(exc), is_final=False)
            return
        yield greeting.ready(answer)
        reader = threading.Thread(
            target=self._read, args=(requests, session, context), name="grpc-listener-reader", daemon=True
        )
        reader.start()
        try:
            while (message := session.next_message(context)) is not None:
                yield message
        except PeerGoneError as exc:
            yield goodbye(session, exc)
        finally:
            self._forget_ended(session)

    # Beginning.

    def _begin(self, hello: greeting.Hello, context: grpc.ServicerContext) -> tuple[NativeSession, greeting.Ready]:
        """The session that a hello asks for, new or known.

        Raises:
            SetupRefusedError, InvalidMessageError: There is none, and why.
            PeerGoneError: The client has gone, or the server was stopped.
        """
        known = self._sessions.get(hello.session)
        if hello.resumes and known is not None and known.attach(hello, context):
            self._watch(known, context)
            needs = known.needs
            return known, greeting.Ready(
                needs.description, needs.n_obs_steps, resumed=True, received=known.received, prefix=needs.prefix
            )
        if known is not None:
            self._leave(known, "its client began anew")
        needs = self._host.describe(hello.spec, carries_history=True, carries_prefix=True)
        if needs.n_obs_steps * native.step_bytes(hello.spec.features) > greeting.MAX_OBSERVATION_BYTES:
            raise SetupRefusedError(f"{needs.n_obs_steps} observations at once are more than the server takes")
        if needs.prefix.bytes(hello.spec.action_dim) > PIECE_BYTES:
            raise SetupRefusedError(
                f"{needs.prefix.rows} actions before each observation are more than a message holds"
            )
        session = NativeSession(hello, needs, self._host.ring, context)
        self._host.reserve(session, needs)
        with self._lock:
            self._sessions[hello.session] = session
        self._watch(session, context)
        self._host.enter(session)
        try:
            needs = _wait_until_open(session, context)
        except SetupRefusedError:
            self._leave(session, "its policy could not be opened")
            raise
        said = greeting.Ready(needs.description, needs.n_obs_steps, prefix=needs.prefix, computation=needs.computation)
        return session, said

    # Ending.

    def _watch(self, session: NativeSession, context: grpc.ServicerContext) -> None:
        """Have the session notice when the stream ends."""

        def ended() -> None:
            wait_s = RESUME_ON_THIS_MACHINE_S if _is_on_this_machine(context.peer()) else RESUME_S
            session.detach(context, wait_s, lambda: self._leave(session, "the connection to the client was lost"))

        if not context.add_callback(ended):
            ended()

    def _leave(self, session: NativeSession, reason: str) -> None:
        session.end(reason)
        self._host.leave(session)
        self._forget_ended(session)

    def _forget_ended(self, session: NativeSession) -> None:
        with self._lock:
            if session.end_reason is not None and self._sessions.get(session.hello.session) is session:
                del self._sessions[session.hello.session]

    # Reading.

    def _read(self, requests: Iterator[bytes], session: NativeSession, context: grpc.ServicerContext) -> None:
        try:
            with suppress(grpc.RpcError):  # The stream broke: whoever watches it knows.
                for data in requests:
                    if not session.add(data, context):
                        self._leave(session, "its client said goodbye")
                        return
        except ProtocolError as exc:
            logger.warning("ended the session of %s: %s", session.label, str(exc))
            session.is_at_fault = True
            self._leave(session, str(exc))
        except Exception as exc:
            logger.exception("lost the session of %s", session.label)
            self._leave(session, f"the server failed: {type(exc).__name__}: {exc}")


def _is_on_this_machine(peer: str) -> bool:
    kind, _, address = unquote(peer).partition(":")
    return kind == "unix" or is_loopback(address)


def _wait_until_open(session: NativeSession, context: grpc.ServicerContext) -> PolicyNeeds:
    while (needs := session.wait_until_open(_OPEN_SLICE_S)) is None:
        if not context.is_active():
            raise PeerGoneError("the client does not wait for its session any more")
    return needs
