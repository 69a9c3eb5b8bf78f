"""`NativeLink`: our own protocol. One stream is the session; where it breaks, another one goes on with it.

gRPC's own thread takes what is sent from a mailbox of one, and one of ours reads what comes: a control loop never waits
for the network.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from secrets import token_bytes
from typing import Any

import grpc

from async_delta_inference import stages
from async_delta_inference.errors import (
    PeerGoneError,
    PeerUnreachableError,
    ProtocolError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.grpc import greeting, image_codecs, native, replies
from async_delta_inference.transport.grpc.client.calls import CALL_ERRORS, map_call_error
from async_delta_inference.transport.grpc.client.link import Line, Link, Owner
from async_delta_inference.transport.grpc.observations import Packed
from async_delta_inference.transport.mailbox import MAX_REPLIES, Reply
from async_delta_inference.transport.messages import Observation, SessionSpec

__all__ = ["NativeLink", "NotSpoken"]

_CLOSE_TIMEOUT_S = 1.0
_JOIN_TIMEOUT_S = 5.0
_RETRY_S = 0.1

_MOST_LOSSES = 5
"""Servers lost in a row, each with an observation that it had to answer: the next one would be, too."""


class NotSpoken(ProtocolError):
    """The server has no such service: it may speak LeRobot's protocol."""


class _Stream:
    """One stream's state, guarded by the link's condition.

    Args:
        hello: Its first message.
    """

    def __init__(self, hello: bytes) -> None:
        self.hello = hello
        self.is_reached = False
        """Whether a server has answered anything."""
        self.ready: greeting.Ready | None = None
        self.error: TransportError | None = None
        """Why it is over."""
        self.is_over = False
        self.is_ending = False
        self.call: Any = None


class NativeLink(Link):
    """A session with a server of ours.

    Args:
        line: To the server.
        owner: The transport.
    """

    dialect = "native"

    def __init__(self, line: Line, owner: Owner) -> None:
        self._line = line
        super().__init__(owner)
        self._options = owner.options
        self._encoding = owner.options.link.grpc.image_encoding
        self._condition = threading.Condition()
        self._session = token_bytes(greeting.SESSION_BYTES)
        self._spec: SessionSpec | None = None
        self._open_call: Any = line.channel.stream_stream(native.METHOD)
        self._stream: _Stream | None = None
        self._waiting: Packed | None = None
        self._unanswered: Packed | None = None
        """The newest that was sent and not answered."""
        self._numbered = 0
        self._received = 0
        self._replies: deque[Reply] = deque()
        self._over: PeerGoneError | ProtocolError | None = None
        self._is_lost = False
        self._losses_without_answer = 0
        self._reader: threading.Thread | None = None

    # What the transport asks for.

    def connect(self, spec: SessionSpec) -> str:
        """See `Link`.

        Raises:
            NotSpoken: Somebody is there who does not speak this.
        """
        image_codecs.check(self._encoding, dict(spec.features.image_shapes))
        self._spec = spec
        ready = self._open(time.monotonic() + self._options.connect_timeout_s, resumes=False)
        self.n_obs_steps, self.prefix, self.computation = ready.n_obs_steps, ready.prefix, ready.computation
        return ready.description

    def send(self, observation: Observation) -> None:
        """See `Link`."""
        assert self._spec is not None
        with self._condition:
            if self._over is not None:
                raise self._over
            self._numbered += 1
            number, received = self._numbered, self._received
            # Of one that it replaces; it may be taken meanwhile, and then this one is answered once too often.
            must_go = observation.must_go or (self._waiting is not None and self._waiting.must_go)
        packed = Packed.of(observation, self._spec.features, self._encoding, number, must_go, received)
        if stages.recorder is not None:
            stages.recorder.mark(stages.ENCODE, observation.timestep)
        with self._condition:
            if self._over is not None:
                raise self._over
            self._waiting = packed
            self._condition.notify_all()

    def next_reply(self, timeout_s: float) -> Reply | None:
        """See `Link`."""
        with self._condition:
            if timeout_s > 0.0:
                self._condition.wait_for(lambda: self._replies or self._is_finished(), timeout_s)
            if self._owner.closed.is_set():
                return None
            if not self._replies:
                if self._over is not None:
                    raise self._over
                return None
            was_full = len(self._replies) >= MAX_REPLIES
            reply = self._replies.popleft()
            if was_full:
                self._condition.notify_all()
        return reply

    def close(self) -> None:
        """See `Link`. Says goodbye, so that the seat is free when this returns."""
        with self._condition:
            stream = self._stream
            if stream is not None:
                stream.is_ending = True
            self._condition.notify_all()
            if stream is not None and not self._is_lost:
                self._condition.wait_for(lambda: stream.is_over, _CLOSE_TIMEOUT_S)
        if stream is not None:
            stream.call.cancel()
        reader = None
        # One that was restoring the session has started another, which ends by itself.
        while self._reader not in (reader, None, threading.current_thread()):
            reader = self._reader
            assert reader is not None
            reader.join(_JOIN_TIMEOUT_S)

    def expects_answers(self) -> bool:
        """See `Link`."""
        return not self._is_lost

    def _is_finished(self) -> bool:
        return self._over is not None or self._owner.closed.is_set()

    # A stream.

    def _open(self, deadline_s: float, *, resumes: bool) -> greeting.Ready:
        """Have a server begin or go on with the session; one that goes away meanwhile may come back.

        Raises:
            PeerUnreachableError: None answered until ``deadline_s``, of the monotonic clock.
            TransportTimeout: The policy was not loaded in time.
            TransportError: It refused, or is no such server.
        """
        started_s = time.monotonic()
        while True:
            stream = self._begin(resumes)
            error = self._wait_for_answer(stream, deadline_s)
            if error is None:
                assert stream.ready is not None
                return stream.ready
            stream.call.cancel()
            if isinstance(error, PeerUnreachableError) or (
                isinstance(error, PeerGoneError) and time.monotonic() >= deadline_s
            ):
                raise PeerUnreachableError(
                    f"no policy server answers at {self._line.address} within {deadline_s - started_s:.1f} s: is it "
                    f"running there? Start one with: async-delta-serve --transport=grpc "
                    f"--server_address={self._line.address}"
                ) from error
            if not isinstance(error, PeerGoneError):
                raise error
            self._owner.closed.wait(_RETRY_S)
            if self._owner.closed.is_set():
                raise TransportClosed("the transport was closed while it connected")

    def _begin(self, resumes: bool) -> _Stream:
        assert self._spec is not None
        hello = greeting.Hello(self._session, self._spec, resumes, self._received, self._encoding)
        stream = _Stream(greeting.encode_hello(hello))
        stream.call = self._open_call(self._outgoing(stream), metadata=self._line.metadata or None, wait_for_ready=True)
        with self._condition:
            self._stream = stream
            if self._owner.closed.is_set():
                stream.is_ending = True
        reader = threading.Thread(target=self._read, args=(stream,), name="grpc-transport-reader", daemon=True)
        reader.start()
        self._reader = reader  # Not before: `close` joins what it finds here, whoever restores the session meanwhile.
        return stream

    def _wait_for_answer(self, stream: _Stream, deadline_s: float) -> TransportError | None:
        """Until the session goes on; why it does not, else."""
        with self._condition:
            self._condition.wait_for(
                lambda: stream.is_reached or stream.is_over or self._owner.closed.is_set(),
                max(0.0, deadline_s - time.monotonic()),
            )
            if not stream.is_reached and not stream.is_over and not self._owner.closed.is_set():
                return PeerUnreachableError("nobody answers")
            self._condition.wait_for(
                lambda: stream.ready is not None or stream.is_over or self._owner.closed.is_set(),
                self._options.setup_timeout_s,
            )
            if self._owner.closed.is_set():
                return TransportClosed("the transport was closed while it connected")
            if stream.ready is not None:
                return None
            if stream.is_over:
                return stream.error or PeerGoneError("the server ended the session before it began")
        return TransportTimeout(
            f"the policy server at {self._line.address} did not load the policy within "
            f"{self._options.setup_timeout_s:g} s"
        )

    def _outgoing(self, stream: _Stream) -> Iterator[bytes]:
        """What the stream sends, in gRPC's thread, whenever there is room for it."""
        yield stream.hello
        while (packed := self._next_outgoing(stream)) is not None:
            yield from packed.messages
        if stream.is_ending:
            yield native.goodbye()

    def _next_outgoing(self, stream: _Stream) -> Packed | None:
        with self._condition:
            self._condition.wait_for(
                lambda: stream.is_ending or stream.is_over or (stream.ready is not None and self._waiting is not None)
            )
            if stream.is_ending or stream.is_over or self._stream is not stream:
                return None
            packed, self._waiting = self._waiting, None
            assert packed is not None
            self._unanswered = packed
        return packed

    def _read(self, stream: _Stream) -> None:
        """What the stream brings, in a thread of ours that ends with it, or goes on to restore it."""
        error: TransportError | None
        try:
            error = self._read_until_end(stream)
        except TransportError as exc:  # Before the next: some of ours are ValueErrors, too.
            error = exc
        except CALL_ERRORS as exc:
            error = self._error_of(exc, stream)
        except Exception as exc:  # noqa: BLE001 - nobody else would hear of it
            error = ProtocolError(f"the connection to {self._line.address} failed: {type(exc).__name__}: {exc}")
            error.__cause__ = exc
        with self._condition:
            stream.error, stream.is_over = error, True
            self._condition.notify_all()
            goes_on = stream.ready is not None and self._stream is stream and not self._is_finished()
        if goes_on:
            stream.call.cancel()
            self._after(error)

    def _read_until_end(self, stream: _Stream) -> TransportError | None:
        stream.call.initial_metadata()
        with self._condition:
            stream.is_reached = True
            self._condition.notify_all()
        for data in stream.call:
            message = native.decode_server(data)
            if stream.ready is None:
                answer = greeting.read_ready(message)
                if isinstance(answer, greeting.Bye):
                    return self._gone(answer)
                self._restore(stream, answer)
            elif message.HasField("bye"):
                return self._gone(greeting.goodbye_of(message))
            else:
                self._take(message)
        return PeerGoneError(f"the policy server at {self._line.address} ended the session")

    def _gone(self, answer: greeting.Bye) -> TransportError:
        reason = f"the policy server at {self._line.address} ended the session: {answer.reason}"
        return ProtocolError(reason) if answer.is_final else PeerGoneError(reason)

    def _error_of(self, exc: grpc.RpcError | ValueError, stream: _Stream) -> TransportError:
        if isinstance(exc, grpc.RpcError):
            call: Any = exc
            if call.code() is grpc.StatusCode.UNIMPLEMENTED and stream.ready is None:
                return NotSpoken(f"the server at {self._line.address} does not speak our own protocol")
            if call.code() is grpc.StatusCode.CANCELLED and not stream.is_ending:
                return PeerGoneError(f"the policy server at {self._line.address} broke the connection off")
        return map_call_error(exc, self._line.address, "session")

    def _restore(self, stream: _Stream, ready: greeting.Ready) -> None:
        """The session begins or goes on: what the server has not got is sent again, unless something newer waits."""
        with self._condition:
            if not ready.resumed:
                self._received = 0
            lacks = self._unanswered is not None and (not ready.resumed or self._unanswered.number > ready.received)
            if lacks and self._waiting is None:
                self._waiting = self._unanswered
            if not ready.resumed:
                self._unanswered = None
            stream.ready = ready
            self._is_lost = False
            self._condition.notify_all()

    def _take(self, message: Any) -> None:
        assert self._spec is not None
        number, reply = replies.read_reply(message, self._spec, f"the policy server at {self._line.address}")
        with self._condition:
            if number <= self._received:
                return  # Sent again, since the server could not know that it had arrived.
            if number != self._received + 1:
                raise ProtocolError(f"the server sent reply {number} after {self._received}")
            self._received = number
            self._losses_without_answer = 0
            if self._unanswered is not None and self._unanswered.timestep <= (reply.timestep or 0):
                self._unanswered = None
            self._replies.append(reply)
            self._condition.notify_all()
            self._condition.wait_for(lambda: len(self._replies) < MAX_REPLIES or self._is_finished())

    # A session that is lost.

    def _after(self, error: TransportError | None) -> None:
        """The stream of a session that had begun is over."""
        if not isinstance(error, (PeerGoneError, TransportClosed)):
            self._end(error if isinstance(error, ProtocolError) else ProtocolError(str(error)))
            return
        with self._condition:
            self._is_lost = True
            self._losses_without_answer += self._unanswered is not None
            self._condition.notify_all()
        if self._losses_without_answer >= _MOST_LOSSES:
            why = f"was lost {_MOST_LOSSES} times in a row with an observation that it had to answer"
            self._end(PeerUnreachableError(f"{error}; the server {why}"))
            return
        self._reconnect(error)

    def _reconnect(self, lost: TransportError) -> None:
        wait_s = self._options.reconnect_timeout_s
        if wait_s == 0.0:  # At once: a try that a fast server answers in time would be one all the same.
            self._give_up(f"{lost}; the server did not come back within 0 s", lost)
            return
        try:
            self._open(time.monotonic() + wait_s, resumes=True)
        except PeerUnreachableError as exc:
            self._give_up(f"{lost}; the server did not come back within {wait_s:g} s", exc)
        except (TransportClosed, PeerGoneError, ProtocolError, TransportError) as exc:
            self._give_up(f"{lost}; the server came back without this session: {exc}", exc)
        else:
            self._owner.restart_deadline()

    def _give_up(self, why: str, cause: Exception) -> None:
        error = PeerUnreachableError(why)
        error.__cause__ = cause
        self._end(error)

    def _end(self, error: PeerGoneError | ProtocolError) -> None:
        with self._condition:
            self._over = self._over or error
            self._is_lost = False
            self._condition.notify_all()
