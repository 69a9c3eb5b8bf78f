"""What a policy and its processors remember between two inferences, kept apart for each session.

LeRobot's policies remember in attributes: queues of observations, the planner's last mean, an ensemble of chunks. One
policy serves many sessions, so each session's are put in before it is asked and taken out afterwards.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

__all__ = ["PolicyMemory"]

logger = logging.getLogger(__name__)

_MODULES_OWN = frozenset(nn.Module().__dict__) | {"config"}
_CONSTANTS = (str, bytes, torch.device, torch.dtype, type)


class PolicyMemory:
    """The attributes of one policy in which it may remember something.

    Args:
        policy: As it was loaded.
    """

    def __init__(self, policy: nn.Module) -> None:
        self._policy = policy
        self._known = frozenset(policy.__dict__)
        self._pristine = {name: value for name, value in policy.__dict__.items() if _may_change(name, value)}

    def fresh(self) -> dict[str, Any]:
        """What the policy remembers at the beginning of an episode, which shares nothing with another session's."""
        self.put({name: _copied(name, value) for name, value in self._pristine.items()})
        self._policy.reset()  # type: ignore[operator]
        return self.take()

    def put(self, remembered: dict[str, Any]) -> None:
        """Have the policy remember this, and nothing else."""
        attributes = self._policy.__dict__
        for name in [name for name in attributes if name not in self._known and name not in remembered]:
            del attributes[name]
        attributes.update(remembered)

    def take(self) -> dict[str, Any]:
        """What the policy remembers now; attributes that it has made since it was loaded are among it."""
        attributes = self._policy.__dict__
        return {name: value for name, value in attributes.items() if name in self._pristine or name not in self._known}


def _may_change(name: str, value: object) -> bool:
    """Tokenizers, functions and the like are called, and shared."""
    return name not in _MODULES_OWN and not callable(value) and not isinstance(value, _CONSTANTS)


def _copied(name: str, value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:
        logger.exception("the policy's %s cannot be copied: sessions share it", name)
        return value
