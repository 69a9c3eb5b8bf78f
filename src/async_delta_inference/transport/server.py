"""`serve`: a policy behind one URI or several; `Listener`: the server half of a transport."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import ClassVar, Literal, NoReturn, Self

from async_delta_inference.errors import ConfigError
from async_delta_inference.transport.host import STOP_TIMEOUT_S, SessionHost
from async_delta_inference.transport.link_options import LinkOptions
from async_delta_inference.transport.policy import Policy, PolicyFunction, as_policy

__all__ = ["Listener", "Reach", "Server", "serve"]

Reach = Literal["process", "host", "network"]


class Listener(ABC):
    """Lets clients of one transport meet a policy. The rules it must keep are tests: `transport.testing`.

    It gives every client a `ServedSession` of its own: `SessionHost.describe` and ``reserve`` when the client has said
    what it asks for, ``enter`` when its messages can come, ``leave`` when it is gone.

    Args:
        address: What follows ``scheme://`` in the URI.
        host: Where the sessions go.

    Raises:
        ConfigError: The address is none.
    """

    reach: ClassVar[Reach] = "network"
    """Whose clients can reach it: this process', this host's, or any. Who shares a host shares its files."""

    link: LinkOptions = LinkOptions()
    """Dialects, token and certificates; set before it starts."""

    def __init__(self, address: str, host: SessionHost) -> None:
        self.address = address
        self.host = host

    @classmethod
    @abstractmethod
    def default_address(cls) -> str:
        """Where ``async-delta-serve`` listens when it is not told."""

    @classmethod
    @abstractmethod
    def unused_address(cls) -> str:
        """An address for a server of one's own, which nobody else uses or can guess."""

    @classmethod  # noqa: B027 - most leave nothing
    def remove_what_is_left(cls, address: str) -> None:
        """Tidy up for a server at this address that was killed; nothing of a live one's is touched."""

    @property
    @abstractmethod
    def uri(self) -> str:
        """Where clients reach it; complete once it has started."""

    @abstractmethod
    def start(self) -> None:
        """Begin to listen, in threads of the listener's.

        Raises:
            ConfigError: The address is taken or cannot be used.
        """

    @abstractmethod
    def stop(self) -> None:
        """Stop listening and leave nothing behind; idempotent. The host has ended the sessions before."""


class Server:
    """What `serve` returns. Use it as a context manager, or call `stop`.

    Args:
        host: Of the policy.
        listeners: That have not started.
    """

    def __init__(self, host: SessionHost, listeners: tuple[Listener, ...]) -> None:
        self.host = host
        self.listeners = listeners
        self._stopped = threading.Event()

    @property
    def uris(self) -> tuple[str, ...]:
        """Where clients reach the policy, in the order that was asked for."""
        return tuple(listener.uri for listener in self.listeners)

    def start(self) -> None:
        """Begin to serve. On an error nothing is left.

        Raises:
            ConfigError: An address is taken or cannot be used.
        """
        with ExitStack() as stack:
            stack.callback(self.stop)
            for listener in self.listeners:
                listener.start()
            self.host.start()
            stack.pop_all()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End every session and leave nothing behind; idempotent.

        Args:
            timeout_s: How long to wait for an inference under way.
        """
        self._stopped.set()
        with ExitStack() as stack:
            for listener in self.listeners:
                stack.callback(listener.stop)
            stack.callback(self.host.stop, timeout_s)

    def wait(self) -> None:
        """Until `stop` is called from another thread, or SIGTERM; Ctrl-C raises `KeyboardInterrupt`, as anywhere."""
        with _sigterm_ends_it():
            self._stopped.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()


class _TerminatedError(BaseException):
    """SIGTERM came."""


@contextmanager
def _sigterm_ends_it() -> Iterator[None]:
    """Without a handler the process would end at once, and leave its sockets. A program's own handler is its affair."""
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except _TerminatedError:
        pass
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    # Raised, since no lock may be taken here: the thread that it interrupts may hold it.
    raise _TerminatedError


def serve(
    policy_or_function: Policy | PolicyFunction,
    *uris: str,
    max_sessions: int = 64,
    max_batch: int = 1,
    linger_s: float = 0.0,
    link: LinkOptions | None = None,
) -> Server:
    """Serve a policy, or a plain function from an observation to actions, and return at once.

    ::

        with serve(lambda observation: np.zeros((8, 2), np.float32), "shm://mine") as server:
            server.wait()

    Args:
        policy_or_function: A `Policy`, or a function from an `Observation` to actions (n, A) that become float32.
        uris: Where to listen, such as ``shm://mine`` and ``grpc://127.0.0.1:8080``; all of them share the policy.
        max_sessions: Clients at the same time; a further one is refused.
        max_batch: Requests of different sessions that the policy is given together, at most.
        linger_s: How long to wait for more of them once there is one.
        link: Dialects, token and certificates.

    Returns:
        A server that has started; stop it, or use it as a context manager.

    Raises:
        ConfigError: No URI, one of an unknown scheme, an address that cannot be used, or a number out of its range.
        MissingExtraError: A transport's packages are not installed.
    """
    server = make_server(
        policy_or_function, *uris, max_sessions=max_sessions, max_batch=max_batch, linger_s=linger_s, link=link
    )
    server.start()
    return server


def make_server(
    policy_or_function: Policy | PolicyFunction,
    *uris: str,
    max_sessions: int = 64,
    max_batch: int = 1,
    linger_s: float = 0.0,
    link: LinkOptions | None = None,
) -> Server:
    """As `serve`, but not started: for whoever must be able to stop it before it has."""
    from async_delta_inference.transport.registry import make_listener

    if not uris:
        raise ConfigError("name at least one URI to serve on, such as shm://mine")
    if max_sessions < 1 or max_batch < 1 or not 0.0 <= linger_s <= 60.0:
        raise ConfigError(
            f"max_sessions and max_batch must be at least 1, and linger_s from 0 to 60 seconds, got {max_sessions}, "
            f"{max_batch} and {linger_s}"
        )
    host = SessionHost(as_policy(policy_or_function), max_sessions=max_sessions, max_batch=max_batch, linger_s=linger_s)
    return Server(host, tuple(make_listener(uri, host, link) for uri in uris))
