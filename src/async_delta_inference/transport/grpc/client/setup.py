"""Reaching a server and having it set up the policy: at first, and again when it was lost."""

from __future__ import annotations

import threading
import time

from async_delta_inference.errors import (
    PeerGoneError,
    PeerUnreachableError,
    SetupRefusedError,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.grpc.client.calls import CALL_ERRORS, PolicyServerCalls, map_call_error
from async_delta_inference.transport.grpc.wire import encode_policy
from async_delta_inference.transport.messages import SessionSpec

__all__ = ["SessionSetup"]

_RETRY_S = 0.1
"""Between two calls that a server breaks off; gRPC itself backs off from one that is not there."""


class SessionSetup:
    """What a server must be told before it can answer.

    Args:
        calls: To the server.
        spec: What to ask for.
        options: Deadlines.
        closed: Set when nobody wants it any more.
    """

    def __init__(
        self, calls: PolicyServerCalls, spec: SessionSpec, options: TransportOptions, closed: threading.Event
    ) -> None:
        self._calls = calls
        self._address = calls.address
        self._spec = spec
        self._instructions = encode_policy(spec)
        self._options = options
        self._closed = closed

    def reach(self, deadline_s: float) -> None:
        """Have a server answer ``Ready``; one that goes away meanwhile may come back.

        Raises:
            PeerUnreachableError: None did until ``deadline_s``, of the monotonic clock.
            TransportError: Something answered that is no PolicyServer.
        """
        started_s = time.monotonic()
        while True:
            error = self._try_ready(deadline_s - time.monotonic())
            if error is None:
                return
            if isinstance(error, TransportTimeout):
                raise PeerUnreachableError(
                    f"no policy server answers at {self._address} within {deadline_s - started_s:.1f} s: is it running "
                    f"there? Start one with: async-delta-serve --transport=grpc --server_address={self._address}"
                ) from error
            if not isinstance(error, PeerGoneError):
                raise error
            self._closed.wait(_RETRY_S)

    def _try_ready(self, remaining_s: float) -> TransportError | None:
        if remaining_s <= 0:
            return TransportTimeout("no time is left")
        try:
            self._calls.ready(remaining_s)
        except CALL_ERRORS as exc:
            return map_call_error(exc, self._address, "setup")
        return None

    def set_up(self) -> str | None:
        """Have the policy loaded.

        Returns:
            What the server says that it serves; None from LeRobot's server.

        Raises:
            TransportTimeout: It was not within ``setup_timeout_s``.
            SetupRefusedError: The server says why.
            TransportError: The server went away.
        """
        try:
            return self._calls.set_up_policy(self._instructions, self._spec.action_dim)
        except CALL_ERRORS as exc:
            error = map_call_error(exc, self._address, "setup")
            if isinstance(error, TransportTimeout):
                raise TransportTimeout(
                    f"the policy server at {self._address} did not load the policy within "
                    f"{self._options.setup_timeout_s:g} s"
                ) from exc
            if isinstance(error, SetupRefusedError):
                raise SetupRefusedError(f"{error} (asked for was {self._wanted})") from exc
            raise error from exc

    @property
    def _wanted(self) -> str:
        spec = self._spec
        if not spec.names_policy:
            return "whatever is served there"
        return f"{spec.policy_type} from {spec.pretrained_name_or_path}"
