"""What runs on the nodes: `WorkerActor`, `ServerActor`, and `find_missing`: whether a node has what they need.

Plain classes, which the package must have been installed for on every node. Their methods may be called at the same
time; each returns within a moment, but for those that load something.
"""

from __future__ import annotations

import os
import queue
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ray

from async_delta_inference.client.run.embedded_server import EmbeddedServer
from async_delta_inference.client.run.forking import import_main
from async_delta_inference.client.run.worker import WorkerSetup, live
from async_delta_inference.transport.registry import backend

__all__ = ["Need", "ServedAt", "ServerActor", "ServerSetup", "Surroundings", "Taken", "WorkerActor", "find_missing"]

_DEATH_LOOK_S = 0.2


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an actor must know of the program that started it before it can understand what it is told.

    Args:
        path: Where modules are.
        main: Of the program's own module, see `main_module`; empty: nothing needs it.
        variables: Of the environment.
    """

    path: tuple[str, ...]
    main: Mapping[str, str]
    variables: Mapping[str, str]

    def take_up(self, log: Path) -> None:
        """Make them this process's own, for its children, too.

        Args:
            log: Takes what this process prints, where its folder is on this node; else Ray's own logs have it.
        """
        os.environ.update(self.variables)
        sys.path += [folder for folder in self.path if folder not in sys.path]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, self.path))
        if log.parent.is_dir():
            with log.open("ab") as file:
                for descriptor in (1, 2):
                    os.dup2(file.fileno(), descriptor)
        if self.main:
            import_main(dict(self.main))


@dataclass(frozen=True, slots=True)
class Need:
    """A path, or a module, that every node must have.

    Args:
        why: The flag that names it.
        path: Where it is on the driver's node.
        module: The package's name, if it is one that is imported, wherever it lies.
    """

    why: str
    path: str
    module: str = ""


def find_missing(needs: Sequence[Need], path: Sequence[str]) -> list[Need]:
    """Those that this node has not got.

    Args:
        needs: To look for.
        path: Where modules are.
    """
    sys.path += [folder for folder in path if folder not in sys.path]
    return [need for need in needs if not (find_spec(need.module) if need.module else os.access(need.path, os.R_OK))]


@dataclass(frozen=True, slots=True)
class Taken:
    """What a worker has said.

    Args:
        node: Ray's name for where it is.
        messages: In order.
        ended: Why it has nothing more to say; empty: it goes on.
    """

    node: str
    messages: tuple[Any, ...]
    ended: str


class WorkerActor:
    """A worker in a thread of this process, since a simulator must stay within one; the methods carry its messages.

    Args:
        surroundings: Of the program that started it.
        log: For what it prints.
    """

    def __init__(self, surroundings: Surroundings, log: Path) -> None:
        surroundings.take_up(log)
        self._node = ray.get_runtime_context().get_node_id()
        self._said: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._told: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._ended = ""

    def begin(self, setup: WorkerSetup) -> None:
        """Start to build its environments."""
        threading.Thread(target=self._live, args=(setup,), daemon=True).start()

    def tell(self, command: Any) -> None:
        """Give it a command; None: it is to end."""
        self._told.put(command)

    def take(self, patience_s: float) -> Taken:
        """What it has said since; waits so long for it to say something."""
        messages = []
        try:
            messages.append(self._said.get(timeout=patience_s))
            while True:
                messages.append(self._said.get_nowait())
        except queue.Empty:
            pass
        if messages and messages[-1] is _NOTHING_MORE:
            return Taken(self._node, tuple(messages[:-1]), self._ended)
        return Taken(self._node, tuple(messages), "")

    # The worker's line.

    def send(self, obj: Any, /) -> None:
        """See `Line`."""
        self._said.put(obj)

    def recv(self) -> Any:
        """See `Line`."""
        return self._told.get()

    def _live(self, setup: WorkerSetup) -> None:
        self._ended = "it was not needed any more"
        try:
            live(self, setup)
        except EOFError:
            pass
        except BaseException as exc:  # noqa: BLE001 - the last resort of a thread that nobody else watches
            traceback.print_exc()
            self._ended = f"{type(exc).__name__}: {exc}"
        finally:
            self._said.put(_NOTHING_MORE)


_NOTHING_MORE = object()


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """What a server is told.

    Args:
        scheme: Spoken within the node.
        policy_host: See the flag.
        flags: Further ones.
        log: Takes what it prints, where its folder is on this node; else a file of the node's.
        module: The program.
    """

    scheme: str
    policy_host: str
    flags: tuple[str, ...]
    log: Path
    module: str


@dataclass(frozen=True, slots=True)
class ServedAt:
    """Where a server is reached.

    Args:
        node: Ray's name for where it is.
        within: The URI for those on its node.
        between: That for those on others.
    """

    node: str
    within: str
    between: str


class ServerActor:
    """A policy server in a child of this process, which ends with it.

    Args:
        surroundings: Of the program that started it.
        setup: What the server is told.
    """

    def __init__(self, surroundings: Surroundings, setup: ServerSetup) -> None:
        surroundings.take_up(setup.log)
        log, self._folder = setup.log, ""
        if not log.parent.is_dir():
            self._folder = tempfile.mkdtemp(prefix="adi-server-")
            log = Path(self._folder) / log.name
        self._node = ray.get_runtime_context().get_node_id()
        host = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == self._node)
        within = backend(setup.scheme).listener.unused_address()
        schemes, addresses = ["grpc"], [f"{host}:0"]
        if setup.scheme != "grpc":
            schemes, addresses = [setup.scheme, *schemes], [within, *addresses]
        self._server = EmbeddedServer(
            ",".join(schemes),
            log,
            policy_host=setup.policy_host,
            flags=[f"--server_address={','.join(addresses)}", *setup.flags],
            module=setup.module,
        )

    def wait_until_ready(self, timeout_s: float) -> ServedAt:
        """Where it is reached, once it is there.

        Raises:
            PeerUnreachableError: It ended, or was not ready in time; the message quotes its log.
        """
        self._server.wait_until_ready(timeout_s)
        uris = self._server.uris
        return ServedAt(self._node, uris[0], uris[-1])

    def watch(self, patience_s: float) -> bool:
        """Whether it has ended, at the latest after so many seconds."""
        waited = threading.Event()
        for _ in range(max(1, round(patience_s / _DEATH_LOOK_S))):
            if self._server.has_ended:
                return True
            waited.wait(_DEATH_LOOK_S)
        return False

    def stop(self) -> None:
        """End it, and leave nothing behind."""
        self._server.stop()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
