"""`GrpcTransport`: two threads around an `Exchange`, so that the control loop never waits for the network."""

from __future__ import annotations

import threading
import time
from collections import deque

import grpc

from async_delta_inference import stages
from async_delta_inference.errors import (
    PeerGoneError,
    PeerUnreachableError,
    PolicyError,
    ProtocolError,
    SetupRefusedError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.addresses import check_host_and_port
from async_delta_inference.transport.client import Transport, TransportOptions
from async_delta_inference.transport.grpc.exchange import Exchange, Outgoing
from async_delta_inference.transport.grpc.link import PolicyServerLink, map_rpc_error
from async_delta_inference.transport.grpc.wire import decode_actions, encode_observation, encode_policy
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec

__all__ = ["GrpcTransport"]

_CLOSE_TIMEOUT_S = 5.0

_RETRY_S = 0.1
"""Between two calls that a server breaks off; gRPC itself backs off from one that is not there."""


class GrpcTransport(Transport):
    """``grpc://host:port`` (or ``grpc://unix:/path``) to an unmodified ``lerobot.async_inference.policy_server``.

    A server that restarts is waited for and set up again; the newest unanswered observation is sent again. An
    observation's ``episode`` is not on this wire: PolicyServer has no word for it.

    Raises:
        ConfigError: The address is neither.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        check_host_and_port(address, smallest_port=1)
        super().__init__(address, options)
        self._condition = threading.Condition()
        self._exchange = Exchange()
        self._replies: deque[ActionChunk | TransportError] = deque()
        # Sessions with the server that were lost, and of those, what was set up again.
        self._lost = 0
        self._restored = 0
        self._over: TransportError | None = None
        self._link: PolicyServerLink | None = None
        self._instructions = b""
        self._threads: list[threading.Thread] = []

    def _connect(self, policy: SessionSpec) -> None:
        self._instructions = encode_policy(policy)
        self._link = PolicyServerLink(self.address, self.options, self._on_disconnect)
        self._reach(self._link, time.monotonic() + self.options.connect_timeout_s)
        self._set_up(self._link)
        for work in (self._send_loop, self._receive_loop):
            thread = threading.Thread(target=work, name=f"grpc-transport{work.__name__}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _send(self, observation: Observation) -> None:
        assert self._policy is not None
        data = encode_observation(observation, self._policy.features)
        if stages.recorder is not None:
            stages.recorder.mark(stages.ENCODE, observation.timestep)
        with self._condition:
            if self._over is not None:
                raise self._over
            self._exchange.post(Outgoing(observation.timestep, observation.must_go, data))
            self._condition.notify_all()

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        with self._condition:
            self._condition.wait_for(lambda: self._replies or self._over or self._closed.is_set(), timeout_s)
            if self._closed.is_set():
                return None
            if not self._replies:
                if self._over is not None:
                    raise self._over
                return None
            reply = self._replies.popleft()
        if isinstance(reply, TransportError):
            raise reply
        return reply

    def _close(self) -> None:
        with self._condition:
            self._condition.notify_all()
        if self._link is not None:
            self._link.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(_CLOSE_TIMEOUT_S)

    @property
    def _disconnected(self) -> bool:
        """Whether the server that was set up is gone; with the condition held."""
        return self._lost != self._restored

    # The two threads.

    def _send_loop(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._finished() or (self._exchange.has_waiting and not self._disconnected)
                )
                if self._finished():
                    return
                outgoing = self._exchange.begin_send()
            assert self._link is not None
            try:
                self._link.send_observation(outgoing.data)
            except (grpc.RpcError, ValueError) as exc:  # ValueError: gRPC's word for a call on a closed channel
                self._call_failed(exc, outgoing)
            else:
                with self._condition:
                    self._exchange.acknowledge(outgoing)
                    self._condition.notify_all()

    def _receive_loop(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(
                    lambda: self._finished() or self._disconnected or self._exchange.newest_acknowledged() is not None
                )
                if self._finished():
                    return
                due = None if self._disconnected else self._exchange.newest_acknowledged()
            if due is None:
                self._reconnect()
            else:
                self._get_actions(due)

    def _get_actions(self, due: Outgoing) -> None:
        assert self._link is not None
        try:
            data = self._link.get_actions()
        except (grpc.RpcError, ValueError) as exc:
            self._call_failed(exc, due)
            return
        if not data:
            self._answered_empty(due)
            return
        try:
            reply: ActionChunk | TransportError = decode_actions(data)
        except ProtocolError as exc:
            self._end(exc)
            return
        except PolicyError as exc:
            reply = exc
        with self._condition:
            self._exchange.answered(reply.timestep if isinstance(reply, ActionChunk) else due.timestep)
            self._replies.append(reply)
            self._condition.notify_all()

    def _answered_empty(self, due: Outgoing) -> None:
        with self._condition:
            # A server that was restarted without our noticing has no policy and says nothing either.
            if not self._disconnected and self._exchange.answered_empty(due):
                message = (
                    f"the policy server at {self.address} gave no actions for timestep {due.timestep}: its inference "
                    "failed (its log says why), or another client reset it"
                )
                self._replies.append(PolicyError(message, due.timestep))
                self._condition.notify_all()

    def _call_failed(self, exc: grpc.RpcError | ValueError, outgoing: Outgoing) -> None:
        error = self._map(exc, "exchange")
        with self._condition:
            if isinstance(error, PeerGoneError):
                self._lost += not self._disconnected
            elif isinstance(error, (TransportTimeout, PolicyError)):
                self._exchange.drop(outgoing)
                self._replies.append(error)
            elif not (isinstance(error, TransportClosed) and self._closed.is_set()):
                self._over = self._over or error
            self._condition.notify_all()

    # Reaching the server, at first and again.

    def _on_disconnect(self) -> None:
        with self._condition:
            self._lost += 1
            self._condition.notify_all()

    def _reconnect(self) -> None:
        """Reach the server again and set it up, as often as it goes away meanwhile; nothing is sent until then."""
        assert self._link is not None
        deadline_s = time.monotonic() + self.options.reconnect_timeout_s
        while not self._finished():
            try:
                self._reach(self._link, deadline_s)
                with self._condition:
                    lost = self._lost
                self._set_up(self._link)
            except PeerUnreachableError:
                waited = f"{self.options.reconnect_timeout_s:g} s"
                self._end(
                    PeerUnreachableError(
                        f"the policy server at {self.address} went away and did not come back within {waited}"
                    )
                )
            except PeerGoneError:
                continue  # It went away again while loading: the deadline bounds this.
            except TransportError as exc:
                self._end(exc)
            else:
                with self._condition:
                    if self._lost != lost:
                        continue
                    self._restored = lost
                    self._exchange.restart()
                    self._condition.notify_all()
                return

    def _reach(self, link: PolicyServerLink, deadline_s: float) -> None:
        """Have a server answer ``Ready``; one that goes away meanwhile may come back.

        Raises:
            PeerUnreachableError: None did until ``deadline_s``, of the monotonic clock.
            TransportError: Something answered that is no PolicyServer.
        """
        started_s = time.monotonic()
        while True:
            remaining_s = deadline_s - time.monotonic()
            try:
                if remaining_s > 0:
                    link.ready(remaining_s)
                    return
                error: TransportError = TransportTimeout("no time is left")
            except (grpc.RpcError, ValueError) as exc:
                error = self._map(exc, "setup")
            if isinstance(error, TransportTimeout):
                raise PeerUnreachableError(
                    f"no policy server answers at {self.address} within {deadline_s - started_s:.1f} s: is it running "
                    f"there? Start one with: async-delta-serve --transport=grpc --server_address={self.address}"
                ) from error
            if not isinstance(error, PeerGoneError):
                raise error
            self._closed.wait(_RETRY_S)

    def _set_up(self, link: PolicyServerLink) -> None:
        try:
            link.set_up_policy(self._instructions)
        except (grpc.RpcError, ValueError) as exc:
            error = self._map(exc, "setup")
            if isinstance(error, TransportTimeout):
                raise TransportTimeout(
                    f"the policy server at {self.address} did not load the policy within "
                    f"{self.options.setup_timeout_s:g} s"
                ) from exc
            if isinstance(error, SetupRefusedError):
                assert self._policy is not None
                wanted = f"{self._policy.policy_type} from {self._policy.pretrained_name_or_path}"
                raise SetupRefusedError(f"{error} (asked for was {wanted})") from exc
            raise error from exc

    def _map(self, exc: grpc.RpcError | ValueError, during: str) -> TransportError:
        if isinstance(exc, grpc.RpcError):
            return map_rpc_error(exc, self.address, during)
        return TransportClosed(f"the channel to {self.address} is closed: {exc}")

    def _end(self, error: TransportError) -> None:
        with self._condition:
            self._over = self._over or error
            self._condition.notify_all()

    def _finished(self) -> bool:
        return self._over is not None or self._closed.is_set()
