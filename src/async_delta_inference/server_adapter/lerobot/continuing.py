"""Policies that are told which actions are still to come, and answer with what follows them.

`lerobot-policy-act-smooth` is one. Its batch has two entries more: past and coming actions in one tensor, normalised as
actions are, and which of them are none. Its chunk begins after the last action that it is told of.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.transport.messages import Observation, SessionSpec

__all__ = ["Continuing"]

_ACTIONS, _IS_PAD = "inference_action", "inference_action_is_pad"


class Continuing:
    """Of one session.

    As many actions are told as will be executed before the answer takes effect, by the observation's delay, and one at
    least where any is queued: the plugin is trained so. Where none is, as at an episode's beginning, a policy that acts
    relative to the first of them is told the state in its place, as the plugin's authors have it, any other that there
    is none.

    Args:
        loaded: A policy that wants to be told.
        spec: What the client asked for.

    Raises:
        SetupRefusedError: It acts relative to an action, and a state cannot stand for one.
    """

    def __init__(self, loaded: LoadedPolicy, spec: SessionSpec) -> None:
        self._policy = loaded.policy
        self._normalizers = [step for step in loaded.preprocessor.steps if "Normalizer" in type(step).__name__]
        self._device = loaded.device
        self._starts_from_state = bool(getattr(loaded.config, "use_action_relative", False))
        self._committed: NDArray[np.float32] = np.empty((0, spec.action_dim), np.float32)
        if self._starts_from_state and spec.features.state_dim != spec.action_dim:
            raise SetupRefusedError(
                f"{loaded.identity} acts relative to the action that is executed, an episode's first chunk to the "
                f"state, whose {spec.features.state_dim} elements are no action of {spec.action_dim}: one trained with "
                "use_action_relative=false can be served"
            )

    def add_to(self, batch: dict[str, Any], observation: Observation) -> None:
        """Tell the policy, in its own units.

        Args:
            batch: What the preprocessor made of the observation; gets two entries more.
            observation: Its arrays are not used afterwards.

        Raises:
            PolicyError: It does not say what the robot does.
        """
        told, delay = observation.prefix, observation.inference_delay
        if told is None or delay is None:
            raise PolicyError(
                "the policy continues the robot's actions, and the observation does not say them, or not the delay",
                observation.timestep,
            )
        most = min(max(delay, 1), self._policy.config.length_prefix_future)
        self._committed = told.committed[:most].copy()
        if not len(self._committed) and self._starts_from_state:
            self._committed = observation.state[None].copy()
        batch[_ACTIONS], batch[_IS_PAD] = self._tensors(told.executed)

    def continued(self, actions: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
        """A chunk from the observation on: what the policy was told, and its answer; at most ``rows`` (n, A)."""
        return np.concatenate([self._committed, actions])[:rows]

    def _tensors(self, executed: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
        past, future = self._normalized(executed), self._normalized(self._committed)
        if len(self._committed):
            actions, is_pad = self._policy.build_inference_action_prefix(future, past)
            return actions, is_pad
        # The plugin takes one at least: it is given one, and told that it is none.
        nothing = torch.zeros((1, 1, past.shape[2]), dtype=past.dtype, device=past.device)
        actions, is_pad = self._policy.build_inference_action_prefix(nothing, past)
        is_pad[:, self._policy.config.length_prefix_past :] = True
        return actions, is_pad

    def _normalized(self, actions: NDArray[np.float32]) -> torch.Tensor:
        """(1, n, A), as the policy's own preprocessor normalises actions."""
        from lerobot.processor import TransitionKey

        transition: Any = {TransitionKey.ACTION: torch.from_numpy(actions.copy())[None].to(self._device)}
        for step in self._normalizers:
            transition = step(transition)
        normalized: torch.Tensor = transition[TransitionKey.ACTION]
        return normalized
