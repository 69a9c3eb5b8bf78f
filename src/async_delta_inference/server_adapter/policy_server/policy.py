"""`PolicyServerPolicy`: LeRobot's own PolicyServer as a `Policy` of many sessions, on any transport."""

from __future__ import annotations

from collections.abc import Sequence

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.computation import computation_of
from async_delta_inference.server_adapter.lerobot.checkpoint import PolicyIdentity, checkpoint_config
from async_delta_inference.server_adapter.policy_server.driven import DrivenPolicyServer
from async_delta_inference.server_adapter.policy_server.sessions import DrivenSession
from async_delta_inference.transport.computation import Computation
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
        """What the checkpoint's configuration says, nothing of it loaded.

        Raises:
            SetupRefusedError: The session names no policy, or asks of it what PolicyServer cannot do.
        """
        path, options = spec.pretrained_name_or_path, spec.options
        if not spec.names_policy or not spec.policy_type:
            raise SetupRefusedError(
                "this server serves LeRobot's PolicyServer: give --policy_type and --pretrained_name_or_path"
            )
        if options.rename_map or options.overrides or options.noise != "request":
            raise SetupRefusedError(
                "PolicyServer renames no cameras, overrides nothing and knows no stream of noise: leave --rename_map, "
                "--policy.* and --noise out, or serve without --policy_host=policy_server"
            )
        if options.rtc.enabled:
            raise SetupRefusedError(
                "--rtc.enabled=true: PolicyServer has no real-time chunking; serve without --policy_host=policy_server"
            )
        described = checkpoint_config(path, {})
        return PolicyNeeds(
            f"{spec.policy_type} from {path}",
            action_dim=described.action_dim,
            n_obs_steps=described.n_obs_steps,
        )

    def open(self, spec: SessionSpec) -> DrivenSession:
        """Begin a session, and load its policy unless it is loaded.

        Raises:
            SetupRefusedError: Sessions with another policy are open, the policy cannot be loaded, or it cannot take
                what the session observes; the message says which.
        """
        wanted = PolicyIdentity.of(spec)
        if wanted != self._loaded:
            wanted.check_replaces(self._loaded, len(self._sessions))
            self._loaded = None
            self._driven.load(wanted, spec)
            self._loaded = wanted
        session = DrivenSession(self._driven, spec, self._sessions.discard)
        self._sessions.add(session)
        return session

    def computation(self) -> Computation:
        """See `TellingPolicy`. PolicyServer knows no mixed precision."""
        return {} if self._loaded is None else computation_of(self._driven.server.policy, autocast=False)

    def infer(self, requests: Sequence[Request]) -> Sequence[Answer]:
        """Answer one request after the other; what one of them raises is that one's answer."""
        return [_answer(request, self._failures) for request in requests]


def _answer(request: Request, failures: PolicyFailures) -> Answer:
    observation, session = request.observation, request.session
    assert isinstance(session, DrivenSession)
    if not is_finite(observation.state.tobytes()):
        return PolicyError(f"the state of timestep {observation.timestep} is not finite", observation.timestep)
    try:
        return session.answer(observation)
    except (Exception, SystemExit) as exc:  # noqa: BLE001 - its author reads it, its client hears of it
        return failures.as_error("inference", exc)
