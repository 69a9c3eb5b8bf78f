"""Which episode a worker runs next."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from async_delta_inference.client.environments.episode import EpisodeSpec

__all__ = ["WorkList"]

_Task = tuple[str, int]


class WorkList:
    """Episodes that nobody runs yet, handed out so that simulators are built anew as seldom as possible.

    Args:
        episodes: In order.
    """

    def __init__(self, episodes: Sequence[EpisodeSpec]) -> None:
        self._by_task: dict[_Task, deque[EpisodeSpec]] = {}
        for spec in episodes:
            self._by_task.setdefault((spec.task_group, spec.task_id), deque()).append(spec)

    def __len__(self) -> int:
        return sum(map(len, self._by_task.values()))

    def take(self, built: _Task | None, built_by_others: Sequence[_Task | None] = ()) -> EpisodeSpec | None:
        """The next episode for a worker; None: there is none.

        Of the task whose simulator it has; else of one that nobody else is at; else of the one with the most left.

        Args:
            built: The task whose simulator the worker has.
            built_by_others: Those of the other workers.
        """
        left = {task: episodes for task, episodes in self._by_task.items() if episodes}
        if not left:
            return None
        if built not in left:
            free = [task for task in left if task not in built_by_others]
            built = free[0] if free else max(left, key=lambda task: len(left[task]))
        return left[built].popleft()

    def put_back(self, spec: EpisodeSpec) -> None:
        """It is to be run again, before the others of its task."""
        self._by_task[spec.task_group, spec.task_id].appendleft(spec)
