"""The one error tree.

::

    AsyncDeltaError
    ├── ConfigError (ValueError)              a flag or argument of the user's that cannot work; names the remedy
    │   └── MissingExtraError (ImportError)   a package of an extra is not installed
    ├── FeatureMismatchError (ValueError)     environment and checkpoint disagree on cameras, state or action
    ├── EpisodeError (RuntimeError)           an environment failed in the middle of a run
    │   └── FrameError                        a frame of it is no picture; only a video can do without
    └── TransportError
        ├── local: the caller's side
        │   ├── TransportTimeout (TimeoutError)      a deadline passed
        │   ├── TransportClosed (ValueError)         used after close, or closed by another thread while waiting
        │   ├── InvalidMessageError (ValueError)     wrong shape, dtype or field of a message to be sent
        │   └── LoanError (RuntimeError)             a loaned observation used against the rules
        └── remote: the peer's side
            ├── PeerGoneError (ConnectionError)      the peer died or went away
            │   └── PeerUnreachableError             it was never there, or did not come back
            ├── ProtocolError (ValueError)           the peer sent what the protocol does not allow
            ├── SetupRefusedError (ValueError)       the server refused the policy, the version or the schema
            └── PolicyError (RuntimeError)           the policy raised on the server; the connection goes on

Every class is also the builtin that a caller would naturally catch. Backends map foreign exceptions in one place each,
with ``raise ... from``.
"""

from __future__ import annotations

__all__ = [
    "AsyncDeltaError",
    "ConfigError",
    "EpisodeError",
    "FeatureMismatchError",
    "FrameError",
    "InvalidMessageError",
    "LoanError",
    "MissingExtraError",
    "PeerGoneError",
    "PeerUnreachableError",
    "PolicyError",
    "ProtocolError",
    "SetupRefusedError",
    "TransportClosed",
    "TransportError",
    "TransportTimeout",
]


class AsyncDeltaError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(AsyncDeltaError, ValueError):
    """A flag or argument that cannot work. The message is one line and names the remedy."""


class MissingExtraError(ConfigError, ImportError):
    """A package of one of the extras is not installed.

    Args:
        extra: Name of the extra that brings it, as in ``pip install 'async-delta-inference[libero]'``.
        what: What was asked for and cannot be done without it.
    """

    def __init__(self, extra: str, what: str) -> None:
        super().__init__(f"{what} needs the extra '{extra}': pip install 'async-delta-inference[{extra}]'")


class FeatureMismatchError(AsyncDeltaError, ValueError):
    """The environment and the checkpoint disagree on cameras, state or action. The message names both sides."""


class EpisodeError(AsyncDeltaError, RuntimeError):
    """An environment failed in the middle of a run."""


class FrameError(EpisodeError):
    """An environment gave a frame that is no picture. An episode goes on without its video, not without its eyes."""


class TransportError(AsyncDeltaError):
    """Base of every error of a transport."""


class TransportTimeout(TransportError, TimeoutError):
    """A deadline passed before the peer answered."""


class TransportClosed(TransportError, ValueError):
    """The transport was used after close, or before connect, or was closed by another thread during a wait."""


class InvalidMessageError(TransportError, ValueError):
    """A message to be sent does not fit what was agreed at connect: wrong shape, dtype, name or value."""


class LoanError(TransportError, RuntimeError):
    """A loaned observation was used against the rules: sent twice, foreign, or a second loan while one is out."""


class PeerGoneError(TransportError, ConnectionError):
    """The peer died or went away in the middle of a session."""


class PeerUnreachableError(PeerGoneError):
    """Nobody answered at the address, or the peer did not come back within the retry window."""


class ProtocolError(TransportError, ValueError):
    """The peer sent something that the protocol does not allow. The session is over."""


class SetupRefusedError(TransportError, ValueError):
    """The server refused the policy type, the checkpoint, the protocol version or the observation schema."""


class PolicyError(TransportError, RuntimeError):
    """The policy raised on the server. The session goes on: the next observation may be answered.

    Args:
        message: What the server said.
        timestep: Of the observation that it failed on, or None when it is not known.
    """

    def __init__(self, message: str, timestep: int | None = None) -> None:
        super().__init__(message)
        self.timestep = timestep
