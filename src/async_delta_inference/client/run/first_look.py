"""What ``--check`` finds alarming, told before the first episode of a run; nothing of a pair that fits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.policy_flags import PolicyFlags
from async_delta_inference.client.record.observers import RunObserver
from async_delta_inference.client.run.look import action_bounds, look_at

__all__ = ["FirstLook", "say"]

logger = logging.getLogger(__name__)


def say(alarms: Sequence[str]) -> None:
    """One line each."""
    for alarm in alarms:
        logger.warning("%s", alarm)


class FirstLook(RunObserver):
    """Looks once, at the first environment that was reset: no simulator and no policy is made for it.

    Args:
        flags: What the user says of the policy.
        tell: Given what is alarming, unless nothing is.
    """

    def __init__(self, flags: PolicyFlags, tell: Callable[[Sequence[str]], object] = say) -> None:
        self.checkpoint: Path | None = None
        """The policy's folder, where this machine has it; else there is nothing to compare with."""
        self._flags = flags
        self._tell = tell
        self._looked = False

    def episode_started(self, environment: Environment, episode: int) -> None:  # noqa: D102
        if self._looked or self.checkpoint is None:
            return
        self._looked = True
        found = look_at(self._flags, environment, self.checkpoint, action_bounds(environment))
        alarms = [f"{finding.what}: {finding.warning}" for finding in found if finding.warning]
        if alarms:
            self._tell(alarms)
