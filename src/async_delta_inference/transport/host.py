"""`SessionHost`: one policy, one thread that asks it, and the sessions of all listeners.

Listeners call `describe`, `reserve`, `enter` and `leave` from threads of their own. Everything else happens in the
inference loop: a policy is asked from that thread alone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import replace

from async_delta_inference.errors import ProtocolError, SetupRefusedError
from async_delta_inference.transport.answering import Answering
from async_delta_inference.transport.computation import Computation, checked_computation
from async_delta_inference.transport.inbox import LONGEST_WAIT_S, Bell, Inbox, Seat, ServedSession, ThreadBell
from async_delta_inference.transport.lobby import Lobby
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.policy import Policy, PolicyNeeds, PolicySession, SharingSession, TellingPolicy

__all__ = ["STOP_TIMEOUT_S", "SessionHost"]

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S = 30.0
"""How long a server that stops waits for an inference under way."""


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
        self._inbox = Inbox(ThreadBell(), max_batch, linger_s)
        self._lobby = Lobby(max_sessions)
        self._answer = Answering(policy, lambda seat, exc: self._inbox.failed.append((seat, exc)))
        self._stopping = False
        self._finishing = threading.Lock()
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
        self._stopping = True
        for session in self._lobby.shut():
            self._tell_end(session, "the server was stopped")
            self._inbox.interrupt(session)
        self.ring()
        if self._thread.ident is None:
            self._close_all()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    @property
    def max_sessions(self) -> int:
        """Clients that may be served at the same time."""
        return self._lobby.max_sessions

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
        with self._finishing:
            if not self._finished:  # Once it has, a listener may have taken its bell down.
                self._inbox.bell.ring()

    def describe(
        self, spec: SessionSpec, *, carries_history: bool = False, carries_prefix: bool = False
    ) -> PolicyNeeds:
        """What the policy says of itself and of such a session, which satisfies it.

        Args:
            spec: What the client asks for.
            carries_history: Whether the transport carries what was observed at the steps before, too.
            carries_prefix: Whether it carries the robot's own actions.

        Raises:
            SetupRefusedError: The policy will not serve it, or the session does not bring what the policy needs.
        """
        needs = self.needs_of(spec)
        needs.check(spec, carries_history=carries_history, carries_prefix=carries_prefix)
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
        self._lobby.reserve(session, needs)

    def enter(self, session: ServedSession) -> None:
        """Have the policy opened for a session that has a seat; `ServedSession.opened` or ``refused`` follows."""
        self._lobby.arrive(session)
        self.ring()

    def leave(self, session: ServedSession) -> None:
        """The client is gone: free its seat at once, and the session when the loop does not use it. Idempotent."""
        self._lobby.depart(session)
        self._inbox.interrupt(session)
        self.ring()

    def waiting_timesteps(self) -> list[int]:
        """Timesteps of the observations that wait for the policy, one per session at most; for diagnosis."""
        peeked = [session.peek_timestep() for session in self._lobby.sessions()]
        return sorted(timestep for timestep in peeked if timestep is not None)

    # The inference loop.

    def _run(self) -> None:
        while not self._stopping:
            if self._inbox.alone is None:
                self._serve_several()
            else:
                self._serve_alone(self._inbox.alone)
        self._close_all()

    def _serve_alone(self, seat: Seat) -> None:
        """The one session there is, on the shortest path, until it fails or somebody comes or goes."""
        lobby, answer, seats = self._lobby, self._answer.one, (seat,)
        take_within = seat.served.take_within
        try:
            while not (lobby.has_traffic or self._stopping):
                observation = take_within(LONGEST_WAIT_S)
                if observation is not None:
                    seat.observation = observation
                    answer(seats)
                    if self._inbox.failed:
                        break
        except Exception as exc:  # noqa: BLE001 - whatever a session raises ends that session alone
            self._inbox.failed.append((seat, exc))
        self._let_go_and_admit()

    def _serve_several(self) -> None:
        """Whoever waits, in turn, then wait for the bell: what was rung for before is found without it."""
        inbox = self._inbox
        while taken := inbox.take():
            if self._answer.overlaps:
                self._serve_ahead(taken)
            else:
                self._answer.several(taken)
            if self._is_disturbed():
                self._let_go_and_admit()
            if self._stopping:
                return
        if not inbox.failed:
            inbox.bell.wait(LONGEST_WAIT_S)
        self._let_go_and_admit()

    def _serve_ahead(self, batch: Sequence[Seat]) -> None:
        """Batch after batch on a device: while one is computed, those who wait meanwhile are prepared for the next.

        Until nobody has come meanwhile. Who is prepared is answered even if a newer observation of the same session
        comes before its turn: that one is in the batch after.
        """
        inbox, answer = self._inbox, self._answer
        while batch:
            computation = answer.launch(batch)
            ahead = answer.prepare(inbox.take_more((), but=batch), computation)
            computation.wait_and_answer()
            if self._is_disturbed():
                self._let_go_and_admit()
                ahead = [seat for seat in ahead if seat in inbox.seats()]
            if self._stopping:
                return
            # Lingering, where that is wished for, lets those just answered join: else two halves take turns for ever.
            batch = [*ahead, *inbox.take_more(ahead, lingers=True)] if ahead else ()

    def _is_disturbed(self) -> bool:
        return bool(self._inbox.failed) or self._lobby.has_traffic

    def _let_go_and_admit(self) -> None:
        if self._inbox.failed:
            self._end_failed()
        if self._lobby.has_traffic and not self._stopping:
            self._usher()

    def _end_failed(self) -> None:
        """Sessions that raised something end; the others go on."""
        failed, self._inbox.failed = self._inbox.failed, []
        for seat, exc in failed:
            session = seat.served
            if isinstance(exc, ProtocolError):
                logger.warning("ended the session of %s: %s", session.label, str(exc))
                self._tell_end(session, str(exc))
            else:
                logger.error("ended the session of %s", session.label, exc_info=exc)
                self._tell_end(session, f"the server failed: {type(exc).__name__}: {exc}")
            self.leave(session)

    def _tell_end(self, session: ServedSession, reason: str) -> None:
        try:
            session.end(reason)
        except Exception:
            logger.exception("could not tell %s why its session ended", session.label)

    # Coming and going, in the loop too.

    def _usher(self) -> None:
        """Let go of who has left, then admit who came: a policy may serve one kind of session at a time."""
        while True:
            while departed := self._lobby.take_departed():
                for session in departed:
                    self._close(session)
            arrived = self._lobby.take_arrived()
            if arrived is None:
                return
            self._open(*arrived)

    def _open(self, session: ServedSession, needs: PolicyNeeds) -> None:
        opened = self._policy_session(session)
        try:
            if isinstance(opened, str):
                session.refused(opened)
                self.leave(session)
            else:
                self._inbox.add(Seat(session, opened))
                session.opened(replace(needs, computation=self._computation()))
        except Exception:
            logger.exception("lost %s while its session began", session.label)
            self.leave(session)

    def _policy_session(self, session: ServedSession) -> PolicySession | str:
        """The policy's half of the session, or why there will be none."""
        try:
            opened = self._policy.open(session.spec)
        except SetupRefusedError as exc:
            return str(exc)
        except (Exception, SystemExit) as exc:
            logger.exception("the policy cannot be opened for %s", session.label)
            return f"the policy cannot be set up: {type(exc).__name__}: {exc}"
        memory = session.shared_memory()
        if memory is not None and isinstance(opened, SharingSession):
            try:
                opened.share(memory)
            except Exception:
                logger.exception("the policy can do nothing with the memory of %s", session.label)
        return opened

    def _computation(self) -> Computation:
        """What the policy says of it; a session does not fail for that."""
        if not isinstance(self._policy, TellingPolicy):
            return {}
        try:
            return checked_computation(self._policy.computation())
        except (Exception, SystemExit):
            logger.exception("the policy cannot say how it computes")
            return {}

    def _close(self, session: ServedSession) -> None:
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
        with self._finishing:
            self._finished = True
        # Nobody has been let in since `stop`: whoever leaves after this has been closed here.
        self._lobby.clear()
        self._usher()
