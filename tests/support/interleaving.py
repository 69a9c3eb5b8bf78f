"""Searches every order in which the shared-memory steps of several sides can fall.

A side is an ordinary function that runs the real ring classes on the fake semaphores and memory given here. Each
semaphore operation and each load or store is one step. A side's state is the list of what its steps returned: to
continue it, it is run again from the start with that list, up to the first step that is not in it. States in which all
sides have the same history and the world is the same are visited once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

from posix_ipc import BusyError

__all__ = ["Explorer", "Shared", "Violation"]


class Violation(AssertionError):
    """The property that was broken, and the order of steps that broke it."""


class _Pause(BaseException):
    def __init__(self, step: tuple[Any, ...]) -> None:
        self.step = step


class Shared:
    """What a side sees of the world: each call is one step."""

    def __init__(self, history: tuple[Any, ...]) -> None:
        self._history = history
        self._next = 0

    def step(self, *step: Hashable) -> Any:
        if self._next == len(self._history):
            raise _Pause(step)
        result = self._history[self._next]
        self._next += 1
        return result

    def load(self, key: Hashable) -> Any:
        return self.step("load", key)

    def store(self, key: Hashable, value: Hashable) -> None:
        self.step("store", key, value)

    def semaphore(self, name: str) -> FakeSemaphore:
        return FakeSemaphore(self, name)

    def record(self, ring: str) -> tuple[Callable[..., None], Callable[[int], tuple[Any, ...]]]:
        """Store and load of a record, in two steps each, so that a torn one shows."""

        def store(position: int, first: Hashable, *rest: Hashable) -> None:
            self.store((ring, position, 0), first)
            self.store((ring, position, 1), rest)

        def load(position: int) -> tuple[Any, ...]:
            return (self.load((ring, position, 0)), *self.load((ring, position, 1)))

        return store, load


@dataclass
class FakeSemaphore:
    shared: Shared
    name: str

    @property
    def value(self) -> int:
        return self.shared.step("value", self.name)

    def acquire(self, timeout: float | None = None) -> None:
        if not self.shared.step("acquire" if timeout != 0 else "try", self.name):
            raise BusyError

    def release(self) -> None:
        self.shared.step("release", self.name)


Program = Callable[[Shared], None]


@dataclass
class Explorer:
    """Visits all states that the programs can reach.

    Args:
        programs: The sides.
        memory: Initial contents of what is loaded before it is stored.
        watch: Called with each step that is carried out, the side and the memory; may write "ghost" keys to it.
    """

    programs: dict[str, Program]
    memory: dict[Hashable, Any] = field(default_factory=dict)
    watch: Callable[[str, tuple[Any, ...], Any, dict[Hashable, Any]], None] | None = None
    visited: int = 0

    def run(self) -> None:
        """Raises `Violation` for a side that fails and for a deadlock."""
        start = (tuple(() for _ in self.programs), (), tuple(sorted(self.memory.items(), key=repr)))
        seen = {start}
        todo: list[tuple[Any, tuple[str, ...]]] = [(start, ())]
        while todo:
            state, path = todo.pop()
            for following, label in self._successors(state, path):
                if following not in seen:
                    seen.add(following)
                    todo.append((following, (*path, label)))
        self.visited = len(seen)

    def _successors(self, state: Any, path: tuple[str, ...]) -> list[tuple[Any, str]]:
        histories, semaphores, memory = state
        found, finished = [], 0
        for index, (side, program) in enumerate(self.programs.items()):
            step = self._pending(side, program, histories[index], path)
            if step is None:
                finished += 1
                continue
            tokens, words = dict(semaphores), dict(memory)
            blocked, result = _carry_out(step, tokens, words)
            if blocked:
                continue
            if self.watch is not None:
                self.watch(side, step, result, words)
            changed = (*histories[:index], (*histories[index], result), *histories[index + 1 :])
            after = (changed, tuple(sorted(tokens.items())), tuple(sorted(words.items(), key=repr)))
            found.append((after, f"{side}: {step} -> {result}"))
        if not found and finished < len(self.programs):
            raise Violation("deadlock after:\n" + "\n".join(path))
        return found

    def _pending(
        self, side: str, program: Program, history: tuple[Any, ...], path: tuple[str, ...]
    ) -> tuple[Any, ...] | None:
        try:
            program(Shared(history))
        except _Pause as pause:
            return pause.step
        except Exception as exc:
            raise Violation(f"{side}: {type(exc).__name__}: {exc}, after:\n" + "\n".join(path)) from exc
        return None


def _carry_out(step: tuple[Any, ...], tokens: dict[str, int], words: dict[Hashable, Any]) -> tuple[bool, Any]:
    kind, name, *value = step
    if kind == "load":
        return False, words.get(name)
    if kind == "store":
        words[name] = value[0]
        return False, None
    count = tokens.get(name, 0)
    if kind == "value":
        return False, count
    if kind == "release":
        tokens[name] = count + 1
        return False, None
    if not count:
        return kind == "acquire", False
    tokens[name] = count - 1
    return False, True
