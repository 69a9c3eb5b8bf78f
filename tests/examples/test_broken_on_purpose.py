"""Breaking something on purpose lowers the success rate: the trained policy's rate is a signal that means something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKPOINT = Path(__file__).resolve().parents[2] / "examples" / "policies" / "act_libero_object_0"
TASK_ID = 0
INIT_STATES = range(45, 50)
EXECUTE_STEPS = 25

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def count_successes() -> Iterator[Callable[[str], int]]:
    """Counts the successes of the trained policy with one thing broken, on five held-out init states."""
    from evaluate_policy import BREAKAGES, ChunkPolicy, run_libero_episode
    from libero_setup import CameraGate, make_libero_env

    env = make_libero_env(TASK_ID, image_size_px=128, hard_reset=False)
    env._ensure_env()
    gate, policy = CameraGate(env), ChunkPolicy(CHECKPOINT)
    known: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in known:
            runs = (run_libero_episode(env, gate, policy, i, EXECUTE_STEPS, BREAKAGES[name]) for i in INIT_STATES)
            known[name] = sum(run.is_success for run in runs)
        return known[name]

    yield count
    env.close()


def test_the_whole_policy_succeeds(count_successes: Callable[[str], int]) -> None:
    assert count_successes("none") >= 4


@pytest.mark.parametrize(
    "breakage", ["images-not-rotated", "state-order-swapped", "actions-shifted-by-10", "halves-out-of-order"]
)
def test_a_breakage_is_seen(count_successes: Callable[[str], int], breakage: str) -> None:
    assert count_successes(breakage) <= count_successes("none") - 2
