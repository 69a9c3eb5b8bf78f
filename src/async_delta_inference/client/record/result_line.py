"""An episode as one line of ``results.jsonl``, and back.

All that follows from the episode comes first; what the run around it added (seconds, what failed before) stands under
``run``. So two runs of the same evaluation have the same lines, whoever ran them in whichever order, but for ``run``.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from async_delta_inference.client.environments.episode import EpisodeSpec
from async_delta_inference.client.record.results import ChunkRecord, EpisodeFigures, EpisodeResult, GivenUp
from async_delta_inference.errors import ConfigError

__all__ = ["KeptEpisode", "episode_of", "line_of", "line_of_given_up"]


@dataclass(slots=True)
class KeptEpisode(EpisodeResult):
    """An episode that was read again: its figures are there, its arrays are not.

    Args:
        kept_length: Steps.
        kept_sum_reward: Sum over the steps.
        kept_max_reward: Largest reward of a step.
    """

    kept_length: int = 0
    kept_sum_reward: float = 0.0
    kept_max_reward: float = math.nan

    @property
    def length(self) -> int:
        """Steps taken."""
        return self.kept_length

    @property
    def sum_reward(self) -> float:
        """Sum over the steps."""
        return self.kept_sum_reward

    @property
    def max_reward(self) -> float:
        """Largest reward of a step."""
        return self.kept_max_reward


def line_of(result: EpisodeResult) -> str:
    """One line, without its end."""
    return json.dumps(
        _identity(result.spec)
        | {
            "success": result.success,
            "sum_reward": result.sum_reward,
            "max_reward": None if math.isnan(result.max_reward) else result.max_reward,
            "length": result.length,
            "starved_steps": result.starved_steps,
            "open_delay_steps": result.open_delay_steps,
            "chunks": [
                [c.requested_step, c.merged_step, c.length, c.stale, c.aggregated, c.queued] for c in result.chunks
            ],
            "figures": None if result.figures is None else asdict(result.figures),
            "run": {
                "reset_s": round(result.reset_s, 6),
                "stepping_s": round(result.stepping_s, 6),
                "latencies_s": [round(chunk.latency_s, 6) for chunk in result.chunks],
                # Answers to the episode before it.
                "late_chunks": result.late_chunks,
                "failures": list(result.failures),
            },
        }
    )


def line_of_given_up(given_up: GivenUp) -> str:
    """One line, without its end, of an episode that has no result."""
    return json.dumps(_identity(given_up.spec) | {"given_up": True, "run": {"failures": list(given_up.failures)}})


def episode_of(line: str) -> KeptEpisode | GivenUp:
    """What a line says.

    Raises:
        ConfigError: It is none of ours.
    """
    try:
        said = json.loads(line)
        spec = EpisodeSpec(
            str(said["task_group"]), int(said["task_id"]), int(said["episode"]), said["seed"], said["init_state_id"]
        )
        failures = tuple(map(str, said["run"]["failures"]))
        return GivenUp(spec, failures) if said.get("given_up") else _kept(spec, said, failures)
    except (ValueError, LookupError, TypeError, AttributeError) as exc:
        raise ConfigError(f"no episode's line: {type(exc).__name__}: {exc}") from exc


def _identity(spec: EpisodeSpec) -> dict[str, Any]:
    return {
        "task_group": spec.task_group,
        "task_id": spec.task_id,
        "episode": spec.episode,
        "seed": spec.seed,
        "init_state_id": spec.init_state_id,
    }


def _kept(spec: EpisodeSpec, said: dict[str, Any], failures: tuple[str, ...]) -> KeptEpisode:
    run = said["run"]
    chunks = [
        ChunkRecord(*map(int, numbers), latency_s=float(latency_s))  # type: ignore[misc]
        for numbers, latency_s in zip(said["chunks"], run["latencies_s"], strict=True)
    ]
    return KeptEpisode(
        *(spec.task_group, spec.task_id, spec.episode, spec.seed, spec.init_state_id),
        success=said["success"],
        chunks=chunks,
        starved_steps=int(said["starved_steps"]),
        late_chunks=int(run["late_chunks"]),
        open_delay_steps=said["open_delay_steps"],
        stepping_s=float(run["stepping_s"]),
        reset_s=float(run["reset_s"]),
        failures=failures,
        figures=None if said["figures"] is None else EpisodeFigures(**said["figures"]),
        kept_length=int(said["length"]),
        kept_sum_reward=float(said["sum_reward"]),
        kept_max_reward=math.nan if said["max_reward"] is None else float(said["max_reward"]),
    )
