"""``--check``: what stands before episode 1, as one table, and nothing run."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.environments.guarded import GuardedEnvironment
from async_delta_inference.client.environments.registry import make_environments
from async_delta_inference.client.run.checkpoint import local_checkpoint
from async_delta_inference.client.run.look import Finding, action_bounds, look_at
from async_delta_inference.client.run.repeatability import NOT_REPEATABLE, is_repeatable
from async_delta_inference.errors import ConfigError

__all__ = ["check"]


def check(config: SimClientConfig, console: Console) -> int:
    """Compare the first environment, reset once, with the checkpoint, and print what differs.

    Returns:
        How many warnings there are.

    Raises:
        ConfigError: There is no checkpoint of this machine's to compare with, or it cannot be read.
        EpisodeError: The simulator failed.
    """
    if not config.pretrained_name_or_path:
        raise ConfigError("--check compares an environment with a checkpoint: give --pretrained_name_or_path")
    checkpoint = local_checkpoint(config.pretrained_name_or_path)
    if checkpoint is None:
        raise ConfigError("--check needs the checkpoint's folder on this machine: download it first")
    environment = GuardedEnvironment(make_environments(config.env, config.environment_options())[0])
    try:
        environment.reset(environment.episode(0, config.seed))
        findings = look_at(config, environment, checkpoint, action_bounds(environment))
        repeatable = getattr(environment, "repeatable", None)
    finally:
        environment.close()
    findings.append(_repeatability(config, repeatable))
    console.print(_table(findings))
    warnings = [finding for finding in findings if finding.warning]
    for finding in warnings:
        console.print(f"warning: {finding.what}: {finding.warning}", markup=False, soft_wrap=True)
    if not warnings:
        console.print("nothing differs from what the policy was trained with, as far as is known")
    return len(warnings)


def _repeatability(config: SimClientConfig, known: bool | None) -> Finding:
    """A few steps twice, unless that was done to find out about its frames."""
    if known is None:
        known = is_repeatable(lambda: make_environments(config.env, config.environment_options()), config.seed)
    return Finding("repeatable", "yes" if known else "no", "", "" if known else NOT_REPEATABLE)


def _table(findings: list[Finding]) -> Table:
    table = Table("what", "environment", "checkpoint", "", title="Before episode 1")
    for finding in findings:
        table.add_row(finding.what, finding.environment, finding.checkpoint, "see below" if finding.warning else "")
    return table
