"""`NativeSession`: one client's session of our own service, which may outlive the stream that carries it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import grpc

from async_delta_inference.errors import PeerGoneError
from async_delta_inference.transport.grpc import greeting, native, replies
from async_delta_inference.transport.grpc.observations import Assembly
from async_delta_inference.transport.mailbox import MAX_REPLIES, MailboxSession
from async_delta_inference.transport.policy import PolicyNeeds

__all__ = ["NativeSession"]

_SENT_REPLIES = 2 * MAX_REPLIES
"""That are kept in case the stream broke before they arrived."""


class NativeSession(MailboxSession):
    """The observations and replies of one client.

    Args:
        hello: What the client asked for.
        needs: What the policy said of it.
        ring: Wakes the inference loop.
        context: Of the stream that carries it.
    """

    def __init__(
        self, hello: greeting.Hello, needs: PolicyNeeds, ring: Callable[[], None], context: grpc.ServicerContext
    ) -> None:
        super().__init__(hello.spec, f"the client at {context.peer()}", ring)
        self.hello = hello
        self.needs = needs
        self.is_at_fault = False
        """Whether it is over since the client sent what it may not."""
        self.received = 0
        """Number of the newest observation that arrived."""
        self._context: grpc.ServicerContext | None = context
        self._assembly = self._new_assembly()
        self._sent: deque[tuple[int, bytes]] = deque(maxlen=_SENT_REPLIES)
        self._to_repeat: deque[tuple[int, bytes]] = deque()
        self._number = 0
        self._timer: threading.Timer | None = None

    # The stream.

    def attach(self, hello: greeting.Hello, context: grpc.ServicerContext) -> bool:
        """Go on with the session on another stream; False when it cannot be."""
        with self._condition:
            oldest = self._sent[0][0] if self._sent else self._number + 1
            if self._end is not None or hello.spec != self.spec or not oldest - 1 <= hello.received <= self._number:
                return False
            if hello.image_encoding != self.hello.image_encoding:
                return False
            before, self._context = self._context, context
            self._cancel_timer()
            self._assembly = self._new_assembly()
            self._to_repeat = deque(item for item in self._sent if item[0] > hello.received)
            self._condition.notify_all()
        if before is not None:
            before.cancel()
        return True

    def detach(self, context: grpc.ServicerContext, wait_s: float, give_up: Callable[[], None]) -> None:
        """The stream broke. Unless another one carries the session already, wait for one, then give up."""
        with self._condition:
            if self._context is not context:
                return
            self._context = None
            self._condition.notify_all()
            if wait_s > 0 and self._end is None:
                self._timer = threading.Timer(wait_s, give_up)
                self._timer.daemon = True
                self._timer.start()
                return
        give_up()

    def is_carried_by(self, context: grpc.ServicerContext) -> bool:
        """Whether this stream is still the session's."""
        return self._context is context

    def has_left(self) -> bool:
        """See `ServedSession`: somebody else may have its seat while no stream carries it."""
        return self._context is None

    # What the stream brings and takes.

    def add(self, data: bytes, context: grpc.ServicerContext) -> bool:
        """A message of the client's; False when it says goodbye.

        Raises:
            ProtocolError: It is not what was agreed.
        """
        if not self.is_carried_by(context):
            return True
        whole = self._assembly.add_whole(data)
        if whole is None:
            message = native.decode_client(data)
            if message.HasField("goodbye"):
                return False
            whole = self._assembly.add(message)
        if whole is not None:
            self.received = whole.number
            with self._condition:
                while self._sent and self._sent[0][0] <= whole.received:
                    self._sent.popleft()
            self.post(whole.observation)
        return True

    def next_message(self, context: grpc.ServicerContext) -> bytes | None:
        """The next message for the client, for which this waits; None when this stream is not the session's any more.

        Raises:
            PeerGoneError: The session is over, and everything before that was taken.
        """
        with self._condition:
            self._condition.wait_for(
                lambda: self._replies or self._to_repeat or self._end is not None or self._context is not context
            )
            if self._context is not context:
                return None
            if self._to_repeat:
                return self._to_repeat.popleft()[1]
            reply = self.next_reply(0.0)
            assert reply is not None
            self._number += 1
            data = replies.encode_reply(self._number, reply)
            self._sent.append((self._number, data))
        return data

    def stop_waiting(self) -> None:
        """Do not wait for another stream any longer: the server stops."""
        with self._condition:
            self._cancel_timer()

    @property
    def end_reason(self) -> str | None:
        """Why it is over; None while it is not."""
        return self._end

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _new_assembly(self) -> Assembly:
        needs, spec = self.needs, self.spec
        return Assembly(spec.features, needs.n_obs_steps, self.hello.image_encoding, needs.prefix, spec.action_dim)


def goodbye(session: NativeSession, gone: PeerGoneError) -> bytes:
    """What the client is told at the end."""
    return greeting.bye(session.end_reason or str(gone), session.is_at_fault)
