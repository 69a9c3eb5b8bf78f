"""Real-time chunking: a session remembers its last chunk, and LeRobot's RTC makes the next one continue it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot.asking import AskForChunk
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.transport.messages import Observation
from async_delta_inference.transport.rtc_options import RtcOptions

__all__ = ["RealTimeChunking"]


class RealTimeChunking:
    """Of one session; LeRobot's own implementation, called as lerobot-rollout calls it.

    It assumes that the client executes the newest chunk only (``latest_only``), and asks for one at a time.

    Args:
        loaded: The policy, which others may share.
        options: Enabled.

    Raises:
        SetupRefusedError: The policy has none, or acts relative to the state that it observes.
    """

    def __init__(self, loaded: LoadedPolicy, options: RtcOptions) -> None:
        _check(loaded)
        self._policy = loaded.policy
        self._way = AskForChunk(loaded)
        self._options = options
        self._config = _lerobots(options)
        self._timestep = 0
        self._chunk: torch.Tensor | None = None

    def reset(self) -> None:
        """Forget the last episode's chunk."""
        self._chunk = None

    def __call__(self, observation: Observation, batches: Sequence[dict[str, Any]], rows: int) -> torch.Tensor:
        """A chunk (1, n, A) in the policy's own space, of ``rows`` actions at most.

        Raises:
            PolicyError: The observation does not say when its answer will take effect.
        """
        timestep, delay = observation.timestep, observation.inference_delay
        if delay is None:
            raise PolicyError(
                "real-time chunking needs to know the inference delay, and the observation does not say it", timestep
            )
        leftover = self.leftover(timestep)
        set_chunking(self._policy, self._config)
        try:
            # It differentiates, which inference mode forbids.
            with torch.no_grad():
                chunk = self._way(batches, None, inference_delay=delay, prev_chunk_left_over=leftover)
        finally:
            set_chunking(self._policy, None)
        self._timestep, self._chunk = timestep, chunk[0].clone()
        return chunk[:, :rows]

    def leftover(self, timestep: int) -> torch.Tensor | None:
        """What is left of the last chunk from a timestep on, (k, A); None where there was none in this episode.

        A leftover that is shorter than the horizon is filled up with zeros, or it is not, and so shortens the horizon.
        """
        if self._chunk is None:
            return None
        left = self._chunk[timestep - self._timestep :].clone()
        if self._options.short_leftover == "shorten":
            return left if len(left) else None
        horizon = self._options.execution_horizon
        padded = torch.zeros((horizon, left.shape[1]), dtype=left.dtype, device=left.device)
        padded[: len(left)] = left[:horizon]
        return padded


def set_chunking(policy: Any, config: Any) -> None:
    """Have a policy that others share continue chunks for the next inference, or not."""
    if policy.config.rtc_config is not config:
        policy.config.rtc_config = config
        policy.init_rtc_processor()


def _lerobots(options: RtcOptions) -> Any:
    from lerobot.configs import RTCAttentionSchedule
    from lerobot.policies.rtc.configuration_rtc import RTCConfig

    return RTCConfig(
        enabled=True,
        execution_horizon=options.execution_horizon,
        max_guidance_weight=float(options.max_guidance_weight),
        prefix_attention_schedule=RTCAttentionSchedule[options.prefix_attention_schedule],
    )


def _check(loaded: LoadedPolicy) -> None:
    policy = loaded.policy
    supports = getattr(policy, "supports_rtc", None)
    if not (callable(supports) and supports() and _takes_leftover(policy)):
        raise SetupRefusedError(
            f"--rtc.enabled=true: the policy type {loaded.identity.policy_type} has no real-time chunking in this "
            "LeRobot; leave the flag out"
        )
    for step in loaded.preprocessor.steps:
        if type(step).__name__ == "RelativeActionsProcessorStep" and step.enabled:
            raise SetupRefusedError(
                f"--rtc.enabled=true: {loaded.identity} acts relative to the state that it observes, and its last "
                "chunk cannot be continued here from another state"
            )


def _takes_leftover(policy: Any) -> bool:
    try:
        inspect.signature(policy.predict_action_chunk).bind({}, inference_delay=0, prev_chunk_left_over=None)
    except (TypeError, ValueError):
        return False
    return True
