"""``async-delta-serve``: LeRobot's PolicyServer behind one transport or several."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from async_delta_inference import stages
from async_delta_inference.command_line import parse_arguments, run_command
from async_delta_inference.errors import ConfigError, MissingExtraError
from async_delta_inference.stage_trace import write_trace
from async_delta_inference.transport.client import LONGEST_TIMEOUT_S
from async_delta_inference.transport.registry import split_uri

__all__ = ["ServeConfig", "main"]

_DEFAULT_ADDRESS = {"grpc": "127.0.0.1:8080", "shm": "async-delta"}


class Service(Protocol):
    """A transport's server side."""

    uri: str

    def start(self) -> None:
        """Begin to serve."""

    def stop(self) -> None:
        """End; idempotent, and nothing before `start`."""


@dataclass(kw_only=True)
class ServeConfig:
    """Flags of ``async-delta-serve``."""

    transport: str = "grpc"
    """Scheme to serve on, or several with commas: grpc, shm."""
    server_address: str | None = None
    """Where to listen: 127.0.0.1:8080 (port 0: any free one) or shm://name; with commas, one per transport."""
    fps: int = 30
    """Control steps per second, for the timestamps of actions."""
    inference_latency: float = 0.0
    """Seconds that gRPC's GetActions lasts at least (upstream's default: 1/30)."""
    obs_queue_timeout: float = 2.0
    """Seconds that gRPC's GetActions waits for an observation."""
    announce_fd: int | None = None
    """File descriptor to write the URIs to once they are served, one line each."""
    trace: Path | None = None
    """Write where the time of every chunk goes to this file at the end, for https://ui.perfetto.dev."""
    exit_with_stdin: bool = False
    """End when standard input does: whoever holds its other end is gone."""

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ConfigError: One line that names the flag and the remedy.
        """
        if self.fps < 1:
            raise ConfigError(f"--fps must be at least 1, got {self.fps}")
        for name in ("inference_latency", "obs_queue_timeout"):
            if not 0 <= getattr(self, name) <= LONGEST_TIMEOUT_S:  # also what is not a number
                raise ConfigError(f"--{name} must not be negative, nor endless, got {getattr(self, name)}")
        if self.announce_fd is not None:
            try:
                os.fstat(self.announce_fd)
            except (OSError, OverflowError) as exc:
                raise ConfigError(f"--announce_fd={self.announce_fd} is not open") from exc
        self.listen_on()

    def listen_on(self) -> list[tuple[str, str]]:
        """(scheme, address) of each transport to serve on.

        Raises:
            ConfigError: An unknown scheme, or addresses that do not fit the transports.
        """
        schemes = [scheme.strip() for scheme in self.transport.split(",")]
        for scheme in schemes:
            if scheme not in _DEFAULT_ADDRESS:
                raise ConfigError(f"unknown --transport={scheme}; known are: {', '.join(_DEFAULT_ADDRESS)}")
        if self.server_address is None:
            return [(scheme, _DEFAULT_ADDRESS[scheme]) for scheme in schemes]
        addresses = [address.strip() for address in self.server_address.split(",")]
        if len(addresses) != len(schemes):
            raise ConfigError(
                f"--transport names {len(schemes)} transports, --server_address {len(addresses)} addresses"
            )
        return [_fit(scheme, address) for scheme, address in zip(schemes, addresses, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 for a user's mistake, 1 for another error, 130 when interrupted.
    """
    return run_command(lambda: _serve(parse_arguments(ServeConfig, arguments, "async-delta-serve")))


def _serve(config: ServeConfig) -> int:
    with ExitStack() as stack:
        if config.trace is not None:
            _write_trace(config.trace)  # Empty: what cannot be written is better known now than at the end.
            stages.start()
            stack.callback(_write_trace, config.trace)
        services = _make_services(config)
        for service in services:
            stack.callback(service.stop)  # First: a signal may come as soon as it has started.
            service.start()
        for service in services:
            print(f"serving {service.uri}", flush=True)
        _announce(config.announce_fd, [service.uri for service in services])
        _wait(config.exit_with_stdin)
    return 0


def _make_services(config: ServeConfig) -> list[Service]:
    try:
        return [_make_service(scheme, address, config) for scheme, address in config.listen_on()]
    except MissingExtraError:
        raise
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", "async-delta-serve") from exc
    except ImportError as exc:  # LeRobot's own word for what its extras lack.
        raise ConfigError(f"LeRobot's PolicyServer cannot be loaded: {exc}") from exc


def _make_service(scheme: str, address: str, config: ServeConfig) -> Service:
    # Imported here: they load torch and lerobot, half a minute on a slow machine, which --help must not wait for.
    if scheme == "grpc":
        from async_delta_inference.server_adapter.grpc_service import GrpcService
        from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
        from async_delta_inference.server_adapter.stage_probe import probe_stages

        module = load_policy_server_module()
        server_config = module.PolicyServerConfig(
            fps=config.fps,
            inference_latency=config.inference_latency,
            obs_queue_timeout=config.obs_queue_timeout,
        )
        policy_server = module.PolicyServer(server_config)
        if config.trace is not None:
            probe_stages(policy_server)
        return GrpcService(policy_server, address)
    from async_delta_inference.server_adapter.policy_host import PolicyHost
    from async_delta_inference.server_adapter.shm_service import ShmService

    return ShmService(PolicyHost(fps=config.fps), address)


def _fit(scheme: str, address: str) -> tuple[str, str]:
    if "://" not in address:
        return scheme, address
    given, rest = split_uri(address)
    if given != scheme:
        raise ConfigError(f"--transport={scheme} cannot serve on {address}")
    return scheme, rest


def _announce(announce_fd: int | None, uris: Sequence[str]) -> None:
    if announce_fd is None:
        return
    with os.fdopen(announce_fd, "w") as announcement:
        announcement.write("\n".join(uris) + "\n")


def _write_trace(path: Path) -> None:
    try:
        write_trace(path, stages.take())
    except OSError as exc:
        raise ConfigError(f"--trace={path} cannot be written: {exc}") from exc


def _wait(exit_with_stdin: bool) -> None:
    """Until a signal, or until standard input ends."""
    while True:
        select.select([sys.stdin] if exit_with_stdin else [], [], [])
        if exit_with_stdin and not os.read(sys.stdin.fileno(), 4096):
            return
