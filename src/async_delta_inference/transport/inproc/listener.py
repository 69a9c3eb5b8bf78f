"""`InprocListener`: the server half of ``inproc://name``, and the names that are served in this process."""

from __future__ import annotations

import itertools
import threading
import time
from secrets import token_hex
from typing import ClassVar

from async_delta_inference.errors import ConfigError, PeerUnreachableError
from async_delta_inference.transport.mailbox import MailboxSession
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.server import Listener, Reach

__all__ = ["InprocListener", "find_listener"]

_served: dict[str, InprocListener] = {}
_changed = threading.Condition()


class InprocListener(Listener):
    """Serves whoever is in the same process."""

    reach: ClassVar[Reach] = "process"
    _numbers = itertools.count(1)

    @classmethod
    def default_address(cls) -> str:
        """See `Listener`."""
        return "async-delta"

    @classmethod
    def unused_address(cls) -> str:
        """See `Listener`."""
        return f"embedded-{token_hex(6)}"

    @property
    def uri(self) -> str:
        """See `Listener`."""
        return f"inproc://{self.address}"

    def start(self) -> None:
        """See `Listener`."""
        with _changed:
            if self.address in _served:
                raise ConfigError(f"{self.uri} is served already: stop that server, or take another name")
            _served[self.address] = self
            _changed.notify_all()

    def stop(self) -> None:
        """See `Listener`."""
        with _changed:
            if _served.get(self.address) is self:
                del _served[self.address]

    def admit(self, spec: SessionSpec) -> MailboxSession:
        """Make a session and give it a seat; it opens when the inference loop turns to it.

        Raises:
            SetupRefusedError: The policy will not serve it, or all seats are taken.
        """
        needs = self.host.describe(spec, carries_history=True, carries_prefix=True)
        session = MailboxSession(spec, f"session {next(self._numbers)} of this process", self.host.ring)
        self.host.reserve(session, needs)
        self.host.enter(session)
        return session


def find_listener(name: str, timeout_s: float) -> InprocListener:
    """The listener of that name, for whose start this waits.

    Raises:
        PeerUnreachableError: Nobody serves the name within ``timeout_s``.
    """
    deadline_s = time.monotonic() + timeout_s
    with _changed:
        _changed.wait_for(lambda: name in _served, max(0.0, deadline_s - time.monotonic()))
        if name in _served:
            return _served[name]
    raise PeerUnreachableError(
        f"nobody serves inproc://{name} in this process: call serve(policy, 'inproc://{name}') first"
    )
