"""The messages of a session on the client's side: what a control loop pays for with every step.

The two processes empty each other's caches and branch predictors at every exchange, so that each operation costs three
to five times what it costs in a loop of its own. Hence the plain attributes, the few calls, and checks that look for
what is as it should be and ask what is wrong only then.
"""

from __future__ import annotations

import time
from typing import NoReturn

import numpy as np
from numpy import ndarray
from posix_ipc import BusyError, SignalError
from posix_ipc import Error as SemaphoreError

from async_delta_inference import stages
from async_delta_inference.errors import (
    InvalidMessageError,
    PeerGoneError,
    PolicyError,
    ProtocolError,
    TransportClosed,
    TransportError,
    TransportTimeout,
)
from async_delta_inference.transport.client import Transport, TransportOptions, check_finite
from async_delta_inference.transport.messages import ActionChunk, Observation, SessionSpec
from async_delta_inference.transport.shm.layout import CHUNK_KIND, ERROR_KIND
from async_delta_inference.transport.shm.link import Link

__all__ = ["ShmExchange"]

_SLICE_S = 1.0
"""Bound of one wait on a semaphore: its timeout follows the wall clock, which may be set back meanwhile."""

_COUNT_LIMIT = 2**63
_UINT8 = np.dtype(np.uint8)
_FLOAT32 = np.dtype(np.float32)


class ShmExchange(Transport):
    """Sends and receives over a `Link`, once `_adopt` has been called."""

    def __init__(self, address: str, options: TransportOptions | None = None) -> None:
        super().__init__(address, options)
        # Whether a thread is in `_send` or `_receive`. Two locks would cost a tenth of an exchange.
        self._sending = False
        self._receiving = False
        self._link: Link  # From here to the end of `_adopt`: there is no session before it.
        self._loan_slot = -1
        self._newest = -1
        self._waiting = False
        self._waiting_since_s: float | None = None
        self._tokens_held = 0
        self._slice_s = min(_SLICE_S, self.options.inference_timeout_s)
        self._left_at_end: int | None = None

    def _adopt(self, link: Link) -> None:
        """Take what a message needs out of the link, so that its path has no detours."""
        segment = link.segment
        self._link = link
        self._writer = segment.observation_writer()
        self._reader = segment.action_reader()
        self._actions_ready = segment.actions_ready
        self._actions, self._texts = segment.actions, segment.action_bytes
        self._tasks = segment.tasks
        self._slots = [(o.state, tuple(o.images.items())) for o in segment.observations]
        self._task, self._task_number, self._task_bytes = "", 0, 0
        self._slot_task_numbers = [0] * len(self._slots)
        self._chunk_rows = segment.layout.chunk_shape[0]
        self._state_shape = segment.layout.features.state_shape
        self._image_shapes = segment.layout.features.image_shapes

    # The two that a control loop calls for every message. What is as it should be passes here in one piece; whatever is
    # not goes the template's way, which looks again and says what is wrong.

    def send_observation(self, observation: Observation) -> None:
        """As in `Transport`."""
        timestep = observation.timestep
        if (
            self._usable
            and type(timestep) is type(observation.episode) is int
            and type(observation.timestamp_s) is float
            and self._last_sent_timestep <= timestep < _COUNT_LIMIT
            and 0 <= observation.episode < _COUNT_LIMIT
            and observation.task == self._task
            and (self._fits(observation) if observation.loan is None else self._is_intact(observation))
        ):
            try:
                self._send(observation)
            except (PeerGoneError, ProtocolError) as exc:
                self._remember_failure(exc)
                raise
            self._last_sent_timestep = timestep
            if observation.loan is not None:
                self._retire_loan()
            return
        super().send_observation(observation)

    def _fits(self, observation: Observation) -> bool:
        state, images = observation.state, observation.images
        if (
            type(state) is not ndarray
            or state.shape != self._state_shape
            or state.dtype is not _FLOAT32
            or len(images) != len(self._image_shapes)
        ):
            return False
        for name, shape in self._image_shapes:
            image = images.get(name)
            if type(image) is not ndarray or image.shape != shape or image.dtype is not _UINT8:
                return False
        return True

    def _is_intact(self, observation: Observation) -> bool:
        """Whether it is the current loan, with the arrays that were lent."""
        images, lent = observation.images, self._loan_images
        if observation is not self._loan or observation.state is not self._loan_state or len(images) != len(lent):
            return False
        for name in lent:  # noqa: SIM110 - a generator costs half a microsecond
            if images.get(name) is not lent[name]:
                return False
        return True

    def receive_actions(self, timeout_s: float) -> ActionChunk | None:
        """As in `Transport`."""
        if timeout_s > 0.0 and self._usable:
            self._receiving = True
            try:
                self._actions_ready.acquire(timeout_s if timeout_s < self._slice_s else self._slice_s)
                if self._link.end is None:
                    chunk = self._take()
                    if chunk is not None:
                        return chunk
                else:
                    self._tokens_held += 1
            except BusyError:
                waited_s = min(timeout_s, self._slice_s)
                timeout_s -= waited_s
                self._note_wait(waited_s)
            except SignalError:
                # A handler ran. How long this had waited is not known: wait anew below, with a deadline.
                return super().receive_actions(timeout_s)
            except ProtocolError as exc:
                self._remember_failure(exc)
                raise
            except PolicyError:
                raise
            except (OSError, SemaphoreError) as exc:
                self._remember_failure(broken := _broken(exc))
                raise broken from exc
            finally:
                self._receiving = False
        return super().receive_actions(timeout_s)

    # Observations.

    def _send(self, observation: Observation) -> None:
        timestamp_s = observation.timestamp_s
        if timestamp_s - timestamp_s != 0.0:
            raise InvalidMessageError(f"timestamp_s must be finite, got {timestamp_s}")
        self._sending = True
        try:
            if self._link.end is not None:
                self._raise_end()
            if observation.loan is None:
                slot = self._writer.claim()
                state, targets = self._slots[slot]
                state[...] = observation.state
                images = observation.images
                for name, target in targets:
                    target[...] = images[name]
            else:
                slot, self._loan_slot = self._loan_slot, -1
            if observation.task != self._task or self._slot_task_numbers[slot] != self._task_number:
                self._write_task(slot, observation.task)
            self._newest = timestep = observation.timestep
            self._waiting = True
            if stages.recorder is not None:
                stages.recorder.mark(stages.ENCODE, timestep)
            self._writer.publish(
                slot,
                timestep,
                observation.episode,
                timestamp_s,
                self._task_number,
                self._task_bytes,
                1 if observation.must_go else 0,
            )
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

    def _lend(self, policy: SessionSpec) -> Observation:
        self._sending = True
        try:
            if self._link.end is not None:
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
        return Observation({name: image.view() for name, image in images}, state.view())

    def _take_back(self, observation: Observation) -> None:
        self._writer.unclaim(self._loan_slot)
        self._loan_slot = -1

    # Actions.

    def _receive(self, timeout_s: float) -> ActionChunk | None:
        started_s = time.monotonic()
        deadline_s = started_s + timeout_s
        self._receiving = True
        try:
            while True:
                if self._link.end is not None:
                    return self._receive_after_end()
                if self._acquire(min(timeout_s, self._slice_s)):
                    if self._link.has_ended():
                        self._tokens_held += 1
                    elif (chunk := self._take()) is not None:
                        return chunk
                    continue
                now_s = time.monotonic()
                self._note_wait(now_s - started_s)
                self._check_patience(now_s)
                timeout_s = deadline_s - now_s
                if timeout_s <= 0.0 and not self._link.has_ended():
                    return None
        except TransportError:
            raise
        except (OSError, SemaphoreError) as exc:
            raise _broken(exc) from exc
        finally:
            self._receiving = False

    def _acquire(self, timeout_s: float) -> bool:
        if timeout_s <= 0.0 and not self._actions_ready.value:
            return False  # A poll: looking costs a twentieth of the exception that a vain attempt raises.
        try:
            self._actions_ready.acquire(max(0.0, timeout_s))
        except (BusyError, SignalError):
            return False
        return True

    def _take(self) -> ActionChunk | None:
        """The message whose token was acquired; None for one without actions.

        Raises:
            PolicyError: The policy raised.
            ProtocolError: It is not a message.
        """
        sequence, timestep, timestamp_s, published_ns, kind, rows, text_bytes = self._reader.take()
        self._writer.answered = sequence
        if timestep > self._newest:
            raise ProtocolError(f"the server answers timestep {timestep}; the newest sent is {self._newest}")
        self._waiting = False
        if timestep != self._newest:  # Looked at last: the other thread may send one in this very moment.
            self._waiting = True
        self._waiting_since_s = None
        slot = sequence % len(self._actions)
        if kind == CHUNK_KIND:
            actions = self._actions[slot]
            actions = actions.copy() if rows == self._chunk_rows else actions[:rows].copy()
            check_finite(actions, timestep)
            return ActionChunk(actions, timestep, timestamp_s, published_ns)
        text = self._texts[slot][:text_bytes].tobytes().decode("utf-8", "replace")
        if kind == ERROR_KIND:
            raise PolicyError(text, timestep)
        return None

    def _note_wait(self, waited_s: float) -> None:
        """The clock of an unanswered observation starts with the first wait for it that is in vain."""
        if self._waiting and self._waiting_since_s is None:
            self._waiting_since_s = time.monotonic() - waited_s

    def _check_patience(self, now_s: float) -> None:
        since_s = self._waiting_since_s
        if self._waiting and since_s is not None and now_s - since_s >= self.options.inference_timeout_s:
            self._waiting = False
            self._waiting_since_s = None
            raise TransportTimeout(
                f"the policy server at shm://{self.address} has not answered timestep {self._newest} within "
                f"{self.options.inference_timeout_s:g} s"
            )

    def _receive_after_end(self) -> ActionChunk | None:
        """What the server finished before it went away, then the reason of its going."""
        if self._closed.is_set():
            self._raise_end()  # Another thread closed the semaphores, too.
        if self._left_at_end is None:
            self._link.await_wake()
            # All tokens are there now, and one of them is the watcher's.
            self._left_at_end = self._actions_ready.value + self._tokens_held - 1
        while self._left_at_end > 0:
            self._left_at_end -= 1
            chunk = self._take()
            if chunk is not None:
                return chunk
        self._raise_end()

    def _raise_end(self) -> NoReturn:
        if self._link.end is not None and not self._closed.is_set():
            raise self._link.end
        raise TransportClosed("the transport is closed")


def _broken(exc: Exception) -> ProtocolError:
    # `TransportTimeout` and `PeerGoneError` are OSErrors, too: whoever catches those lets TransportErrors pass first.
    return ProtocolError(f"the session's semaphores are broken: {exc}")


def _interrupted() -> ProtocolError:
    # Between two of the ring's steps, perhaps: who owns which slot is not known any more.
    return ProtocolError("the session ended when something interrupted the sending of an observation")
