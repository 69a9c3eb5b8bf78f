"""`ShmTransport`: the client half of a shared-memory session."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from posix_ipc import BusyError, SignalError
from posix_ipc import Error as SemaphoreError

from async_delta_inference import stages
from async_delta_inference.errors import PeerGoneError, PolicyError, ProtocolError, TransportClosed, TransportError
from async_delta_inference.transport.client import Transport
from async_delta_inference.transport.deadlines import TransportOptions
from async_delta_inference.transport.messages import ActionChunk, Observation, PastObservation, SessionSpec
from async_delta_inference.transport.shm.client.attachment import (
    Attachment,
    open_connection,
    shake_hands,
    tidy_after,
)
from async_delta_inference.transport.shm.shared.layout import CHUNK_KIND, DELAY_SHIFT, ERROR_KIND, MUST_GO_FLAG
from async_delta_inference.transport.shm.shared.rendezvous import socket_path
from async_delta_inference.transport.shm.shared.segment import Segment

__all__ = ["ShmTransport"]

_LEAVE_TIMEOUT_S = 1.0
_FLOAT32 = np.dtype(np.float32)


class ShmTransport(Transport):
    """``shm://name``: a server on the same host, through shared memory.

    A server that went away is not waited for: `PeerGoneError` comes at once, and a new transport connects to its
    successor. ``reconnect_timeout_s`` is not used; ``connect_timeout_s`` includes the wait for a server that starts.

    A forked child gets a closed copy. An exception that a signal's handler raises ends a wait if it is a
    KeyboardInterrupt; posix_ipc loses others.
    """

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        super().__init__(address, options)
        self._path: Path | None = None
        self._hang_up: Callable[[], None] | None = None
        self._attached = False
        # Whether a thread is in `_send` or `_receive`. Two locks would cost a tenth of an exchange.
        self._sending = False
        self._receiving = False
        self._attachment: Attachment  # From here to the end of `_adopt`: there is no session before it.
        self._loan_slot = -1
        self._tokens_held = 0
        self._left_at_end: int | None = None

    # The session's beginning and end.

    def _connect(self, spec: SessionSpec) -> str:
        self._path = path = socket_path(self.address)
        connection = open_connection(path, self.options)
        self._hang_up = connection.shut_down
        try:
            if self._closed.is_set():  # By another thread, while there was nothing to hang up yet.
                raise TransportClosed("the transport was closed while it connected")
            segment, description, self._computation = shake_hands(connection, path, spec, self.options)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, PeerGoneError):
                tidy_after(path)
                if self._closed.is_set():
                    raise TransportClosed("the transport was closed while it connected") from exc
            raise
        attachment = Attachment(connection, segment, f"the policy server at shm://{self.address}")
        self._adopt(attachment, segment)
        self._attached = True
        # Frees what a transport that is dropped without close() holds. Not at exit: a daemon thread may be waiting
        # then, and the system frees everything anyway.
        weakref.finalize(self, attachment.dispose).atexit = False
        _open_transports.add(self)
        return description

    def _adopt(self, attachment: Attachment, segment: Segment) -> None:
        """Take what a message needs out of its places, so that its path has no detours."""
        self._attachment = attachment
        self._writer = segment.observation_writer()
        self._reader = segment.action_reader()
        self._actions_ready = segment.actions_ready
        self._ring, self._advice = segment.ring, segment.advice
        self._action_bytes = segment.action_bytes
        self._action_slots = len(segment.action_bytes)
        self._row_bytes = 4 * segment.layout.chunk_shape[1]
        self._tasks = segment.tasks
        self._n_obs_steps = segment.layout.n_obs_steps
        self._prefix, self._prefixes = segment.layout.prefix, segment.prefixes
        self._slots = [(o.state, tuple(o.images.items())) for o in segment.observations]
        self._histories = [o.history for o in segment.observations]
        self._task, self._task_number, self._task_bytes = "", 0, 0
        self._slot_task_numbers = [0] * len(self._slots)

    def _close(self) -> None:
        if not self._attached:
            if self._hang_up is not None:
                self._hang_up()
            return
        attachment = self._attachment
        lost = attachment.is_lost()
        attachment.end_session()
        # Closing a semaphore that a thread is waiting on is undefined. Whoever does not leave in time is this very
        # thread, interrupted by a signal whose handler closes; then the finalizer closes it later.
        deadline_s = time.monotonic() + _LEAVE_TIMEOUT_S
        while (self._sending or self._receiving) and time.monotonic() < deadline_s:
            time.sleep(0.001)
        if not (self._sending or self._receiving):
            attachment.dispose()
            # Whoever keeps a closed transport, in an exception's traceback say, must not keep its memory.
            del (
                self._writer,
                self._reader,
                self._slots,
                self._histories,
                self._prefixes,
                self._tasks,
                self._action_bytes,
                self._actions_ready,
                self._ring,
                self._advice,
            )
        if lost and self._path is not None:
            tidy_after(self._path)

    def _abandon(self) -> None:
        """In a forked child: this copy is closed, and the parent's session is as it was."""
        self._usable = False
        # New ones: a thread that is not here may have held the old ones at the moment of the fork.
        self._closed = threading.Event()
        self._closed.set()
        self._close_lock = threading.Lock()
        if self._loan is not None:
            self._retire_loan()
        if self._attached:
            self._attachment.abandon()

    # Observations.

    def _send(self, observation: Observation) -> None:
        self._sending = True
        try:
            if self._attachment.end is not None:
                self._raise_end()
            if observation.loan is None:
                slot = self._writer.claim()
                state, targets = self._slots[slot]
                state[...] = observation.state
                images = observation.images
                for name, target in targets:
                    target[...] = images[name]
                if observation.history:
                    _copy_history(observation.history, self._histories[slot])
            else:
                slot, self._loan_slot = self._loan_slot, -1
            if observation.prefix is not None:
                self._prefixes[slot].write(observation.prefix)
            if observation.task != self._task or self._slot_task_numbers[slot] != self._task_number:
                self._write_task(slot, observation.task)
            if stages.recorder is not None:
                stages.recorder.mark(stages.ENCODE, observation.timestep)
            self._writer.publish(
                slot,
                observation.timestep,
                observation.episode,
                observation.timestamp_s,
                self._task_number,
                self._task_bytes,
                (MUST_GO_FLAG if observation.must_go else 0)
                | (0 if observation.inference_delay is None else observation.inference_delay + 1 << DELAY_SHIFT),
            )
            if self._advice[0]:
                self._ring()
        except TransportError:
            raise
        except (OSError, SemaphoreError) as exc:
            raise _broken(exc) from exc
        except BaseException:
            self._remember_failure(_interrupted())
            raise
        finally:
            self._sending = False

    def _write_task(self, slot: int, task: str) -> None:
        """Put the task into the slot; the server reads it once per change of its number."""
        encoded = task.encode()
        if task != self._task:
            self._task, self._task_bytes = task, len(encoded)
            self._task_number = self._task_number % 0xFFFFFFFF + 1
        self._tasks[slot][: len(encoded)] = encoded
        self._slot_task_numbers[slot] = self._task_number

    def _lend(self, spec: SessionSpec) -> Observation:
        self._sending = True
        try:
            if self._attachment.end is not None:
                self._raise_end()
            self._loan_slot = slot = self._writer.claim()
        except TransportError:
            raise
        except (OSError, SemaphoreError) as exc:
            raise _broken(exc) from exc
        except BaseException:
            self._remember_failure(_interrupted())
            raise
        finally:
            self._sending = False
        # New objects each time: whoever still has those of the slot's last loan must not reach into this one.
        state, images = self._slots[slot]
        history = tuple(
            PastObservation({name: image.view() for name, image in past.images.items()}, past.state.view())
            for past in self._histories[slot]
        )
        return Observation({name: image.view() for name, image in images}, state.view(), history=history)

    def _take_back(self, observation: Observation) -> None:
        self._writer.unclaim(self._loan_slot)
        self._loan_slot = -1

    # Actions.

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        self._receiving = True
        try:
            # A poll looks first: that costs a twentieth of the exception that a vain attempt raises.
            if timeout_s > 0.0 or self._actions_ready.value:
                self._actions_ready.acquire(timeout_s)
                chunk = self._take() if self._attachment.end is None else self._keep_token()
                if chunk is not None:
                    return chunk
        except BusyError:
            timeout_s = 0.0
        except SignalError:
            pass  # A handler ran. How long this had waited is not known: it waits anew.
        except TransportError:
            raise
        except (OSError, SemaphoreError) as exc:
            raise _broken(exc) from exc
        finally:
            self._receiving = False
        if timeout_s > 0.0 or self._attachment.end is not None:
            return self._wait_until(time.monotonic() + timeout_s)
        return None

    def _wait_until(self, until_s: float) -> ActionChunk | None:
        """The next chunk until then, whatever signals and messages without actions come in between."""
        self._receiving = True
        try:
            while self._attachment.end is None and (left_s := until_s - time.monotonic()) > 0.0:
                try:
                    self._actions_ready.acquire(left_s)
                except (BusyError, SignalError):
                    continue
                chunk = self._take() if self._attachment.end is None else self._keep_token()
                if chunk is not None:
                    return chunk
            return None if self._attachment.end is None else self._receive_after_end()
        except TransportError:
            raise
        except (OSError, SemaphoreError) as exc:
            raise _broken(exc) from exc
        finally:
            self._receiving = False

    def _keep_token(self) -> ActionChunk | None:
        """The session ended before a token was acquired: it may be the watcher's, so it is only counted."""
        self._tokens_held += 1
        return None

    def _receive_after_end(self) -> ActionChunk | None:
        """What the server finished before it went away, then the reason of its going."""
        if self._closed.is_set():
            self._raise_end()  # Another thread closed the semaphores, too.
        if self._left_at_end is None:
            self._attachment.await_wake()
            # All tokens are there now, and one of them is the watcher's.
            self._left_at_end = self._actions_ready.value + self._tokens_held - 1
        while self._left_at_end > 0:
            self._left_at_end -= 1
            chunk = self._take()
            if chunk is not None:
                return chunk
        self._raise_end()

    def _take(self) -> ActionChunk | None:
        """The message whose token was acquired; None for one without actions.

        Raises:
            PolicyError: The policy raised.
            ProtocolError: It is not a message.
        """
        sequence, timestep, timestamp_s, published_ns, kind, rows, text_bytes = self._reader.take()
        self._writer.answered = sequence
        slot = sequence % self._action_slots
        if kind == CHUNK_KIND:
            shape = self._whole_chunk if rows == self._whole_chunk[0] else (rows, self._whole_chunk[1])
            memory = bytearray(self._action_bytes[slot][: rows * self._row_bytes])
            actions: NDArray[np.float32] = np.ndarray(shape, _FLOAT32, memory)
            return ActionChunk(actions, timestep, timestamp_s, published_ns, memory)
        if timestep > self._last_sent_timestep:
            raise ProtocolError(
                f"the server answers timestep {timestep}; the newest sent is {self._last_sent_timestep}"
            )
        if kind == ERROR_KIND:
            raise PolicyError(self._action_bytes[slot][:text_bytes].tobytes().decode("utf-8", "replace"), timestep)
        self._note_answer(timestep)
        return None

    def _raise_end(self) -> NoReturn:
        end = self._attachment.end
        if end is not None and not self._closed.is_set():
            # A copy: the traceback of what is raised holds this transport, and with it the mapped segment.
            raise type(end)(str(end))
        raise TransportClosed("the transport is closed")


def _copy_history(source: tuple[PastObservation, ...], target: tuple[PastObservation, ...]) -> None:
    for theirs, ours in zip(source, target, strict=True):
        ours.state[...] = theirs.state
        for name, image in ours.images.items():
            image[...] = theirs.images[name]


def _broken(exc: Exception) -> ProtocolError:
    # `TransportTimeout` and `PeerGoneError` are OSErrors, too: whoever catches those lets TransportErrors pass first.
    return ProtocolError(f"the session's semaphores are broken: {exc}")


def _interrupted() -> ProtocolError:
    # Between two of the ring's steps, perhaps: who owns which slot is not known any more.
    return ProtocolError("the session ended when something interrupted the sending of an observation")


_open_transports: weakref.WeakSet[ShmTransport] = weakref.WeakSet()


def _abandon_all() -> None:
    for transport in list(_open_transports):
        transport._abandon()


os.register_at_fork(after_in_child=_abandon_all)
