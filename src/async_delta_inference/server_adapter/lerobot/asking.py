"""How a policy is asked for a chunk: by its own method for chunks, or action by action, as lerobot-eval asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy

__all__ = ["FORGETFUL_TYPES", "REFUSED_TYPES", "AskForActions", "AskForChunk", "Way", "way_of"]

REFUSED_TYPES = {
    "lingbot_va": "it looks at the observation of every executed step, and a client that asks for chunks sends the "
    "newest ones only"
}
"""Policies that a client which asks for chunks cannot give what they need, and why."""

_CHUNK_TYPES = frozenset({"act", "act_smooth", "smolvla", "pi0", "pi05", "groot"})
"""Policies whose ``predict_action_chunk`` needs one observation and remembers nothing."""

FORGETFUL_TYPES = frozenset({"act", "smolvla"})
"""Policies of these that keep nothing of an image once they have answered, which tests show: they may get the same
memory for every frame."""

_NOISELESS_TYPES = frozenset({"act", "act_smooth"})
"""Policies that draw no random numbers when they act."""

_ACTION, _IMAGES = "action", "observation.images"


class Way(Protocol):
    """Asks one policy."""

    remembers: bool
    """Whether the policy remembers something from one inference to the next."""
    draws: bool
    """Whether it draws random numbers."""

    def __call__(self, batches: Sequence[dict[str, Any]], rows: int) -> torch.Tensor:
        """A chunk.

        Args:
            batches: Of each observation what the preprocessor gave, the oldest first.
            rows: Most actions.

        Returns:
            (B, n, A), not yet postprocessed.
        """


class AskForChunk:
    """Calls ``predict_action_chunk``: the chunk is as long as the policy makes it.

    Args:
        loaded: The policy.
    """

    remembers = False

    def __init__(self, loaded: LoadedPolicy) -> None:
        self._policy = loaded.policy
        self.draws = loaded.identity.policy_type not in _NOISELESS_TYPES

    def __call__(  # noqa: D102
        self, batches: Sequence[dict[str, Any]], rows: int | None, **given: Any
    ) -> torch.Tensor:
        chunk: torch.Tensor = self._policy.predict_action_chunk(batches[-1], **given)
        if chunk.ndim != 3:
            chunk = chunk.unsqueeze(0)
        return chunk[:, :rows]


class AskForActions:
    """Calls ``select_action`` on the newest observation, and takes what it queued as the rest of the chunk.

    The policy's queues of observations are filled with those before, as ``select_action`` would have done at each step.

    Args:
        loaded: The policy.
    """

    remembers = True
    draws = True

    def __init__(self, loaded: LoadedPolicy) -> None:
        self._policy = loaded.policy
        self._cameras = list(loaded.config.image_features or {})

    def __call__(self, batches: Sequence[dict[str, Any]], rows: int) -> torch.Tensor:  # noqa: D102
        from lerobot.policies.utils import populate_queues

        policy = self._policy
        queues = getattr(policy, "_queues", None) or {}
        waiting = [
            queue for queue in (queues.get(_ACTION), getattr(policy, "_action_queue", None)) if queue is not None
        ]
        for queue in (*queues.values(), *waiting):
            queue.clear()
        *past, newest = batches
        for batch in past:
            policy._queues = populate_queues(queues, self._stacked(batch, queues), exclude_keys=[_ACTION])
        actions = [policy.select_action(newest)]
        for queue in waiting:
            actions.extend(queue)
            queue.clear()
        return torch.stack(actions[:rows], dim=1)

    def _stacked(self, batch: dict[str, Any], queues: dict[str, Any]) -> dict[str, Any]:
        """With all cameras in one tensor where the policy queues them so."""
        if _IMAGES not in queues or _IMAGES in batch:
            return batch
        return {**batch, _IMAGES: torch.stack([batch[key] for key in self._cameras], dim=-4)}


def way_of(loaded: LoadedPolicy) -> Way:
    """How this policy is asked."""
    asks_each_step = getattr(loaded.config, "temporal_ensemble_coeff", None) is not None
    if loaded.identity.policy_type in _CHUNK_TYPES and loaded.config.n_obs_steps == 1 and not asks_each_step:
        return AskForChunk(loaded)
    return AskForActions(loaded)
