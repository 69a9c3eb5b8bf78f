"""`PolicyServerPolicy`: LeRobot's own PolicyServer as a `Policy` of many sessions, on any transport."""

from __future__ import annotations

from collections.abc import Sequence

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.policy_server.checkpoints import PolicyIdentity, action_dim_of
from async_delta_inference.server_adapter.policy_server.driven import DrivenPolicyServer
from async_delta_inference.server_adapter.policy_server.sessions import DrivenSession, open_session
from async_delta_inference.transport.failures import PolicyFailures
from async_delta_inference.transport.finite import is_finite
from async_delta_inference.transport.messages import SessionSpec
from async_delta_inference.transport.policy import Answer, PolicyNeeds, Request

__all__ = ["PolicyServerPolicy"]


class PolicyServerPolicy:
    """Serves one checkpoint at a time, to all sessions that ask for it: each with its own features, filter and chunks.

    Raises:
        ConfigError: This lerobot's PolicyServer has other internals than the tested ones.
    """

    def __init__(self) -> None:
        self._failures = PolicyFailures()
        self._driven = DrivenPolicyServer()
        self._loaded: PolicyIdentity | None = None
        self._sessions: set[DrivenSession] = set()

    @property
    def driven(self) -> DrivenPolicyServer:
        """The PolicyServer behind it."""
        return self._driven

    def describe(self, spec: SessionSpec) -> PolicyNeeds:
        """The checkpoint that is asked for, and the length of its actions where a file at hand tells it.

        Raises:
            SetupRefusedError: The session names no policy.
        """
        path = spec.pretrained_name_or_path
        if not spec.names_policy:
            raise SetupRefusedError(
                "this server serves LeRobot's checkpoints: give --policy_type and --pretrained_name_or_path"
            )
        return PolicyNeeds(f"{spec.policy_type} from {path}", action_dim=action_dim_of(path))

    def open(self, spec: SessionSpec) -> DrivenSession:
        """Begin a session, and load its policy unless it is loaded.

        Raises:
            SetupRefusedError: Sessions with another policy are open, the policy cannot be loaded, or it cannot take
                what the session observes; the message says which.
        """
        wanted = PolicyIdentity.of(spec)
        if wanted != self._loaded:
            self._refuse_while_others_are_served(wanted)
            self._loaded = None
            self._driven.load(wanted, spec)
            self._loaded = wanted
        session = open_session(self._driven, spec, self._sessions.discard)
        self._sessions.add(session)
        return session

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Answer one request after the other; what one of them raises is that one's answer."""
        return [_answer(request, self._failures) for request in requests]

    def _refuse_while_others_are_served(self, wanted: PolicyIdentity) -> None:
        if self._loaded is None or not self._sessions:
            return
        count = len(self._sessions)
        changed = ", whose files have changed since," if wanted.is_like(self._loaded) else ""
        raise SetupRefusedError(
            f"this server serves {self._loaded} to {count} session{'s' if count > 1 else ''}; {wanted}{changed} can be "
            "served when they have ended, or by another server"
        )


def _answer(request: Request, failures: PolicyFailures) -> Answer:
    observation, session = request.observation, request.session
    assert isinstance(session, DrivenSession)
    if not is_finite(observation.state.tobytes()):
        return PolicyError(f"the state of timestep {observation.timestep} is not finite", observation.timestep)
    try:
        return session.answer(observation, request.release)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
        return failures.as_error("inference", exc)
