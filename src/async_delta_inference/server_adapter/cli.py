"""``async-delta-serve``: LeRobot's policies behind one transport or several."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from async_delta_inference import stages
from async_delta_inference.command_line import parse_arguments, run_command
from async_delta_inference.embedding import Parent
from async_delta_inference.errors import ConfigError, MissingExtraError
from async_delta_inference.flag_values import home_expanded
from async_delta_inference.stage_trace import write_trace
from async_delta_inference.transport.link_options import GrpcOptions, LinkOptions, TlsOptions
from async_delta_inference.transport.policy import Policy
from async_delta_inference.transport.registry import backend, known_schemes, split_uri
from async_delta_inference.transport.server import make_server

__all__ = ["ServeConfig", "main"]

_POLICY_HOSTS = ("lerobot", "policy_server")
_LONGEST_LINGER_S = 60.0
_ORPHAN_STOP_TIMEOUT_S = 1.0


@dataclass(kw_only=True)
class ServeConfig:
    """Flags of ``async-delta-serve``."""

    transport: str | None = None
    """Scheme to serve on, such as grpc or shm, or that of an installed plugin; several with commas; none: that of
    --server_address, which is grpc where it names no scheme."""
    server_address: str | None = None
    """Where to listen, such as 127.0.0.1:8080 (port 0: any free one) or shm://name; with commas, one per transport;
    none: 127.0.0.1:8080 for grpc, and the name async-delta for shm."""
    max_sessions: int = 64
    """Clients at the same time; a further one is refused."""
    max_batch: int = 1
    """Observations of different clients that the policy is given together, at most."""
    linger_s: float = 0.0
    """Seconds to wait for more of them once there is one."""
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    tls: TlsOptions = field(default_factory=TlsOptions)
    insecure: bool = False
    """Let other machines in over grpc with neither a token nor TLS."""
    policy_host: str = "lerobot"
    """What is asked for actions: lerobot (any policy of LeRobot's, as lerobot-eval asks it), or policy_server
    (LeRobot's PolicyServer as it is)."""
    trace: Path | None = None
    """Write where the time of every chunk goes to this file at the end, for https://ui.perfetto.dev."""

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ConfigError: One line that names the flag and the remedy.
        """
        if self.trace is not None:
            self.trace = home_expanded("trace", self.trace)
        for name in ("max_sessions", "max_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0.0 <= self.linger_s <= _LONGEST_LINGER_S:  # also what is not a number
            raise ConfigError(f"--linger_s must be from 0 to {_LONGEST_LINGER_S:g} seconds, got {self.linger_s}")
        if self.policy_host not in _POLICY_HOSTS:
            raise ConfigError(f"unknown --policy_host={self.policy_host}; known are: {', '.join(_POLICY_HOSTS)}")
        schemes, known = self._schemes(), known_schemes()
        for scheme in schemes:
            if scheme not in known:
                raise ConfigError(f"unknown --transport={scheme}; known are: {', '.join(known)}")
        if self.server_address is not None and len(self.server_address.split(",")) != len(schemes):
            raise ConfigError(
                f"--transport names {len(schemes)} transports, --server_address "
                f"{len(self.server_address.split(','))} addresses"
            )

    def uris(self, *, embedded: bool = False) -> list[str]:
        """Where to serve. Loads the transports.

        Args:
            embedded: Whether the server is somebody's own, and so takes an address that nobody else has.

        Raises:
            ConfigError: An address does not fit its transport, or no other process could reach it there.
            MissingExtraError: A transport's packages are not installed.
        """
        schemes = self._schemes()
        addresses: list[str | None] = [None] * len(schemes)
        if self.server_address is not None:
            addresses = [address.strip() for address in self.server_address.split(",")]
        return [_uri(scheme, address, embedded) for scheme, address in zip(schemes, addresses, strict=True)]

    def _schemes(self) -> list[str]:
        if self.transport is not None:
            return [scheme.strip() for scheme in self.transport.split(",")]
        addresses = (self.server_address or "").split(",")
        return [address.partition("://")[0].strip() if "://" in address else "grpc" for address in addresses]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 for a user's mistake, 1 for another error, 130 when interrupted.
    """
    return run_command(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> int:
    parent = Parent.from_environment()
    parent.ends_us_at_once()  # Before anything is loaded that takes seconds.
    return _serve(parse_arguments(ServeConfig, arguments, "async-delta-serve"), parent)


def _serve(config: ServeConfig, parent: Parent) -> int:
    uris = config.uris(embedded=parent.ends_us)
    with ExitStack() as stack:
        if config.trace is not None:
            _write_trace(config.trace)  # Empty: what cannot be written is better known now than at the end.
            stages.start()
            stack.callback(_write_trace, config.trace)
        server = make_server(
            _make_policy(config.policy_host),
            *uris,
            max_sessions=config.max_sessions,
            max_batch=config.max_batch,
            linger_s=config.linger_s,
            link=LinkOptions(config.grpc, config.tls, config.insecure),
        )
        # An inference for a client that is gone is nobody's.
        stop = partial(server.stop, _ORPHAN_STOP_TIMEOUT_S) if parent.ends_us else server.stop
        stack.callback(stop)  # First: a signal may come as soon as it has started.
        parent.ends_us_in_order()
        server.start()
        for uri in server.uris:
            print(f"serving {uri}", flush=True)
        parent.announce(server.uris)
        _wait(parent.ends_us)
    return 0


def _make_policy(policy_host: str) -> Policy:
    try:
        # Imported here: it loads torch and lerobot, half a minute on a slow machine, which --help must not wait for.
        if policy_host == "policy_server":
            from async_delta_inference.server_adapter.policy_server import PolicyServerPolicy

            return PolicyServerPolicy()
        from async_delta_inference.server_adapter.lerobot import LeRobotPolicy

        return LeRobotPolicy()
    except MissingExtraError:
        raise
    except ModuleNotFoundError as exc:
        if policy_host == "policy_server" and (exc.name or "").startswith("lerobot."):
            raise ConfigError(
                f"this LeRobot has no PolicyServer ({exc.name} is not there): leave --policy_host=policy_server out"
            ) from exc
        raise MissingExtraError("lerobot", "async-delta-serve") from exc
    except ImportError as exc:  # LeRobot's own word for what its extras lack.
        raise ConfigError(f"LeRobot cannot be loaded: {exc}") from exc


def _uri(scheme: str, address: str | None, embedded: bool) -> str:
    listener = backend(scheme).listener
    if listener.reach == "process":
        raise ConfigError(f"--transport={scheme} reaches nobody: its clients are in the server's own process")
    if address is None:
        address = listener.unused_address() if embedded else listener.default_address()
    elif "://" in address:
        given, address = split_uri(address)
        if given != scheme:
            raise ConfigError(f"--transport={scheme} cannot serve on {given}://{address}")
    return f"{scheme}://{address}"


def _write_trace(path: Path) -> None:
    try:
        write_trace(path, stages.take())
    except OSError as exc:
        raise ConfigError(f"--trace={path} cannot be written: {exc}") from exc


def _wait(until_stdin_ends: bool) -> None:
    """Until a signal, or until standard input ends."""
    while True:
        select.select([sys.stdin] if until_stdin_ends else [], [], [])
        if until_stdin_ends and not os.read(sys.stdin.fileno(), 4096):
            return
