"""`InprocTransport`: the client half of ``inproc://name``."""

from __future__ import annotations

import time

from async_delta_inference import stages
from async_delta_inference.errors import PolicyError, TransportClosed, TransportTimeout
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.inproc.listener import InprocListener, find_listener
from async_delta_inference.transport.mailbox import Filtered, MailboxSession
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec

__all__ = ["InprocTransport"]


class InprocTransport(Transport):
    """``inproc://name``: a server in this process.

    An observation of the caller's own is copied once, since the caller may use its arrays again; a loaned one is handed
    over as it is. A chunk is copied twice: into bytes, since the policy may use its array again, and from those into
    memory that the client may write to.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        super().__init__(address, options)
        self._listener: InprocListener | None = None
        self._session: MailboxSession | None = None

    def _connect(self, spec: SessionSpec) -> str:
        self._listener = find_listener(self.address, self.options.connect_timeout_s)
        self._session = session = self._listener.admit(spec)
        needs = session.wait_until_open(self.options.setup_timeout_s)
        if self._closed.is_set():
            raise TransportClosed("the transport was closed while it connected")
        if needs is None:
            raise TransportTimeout(
                f"the server at inproc://{self.address} did not load the policy within "
                f"{self.options.setup_timeout_s:g} s"
            )
        self._n_obs_steps, self._prefix, self._computation = needs.n_obs_steps, needs.prefix, needs.computation
        return needs.description

    def _send(self, observation: Observation) -> None:
        assert self._session is not None
        sent = observation.copy() if observation.loan is None else _handed_over(observation)
        if stages.recorder is not None:
            stages.recorder.mark(stages.ENCODE, observation.timestep)
        sent.make_read_only()
        self._session.post(sent)

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        assert self._session is not None
        until_s = time.monotonic() + timeout_s
        while not self._closed.is_set():
            reply = self._session.next_reply(timeout_s)
            if isinstance(reply, PolicyError):
                raise reply
            if not isinstance(reply, Filtered):
                return reply
            self._note_answer(reply.timestep)
            timeout_s = until_s - time.monotonic()
        return None

    def _close(self) -> None:
        if self._session is not None and self._listener is not None:
            self._session.end("the client closed it")
            self._listener.host.leave(self._session)


def _handed_over(observation: Observation) -> Observation:
    """Another observation with the same arrays: the caller keeps the first, and may change its scalars."""
    return Observation(
        images=dict(observation.images),
        state=observation.state,
        timestep=observation.timestep,
        task=observation.task,
        must_go=observation.must_go,
        episode=observation.episode,
        timestamp_s=observation.timestamp_s,
        history=observation.history,
        inference_delay=observation.inference_delay,
        # The client's own, even in a loan.
        prefix=None if observation.prefix is None else observation.prefix.copy(),
    )
