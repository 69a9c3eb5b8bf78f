"""What the server is asked for: a policy for what the environments observe and how they act."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from async_delta_inference.checkpoint_config import CheckpointConfig
from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.base import Environment
from async_delta_inference.client.run.checkpoint import check_checkpoint
from async_delta_inference.errors import ConfigError, FeatureMismatchError
from async_delta_inference.transport import SessionSpec

__all__ = ["session_spec"]


def session_spec(config: SimClientConfig, environments: Sequence[Environment], checkpoint: Path | None) -> SessionSpec:
    """One session serves all environments, so they must observe and act alike.

    Args:
        config: Flags.
        environments: At least one.
        checkpoint: The policy's folder on this machine, checked against the environments; None: the server finds it.

    Raises:
        ConfigError: The checkpoint cannot be read or is of another policy type.
        FeatureMismatchError: The environments, or one and the checkpoint, do not fit.
    """
    first, *others = environments
    for other in others:
        if (other.features, other.action_dim) != (first.features, first.action_dim):
            raise FeatureMismatchError(
                f"{first.task_group}/{first.task_id} and {other.task_group}/{other.task_id} observe or act "
                "differently: evaluate them in runs of their own"
            )
    described = None
    if checkpoint is not None:
        described = check_checkpoint(checkpoint, config, first.features, first.action_dim)
    return SessionSpec(
        policy_type=config.policy_type or (described.policy_type if described is not None else ""),
        # A path of this machine's is made absolute for a server with another working directory.
        pretrained_name_or_path=str(
            checkpoint if checkpoint and config.shares_files else config.pretrained_name_or_path
        ),
        actions_per_chunk=config.actions_per_chunk or _usual_chunk(described),
        features=first.features,
        action_dim=first.action_dim,
        device=config.policy_device,
        options=config.policy_options(config.seed),
    )


def _usual_chunk(described: CheckpointConfig | None) -> int:
    """As many actions as lerobot-eval executes of a chunk."""
    if described is None or described.actions_per_inference is None:
        raise ConfigError(
            "give --actions_per_chunk: how many actions a chunk has is not known here, since "
            + ("no checkpoint is at hand" if described is None else "the checkpoint's config.json does not say it")
        )
    return described.actions_per_inference
