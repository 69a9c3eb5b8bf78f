"""`SessionHost`: one policy, one thread that asks it, and the sessions of all listeners.

Listeners call `describe`, `reserve`, `enter` and `leave` from threads of their own. Everything else happens in the
inference loop: a policy is asked from that thread alone.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence

import numpy as np

from async_delta_inference.errors import PolicyError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.inbox import LONGEST_WAIT_S, Bell, Inbox, Seat, ServedSession, ThreadBell
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.policy import Answer, EpisodeStart, Policy, PolicyNeeds

__all__ = ["STOP_TIMEOUT_S", "SessionHost"]

logger = logging.getLogger(__name__)

_FLOAT32 = np.dtype(np.float32)
STOP_TIMEOUT_S = 30.0


class SessionHost:
    """Serves sessions until stopped.

    Args:
        policy: Answers.
        max_sessions: Clients at the same time; a further one is refused.
        max_batch: Requests that the policy is given together, at most.
        linger_s: How long to wait for more of them once there is one.
    """

    def __init__(self, policy: Policy, *, max_sessions: int = 64, max_batch: int = 1, linger_s: float = 0.0) -> None:
        self._policy = policy
        self.max_sessions = max_sessions
        self._inbox = Inbox(ThreadBell(), max_batch, linger_s)
        self._lock = threading.Lock()
        self._reserved: set[ServedSession] = set()
        self._needs: dict[ServedSession, PolicyNeeds] = {}
        self._arrivals: deque[ServedSession] = deque()
        self._departures: deque[ServedSession] = deque()
        self._stopping = False
        self._finished = False
        self._thread = threading.Thread(target=self._run, name="inference-loop", daemon=True)

    # For whoever starts and stops it.

    def start(self) -> None:
        """Begin to serve, in a thread of the host's; once the listeners have started."""
        self._thread.start()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """End every session and the thread; idempotent. Tells the clients, then waits for an inference under way.

        Args:
            timeout_s: How long to wait for it.
        """
        with self._lock:
            self._stopping = True
            sessions = list(self._reserved)
        for session in sessions:
            self._tell_end(session, "the server was stopped")
        self.ring()
        if self._thread.ident is None:
            self._close_all()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def is_running(self) -> bool:
        """Whether the inference loop's thread lives."""
        return self._thread.is_alive()

    @property
    def bell(self) -> Bell:
        """What wakes the inference loop."""
        return self._inbox.bell

    def hang_bell(self, bell: Bell) -> None:
        """Put another bell in the place of the first, before `start`: one that other processes can ring, too."""
        self._inbox.bell = bell

    # For listeners, from any thread.

    def ring(self) -> None:
        """Wake the inference loop: a session has something for it."""
        with self._lock:
            if not self._finished:  # Once it has, a listener may have taken its bell down.
                self._inbox.bell.ring()

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """What the policy says of itself and of such a session, which satisfies it.

        Raises:
            SetupRefusedError: The policy will not serve it, or the session does not bring what the policy needs.
        """
        needs = self.needs_of(spec)
        needs.check(spec)
        return needs

    def needs_of(self, spec: SessionSpec) -> PolicyNeeds:
        """What the policy says of itself and of such a session, whether or not that satisfies it.

        Raises:
            SetupRefusedError: The policy will not serve it.
        """
        try:
            return self._policy.describe(spec)
        except SetupRefusedError:
            raise
        except Exception as exc:
            logger.exception("the policy cannot describe what it needs")
            raise SetupRefusedError(f"the policy cannot say what it needs: {type(exc).__name__}: {exc}") from exc

    def reserve(self, session: ServedSession, needs: PolicyNeeds) -> None:
        """Keep a seat for a session; `leave` gives it back.

        Args:
            session: Not yet entered.
            needs: What `describe` said of it.

        Raises:
            SetupRefusedError: All seats are taken, or the server is stopping.
        """
        with self._lock:
            if self._stopping:
                raise SetupRefusedError("the server is stopping")
            if len(self._reserved) >= self.max_sessions:
                self._dismiss_who_left()
            if len(self._reserved) >= self.max_sessions:
                labels = sorted(other.label for other in self._reserved)
                named = ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
                raise SetupRefusedError(
                    f"the server has {len(labels)} sessions, as many as it may ({named}): wait for one to end, or "
                    f"start the server with --max_sessions={self.max_sessions + 1} or more"
                )
            self._reserved.add(session)
            self._needs[session] = needs

    def enter(self, session: ServedSession) -> None:
        """Have the policy opened for a session that has a seat; `ServedSession.opened` or ``refused`` follows."""
        with self._lock:
            if session in self._reserved:
                self._arrivals.append(session)
        self.ring()

    def leave(self, session: ServedSession) -> None:
        """The client is gone: free its seat at once, and the session when the loop does not use it. Idempotent."""
        with self._lock:
            self._dismiss(session)
            finished = self._finished
        if finished:
            self._usher()
        else:
            self.ring()

    def waiting_timesteps(self) -> list[int]:
        """Timesteps of the observations that wait for the policy, one per session at most; for diagnosis."""
        with self._lock:
            sessions = list(self._reserved)
        return sorted(timestep for session in sessions if (timestep := session.peek_timestep()) is not None)

    def _dismiss_who_left(self) -> None:
        for session in list(self._reserved):
            if session.has_left():
                self._dismiss(session)

    def _dismiss(self, session: ServedSession) -> None:
        if session in self._reserved:
            self._reserved.remove(session)
            self._departures.append(session)

    # The inference loop.

    def _run(self) -> None:
        inbox = self._inbox
        wait = inbox.bell.wait
        while not self._stopping:
            wait(LONGEST_WAIT_S)
            if self._arrivals or self._departures:
                self._usher()
            # One seat: whatever came meanwhile has rung, too. Several: a ring may have been for any of them.
            while taken := inbox.take():
                self._serve(taken)
                if len(inbox) < 2 or self._stopping:
                    break
                if self._arrivals or self._departures:
                    self._usher()
            while inbox.failed:
                self._end(*inbox.failed.pop())
        self._close_all()

    def _serve(self, taken: Sequence[Seat]) -> None:
        if len(taken) > 1:
            taken = [seat for seat in taken if self._is_in_episode(seat)]
            if not taken:
                return
        elif taken[0].observation.episode != taken[0].episode and not self._is_in_episode(taken[0]):
            return
        try:
            answers = self._policy.infer(taken)
            if len(answers) != len(taken):
                raise PolicyError(f"the policy gave {len(answers)} answers to {len(taken)} requests")
        except (Exception, SystemExit) as exc:
            logger.debug("inference failed", exc_info=True)
            answers = [_as_policy_error(exc)] * len(taken)
        for i in range(len(taken)):
            try:
                self._reply(taken[i], answers[i])
            except Exception as exc:  # noqa: BLE001 - it ends this session alone
                self._inbox.failed.append((taken[i], exc))

    def _is_in_episode(self, seat: Seat) -> bool:
        """Whether the policy is reset for the episode of the seat's observation; else the client was told."""
        observation = seat.observation
        if observation.episode == seat.episode:
            return True
        try:
            seat.session.reset(EpisodeStart(observation.episode, observation.task))
        except (Exception, SystemExit) as exc:
            logger.debug("the policy cannot be reset", exc_info=True)
            try:
                self._reply(seat, _as_policy_error(exc))
            except Exception as failure:  # noqa: BLE001 - it ends this session alone
                self._inbox.failed.append((seat, failure))
            return False
        seat.episode = observation.episode
        return True

    def _reply(self, seat: Seat, answer: Answer) -> None:
        session, observation = seat.served, seat.observation
        # Look for what is as it should be, and ask what is wrong only then: this runs once per message.
        if not (type(answer) is np.ndarray and answer.shape == seat.whole_chunk and answer.dtype is _FLOAT32):
            if answer is None:
                session.pass_over(observation)
                return
            fault = str(answer) if isinstance(answer, PolicyError) else _fault_of(answer, session.spec)
            if fault or isinstance(answer, PolicyError):
                session.fail(observation, fault)
                return
        data = answer.tobytes()
        if is_finite(data):
            session.answer(observation, data)
        else:
            timestep = observation.timestep
            session.fail(observation, f"the policy gave actions that are not finite for timestep {timestep}")

    def _end(self, seat: Seat, exc: Exception) -> None:
        """A session failed; the others go on."""
        session = seat.served
        reason = str(exc) if isinstance(exc, ProtocolError) else f"the server failed: {type(exc).__name__}: {exc}"
        if isinstance(exc, ProtocolError):
            logger.warning("ended the session of %s: %s", session.label, exc)
        else:
            logger.error("ended the session of %s", session.label, exc_info=exc)
        self._tell_end(session, reason)
        self.leave(session)

    def _tell_end(self, session: ServedSession, reason: str) -> None:
        try:
            session.end(reason)
        except Exception:
            logger.exception("could not tell %s why its session ended", session.label)

    # Coming and going.

    def _usher(self) -> None:
        """Let go of who has left, then admit who came: a policy may serve one kind of session at a time."""
        while True:
            with self._lock:
                if self._arrivals and not self._departures:
                    # Somebody whose connection has ended unnoticed must not keep another one's policy out.
                    self._dismiss_who_left()
                departed = list(self._departures)
                self._departures.clear()
                arrived = self._arrivals.popleft() if self._arrivals and not departed else None
            for session in departed:
                self._close(session)
            if arrived is not None:
                self._open(arrived)
            elif not departed:
                return

    def _open(self, session: ServedSession) -> None:
        with self._lock:
            needs = self._needs.get(session) if session in self._reserved else None
        if needs is None:
            return  # Gone before its turn: loading a policy for it would only keep the next one waiting.
        reason = ""
        try:
            policy_session = self._policy.open(session.spec)
        except SetupRefusedError as exc:
            reason = str(exc)
        except (Exception, SystemExit) as exc:
            logger.exception("the policy cannot be opened for %s", session.label)
            reason = f"the policy cannot be set up: {type(exc).__name__}: {exc}"
        try:
            if reason:
                session.refused(reason)
                self.leave(session)
            else:
                self._inbox.add(Seat(session, policy_session))
                session.opened(needs)
        except Exception:
            logger.exception("lost %s while its session began", session.label)
            self.leave(session)

    def _close(self, session: ServedSession) -> None:
        self._needs.pop(session, None)
        for seat in self._inbox.seats():
            if seat.served is session:
                self._inbox.remove(seat)
                try:
                    seat.session.close()
                except (Exception, SystemExit):
                    logger.exception("the policy could not close the session of %s", session.label)
        try:
            session.close()
        except Exception:
            logger.exception("could not free the session of %s", session.label)

    def _close_all(self) -> None:
        with self._lock:
            self._arrivals.clear()
            for session in list(self._reserved):
                self._dismiss(session)
            self._finished = True
        self._usher()


def _as_policy_error(exc: BaseException) -> PolicyError:
    return exc if isinstance(exc, PolicyError) else PolicyError(f"{type(exc).__name__}: {exc}")


def _fault_of(actions: object, spec: SessionSpec) -> str:
    """What is wrong with the form of a policy's answer; empty for nothing."""
    rows, columns = spec.actions_per_chunk, spec.action_dim
    if not isinstance(actions, np.ndarray):
        return f"the policy gave a {type(actions).__name__}; agreed were float32 (n, {columns})"
    shape = actions.shape
    if actions.dtype != _FLOAT32 or len(shape) != 2 or shape[1] != columns:
        return f"the policy gave actions of {actions.dtype} {shape}; agreed were float32 (n, {columns})"
    if not 1 <= shape[0] <= rows:
        return f"the policy gave {shape[0]} actions, agreed were 1 to {rows}"
    return ""
