"""lerobot's own RobotClient, unmodified and in processes of their own, on a function that is served by our server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_robot import check_performed, make_robot, robots_policy

from async_delta_inference.transport import serve
from async_delta_inference.transport.testing.commands import Remote

ROBOTS = (1, 2)


@pytest.fixture
def robots(tmp_path: Path) -> Iterator[list[Remote]]:
    robots = [Remote("grpc", make_robot, number, tmp_path, preload=("fake_robot",)) for number in ROBOTS]
    yield robots
    for robot in robots:
        robot.kill()


def test_two_robots_at_once_perform_what_each_performs_alone(robots: list[Remote]) -> None:
    with serve(robots_policy(), "grpc://127.0.0.1:0", max_sessions=2) as server:
        alone = [robot.ask("run", server.uris[0]) for robot in robots]
        with ThreadPoolExecutor(len(robots)) as threads:
            together = list(threads.map(lambda robot: robot.ask("run", server.uris[0]), robots))
    for performed in (alone, together):
        for number, actions in zip(ROBOTS, performed, strict=True):
            check_performed(number, actions)


def test_robot_is_refused_by_a_policy_that_does_not_say_how_long_its_actions_are(
    robots: list[Remote],
) -> None:
    with (
        serve(lambda observation: np.zeros((1, 3), np.float32), "grpc://127.0.0.1:0") as server,
        pytest.raises(AssertionError, match="the server refused"),
    ):
        robots[0].ask("run", server.uris[0])
