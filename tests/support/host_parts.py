"""A `SessionHost` without a listener: the policies and sessions that its tests put together, and spoil."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from async_delta_inference.transport import (
    Answer,
    EpisodeStart,
    PolicyNeeds,
    PolicySession,
    Request,
    SessionHost,
    SessionSpec,
)
from async_delta_inference.transport.mailbox import MailboxSession, Reply
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
)

ACTIONS = np.arange(6, dtype=np.float32).reshape(2, 3)


class LoggedPolicy:
    """Writes down what is called and from which thread; a test puts another method in the place of one of these."""

    def __init__(self, **methods: Callable[..., object]) -> None:
        self.calls: list[str] = []
        self.threads: set[int] = set()
        self.methods = methods

    def called(self, name: str, *arguments: object) -> object:
        self.calls.append(name)
        if name != "describe":
            self.threads.add(threading.get_ident())
        return self.methods[name](*arguments) if name in self.methods else None

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        self.called("describe", spec)
        return PolicyNeeds("logged")

    def open(self, spec: SessionSpec) -> PolicySession:
        self.called("open", spec)
        return LoggedSession(self)

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        answers = self.called("infer", requests)
        return [ACTIONS] * len(requests) if answers is None else answers  # type: ignore[return-value]


class LoggedSession:
    def __init__(self, policy: LoggedPolicy) -> None:
        self._policy = policy

    def reset(self, episode: EpisodeStart) -> None:
        self._policy.called("reset", episode)

    def close(self) -> None:
        self._policy.called("close")


class BrokenSession(MailboxSession):
    """A session of which some methods raise, as one whose client breaks the protocol, or whose backend has a bug."""

    def __init__(self, host: SessionHost, *broken: str, error: type[Exception] = RuntimeError) -> None:
        super().__init__(CONTRACT_POLICY, "the broken one", host.ring)
        self.closings = 0
        self.break_down(*broken, error=error)

    def break_down(self, *broken: str, error: type[Exception] = RuntimeError) -> None:
        def fail(name: str, *_: object) -> None:
            raise error(f"{name} broke")

        for name in broken:
            setattr(self, name, partial(fail, name))

    def close(self) -> None:
        self.closings += 1
        super().close()


def enter(host: SessionHost, session: MailboxSession | None = None) -> MailboxSession:
    """A session as a listener brings it."""
    session = session or MailboxSession(CONTRACT_POLICY, f"client of {threading.get_ident()}", host.ring)
    host.reserve(session, host.describe(session.spec))
    host.enter(session)
    return session


def opened(host: SessionHost, session: MailboxSession | None = None) -> MailboxSession:
    session = enter(host, session)
    assert session.wait_until_open(WAIT_S) is not None
    return session


def ask(session: MailboxSession, timestep: int, **fields: int) -> Reply:
    session.post(contract_observation(timestep, **fields))
    reply = session.next_reply(WAIT_S)
    assert reply is not None, "no reply came"
    return reply


@contextmanager
def running(policy: LoggedPolicy | ScriptedPolicy, **options: int) -> Iterator[SessionHost]:
    host = SessionHost(policy, **options)
    host.start()
    try:
        yield host
    finally:
        host.stop()
        assert not host.is_running
