"""`EmbeddedServer`: a policy server of one's own in a child process, that ends with its client whatever happens."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.run.child_process import can_fork, start_child
from async_delta_inference.embedding import ANNOUNCE_FD, EXIT_WITH_STDIN
from async_delta_inference.errors import PeerUnreachableError
from async_delta_inference.transport.registry import backend, split_uri

__all__ = ["MODULE", "EmbeddedServer", "flags_for_many"]

MODULE = "async_delta_inference.server_adapter"
"""The program of a server."""
_EXIT_TIMEOUT_S = 5.0


def flags_for_many(config: SimClientConfig) -> list[str]:
    """What a server is told that serves all simulators of a run, or of several."""
    flags = [f"--max_batch={config.max_batch}"]
    if (config.n_envs or "1").isdecimal():
        flags.append(f"--max_sessions={max(64, 2 * int(config.n_envs or 1))}")
    return flags


class EmbeddedServer:
    """``python -m async_delta_inference.server_adapter`` as a child.

    Started by the constructor, so that it loads while the caller builds its simulator; `wait_until_ready` waits for it.
    The child's standard input is a pipe that nobody writes to: its end of file, which the kernel sends even when this
    process is killed, ends the child: at once while it loads, in order once it serves.

    Args:
        transport: Scheme to serve on, several with commas; the child takes an address that nobody else has.
        log_path: The file that takes what the server prints.
        trace: The file that takes its stages when it ends; None: they are not recorded.
        policy_host: What it asks for actions, as its flag of that name.
        flags: Further ones, such as ``--max_batch=8``.
        module: The program, which takes the flags of ``async-delta-serve``.
        variables: Of its environment, besides this process's.
    """

    def __init__(
        self,
        transport: str,
        log_path: Path,
        trace: Path | None = None,
        *,
        policy_host: str = "lerobot",
        flags: Sequence[str] = (),
        module: str = MODULE,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        self._announcement, write_end = os.pipe()
        arguments = [
            f"--transport={transport}",
            f"--policy_host={policy_host}",
            *([] if trace is None else [f"--trace={trace}"]),
            *flags,
        ]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **(variables or {})}
        environment |= {ANNOUNCE_FD: str(write_end), EXIT_WITH_STDIN: "1"}
        fork = can_fork("lerobot.processor")
        try:
            self._process = start_child(module, arguments, environment, log_path, write_end, fork=fork)
        finally:
            os.close(write_end)
        self._uris: tuple[str, ...] = ()
        self._stopped = False

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it died, or was stopped."""
        return self._process.wait(0.0)

    @property
    def uris(self) -> tuple[str, ...]:
        """All that it listens on, once it is ready."""
        return self._uris

    def fileno(self) -> int:
        """Readable once it is ready, or has ended before: for multiprocessing's ``wait``."""
        return self._announcement

    def wait_until_ready(self, timeout_s: float) -> str:
        """The URI that the server listens on, once it does; the first one of several.

        Raises:
            PeerUnreachableError: It ended, or was not ready in time; the message quotes its log.
        """
        deadline_s = time.monotonic() + timeout_s
        announced = b""
        while not self._uris:
            remaining_s = deadline_s - time.monotonic()
            ready, _, _ = select.select([self._announcement], [], [], max(0.0, remaining_s))
            if not ready:
                raise PeerUnreachableError(
                    f"the embedded server was not ready within {timeout_s:g} s{self._quote_log()}"
                )
            part = os.read(self._announcement, 4096)
            announced += part
            if announced.endswith(b"\n"):
                self._uris = tuple(announced.decode().split())
            elif not part:
                raise PeerUnreachableError(f"the embedded server ended before it was ready{self._quote_log()}")
        return self._uris[0]

    def begin_to_stop(self) -> None:
        """Ask the child to end; idempotent."""
        if not self._stopped:
            self._stopped = True
            self._process.close_stdin()
            os.close(self._announcement)

    def stop(self) -> None:
        """End the child and wait for it; idempotent."""
        self.begin_to_stop()
        # The end of its standard input is enough, unless it hangs; it wakes a child that was stopped, too.
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                self._process.send_signal(number)
            if self._process.wait(_EXIT_TIMEOUT_S):
                break
        self._remove_what_is_left()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _remove_what_is_left(self) -> None:
        """A child that was killed while it served, by us or by anybody, could not tidy up."""
        for uri in self._uris:
            scheme, address = split_uri(uri)
            backend(scheme).listener.remove_what_is_left(address)

    def _quote_log(self) -> str:
        try:
            text = self.log_path.read_text(errors="replace")
        except OSError as exc:
            return f", and its log {self.log_path} cannot be read: {exc.strerror}"
        lines = [line for line in text.splitlines() if line.strip()]
        return f": {lines[-1].strip()} (see {self.log_path})" if lines else f" (see {self.log_path})"
