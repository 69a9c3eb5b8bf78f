"""The scripted expert, on a point that moves as it is told."""

from __future__ import annotations

import numpy as np
import pytest
from libero_expert import Disturbance, ExpertConfig, Phase, PickPlaceExpert, proportional_action
from numpy.typing import NDArray

METRES_PER_ACTION = 0.01
BASKET = np.array([0.0, 0.26, 0.0])


def run_point_hand(
    expert: PickPlaceExpert, object_pos: NDArray[np.float64], n_steps: int = 400
) -> tuple[list[Phase], NDArray[np.float64]]:
    """Moves a point by its actions; a closed gripper at the object carries it. Returns phases and the object."""
    eef, held, phases = np.array([-0.15, 0.0, 0.25]), False, []
    object_pos = object_pos.copy()
    for _ in range(n_steps):
        action = expert.act(eef, object_pos, BASKET)
        phases.append(expert.phase)
        step = METRES_PER_ACTION * action[:3]
        if action[6] > 0 and np.linalg.norm(eef - object_pos) < 0.02:
            held = True
        if action[6] < 0:
            held = False
        eef = eef + step
        if held:
            object_pos = object_pos + step
    return phases, object_pos


def test_proportional_action_points_at_the_target_and_is_clipped() -> None:
    action = proportional_action(np.zeros(3), np.array([0.05, -5.0, 0.0]), gripper=1.0, gain=10.0)
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, [0.5, -1.0, 0, 0, 0, 0, 1.0])


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.025, -0.025), (-0.025, 0.01)])
def test_expert_carries_the_object_above_the_basket(offset: tuple[float, float]) -> None:
    start = np.array([-0.12 + offset[0], -0.24 + offset[1], 0.04])
    phases, object_pos = run_point_hand(PickPlaceExpert(), start)
    assert phases[-1] == Phase.RELEASE
    np.testing.assert_allclose(object_pos[:2], BASKET[:2], atol=0.02)


def test_phases_come_in_order_and_none_is_skipped() -> None:
    phases, _ = run_point_hand(PickPlaceExpert(), np.array([-0.12, -0.24, 0.04]))
    assert phases == sorted(phases)
    assert set(phases) == set(Phase)


def test_the_gripper_closes_for_the_configured_number_of_steps() -> None:
    expert = PickPlaceExpert(ExpertConfig(grasp_steps=7))
    phases, _ = run_point_hand(expert, np.array([-0.12, -0.24, 0.04]))
    assert phases.count(Phase.GRASP) == 7


def test_grasp_height_moves_the_grasp_up() -> None:
    low, high = PickPlaceExpert(), PickPlaceExpert(ExpertConfig(grasp_height_m=0.03))
    for expert in (low, high):
        expert.phase = Phase.DESCEND
    eef, at = np.array([0.0, 0.0, 0.1]), np.zeros(3)
    assert high.act(eef, at, BASKET)[2] > low.act(eef, at, BASKET)[2]


def test_disturbance_repeats_with_its_seed_and_spares_the_gripper() -> None:
    action = np.array([0.9, 0, 0, 0, 0, 0, 1.0], dtype=np.float32)

    def disturbed(seed: int) -> NDArray[np.float32]:
        disturbance = Disturbance(np.random.default_rng(seed), 0.2, 0.5, 1.0)
        return np.stack([disturbance.apply(action) for _ in range(20)])

    assert np.array_equal(disturbed(3), disturbed(3))
    assert not np.array_equal(disturbed(3), disturbed(4))
    assert np.all(disturbed(3)[:, 3:] == action[3:])
    assert np.abs(disturbed(3)).max() <= 1.0
