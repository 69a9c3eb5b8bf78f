"""`EpisodeSpec`: an episode as a value."""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

__all__ = ["EpisodeKey", "EpisodeSpec"]

EpisodeKey = tuple[str, int, int]
"""Task group, task id, and index of the episode within the task."""


@dataclass(frozen=True, slots=True, order=True)
class EpisodeSpec:
    """All that an episode depends on besides policy, environment and flags: not who runs it, when, or after what.

    Args:
        task_group: Suite or family.
        task_id: Index within it.
        episode: Index within the task.
        seed: What the environment is reset with; None: whatever the simulator likes, which is another episode every
            time.
        init_state_id: Recorded initial state that it starts from; None where there is no such thing.
    """

    task_group: str
    task_id: int
    episode: int
    seed: int | None
    init_state_id: int | None = None

    @property
    def key(self) -> EpisodeKey:
        """Which episode of the evaluation it is."""
        return self.task_group, self.task_id, self.episode

    @property
    def number(self) -> int:
        """For the server: differs from every other episode's of an evaluation, and follows from the task and index."""
        return crc32(f"{self.task_group}/{self.task_id}".encode()) << 30 | self.episode % 2**30

    @property
    def name(self) -> str:
        """In a few words, for messages and progress."""
        return f"{self.task_group}/{self.task_id} episode {self.episode}"
