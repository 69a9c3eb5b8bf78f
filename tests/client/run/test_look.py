"""`--check`: nothing alarming of a good pair, and the fault by name of broken ones.

A pair like LIBERO's: cameras of 128 px, a state of metres and radians. The mistakes are those that LIBERO's users
report. Of two of them the table cannot know: a camera that is upside down has the right size, and a gripper whose sign
is turned has the same range where training used both ends of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from stub_environment import StubEnvironment

from async_delta_inference.client.policy_flags import PolicyFlags
from async_delta_inference.client.run.look import Finding, look_at
from async_delta_inference.transport import ObservationFeatures

NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "left", "right")
MEAN = np.array([-0.07, -0.07, 0.2, 3.14, 0.0, -0.09, 0.034, -0.034], np.float32)
STD = np.array([0.06, 0.2, 0.086, 0.01, 0.01, 0.013, 0.005, 0.004], np.float32)
START = MEAN + np.array([1, -1, 0.5, 1, 1, -1, 1, 1], np.float32) * STD


class Libero(StubEnvironment):
    def __init__(
        self, state: np.ndarray = START, side: int = 128, cameras: tuple[str, ...] = ("image", "image2")
    ) -> None:
        super().__init__()
        self.features = ObservationFeatures(
            NAMES if len(state) == 8 else tuple(f"s{i}" for i in range(len(state))),
            dict.fromkeys(cameras, (side, side, 3)),
        )
        self.action_dim = 7
        self._state = np.asarray(state, np.float32)

    def state(self) -> np.ndarray:
        return self._state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    inputs: dict[str, Any] = {f"observation.images.{name}": {"shape": [3, 128, 128]} for name in ("image", "image2")}
    inputs["observation.state"] = {"shape": [8]}
    config = {
        "type": "act",
        "input_features": inputs,
        "output_features": {"action": {"shape": [7]}},
        "chunk_size": 50,
        "n_action_steps": 50,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    ones = np.ones(7, np.float32)
    statistics = {
        "observation.state.mean": MEAN,
        "observation.state.std": STD,
        "action.min": -ones,
        "action.max": ones,
    }
    save_file(statistics, tmp_path / "policy_preprocessor_step_3_normalizer_processor.safetensors")
    return tmp_path


def warnings(
    checkpoint: Path, environment: Libero, low: float = -1.0, high: float = 1.0, **flags: Any
) -> list[Finding]:
    given = PolicyFlags(pretrained_name_or_path=str(checkpoint), **flags)
    findings = look_at(given, environment, checkpoint, (np.full(7, low), np.full(7, high)))
    return [finding for finding in findings if finding.warning]


def test_good_pair_has_nothing_alarming(checkpoint: Path) -> None:
    assert warnings(checkpoint, Libero()) == []


def changed(**elements: float) -> np.ndarray:
    state = START.copy()
    for name, value in elements.items():
        state[NAMES.index(name)] = value
    return state


@pytest.mark.parametrize(
    ("environment", "options", "what", "words"),
    [
        (Libero(changed(roll=180.0)), {}, "state", "roll is 180, in training 3.14"),
        (Libero(START[[0, 1, 2, 6, 7, 5, 3, 4]]), {}, "state", "left is 3"),
        (Libero(changed(left=0.0, right=0.0, z=1.5)), {}, "state", "z is 1.5"),
        (Libero(changed(roll=-3.14)), {}, "state", "roll is -3.14"),
        (Libero(np.append(START, 0.0)), {}, "fit", "9 elements"),
        (Libero(side=256), {}, "camera image", "--env.observation_height=128"),
        (Libero(cameras=("front", "wrist")), {}, "fit", "--rename_map="),
        (Libero(cameras=("image",)), {}, "fit", "images.image2 besides"),
        (Libero(), {"low": -0.1, "high": 0.1}, "action", "element 0 was -1 to 1 in training"),
        (Libero(), {"low": -512.0, "high": 512.0}, "action", "all actions of training lie within 0.2%"),
        (Libero(), {"actions_per_chunk": 80}, "chunk", "--actions_per_chunk=50"),
    ],
    ids=[
        "degrees for radians",
        "elements swapped",
        "element missing",
        "axis-angle of the other sign",
        "quaternion for axis-angle",
        "image size",
        "camera names",
        "camera missing",
        "bounds",
        "pixels for metres",
        "chunk",
    ],
)
def test_broken_pair_is_told_its_fault(
    checkpoint: Path, environment: Libero, options: dict[str, Any], what: str, words: str
) -> None:
    (found, *_) = warnings(checkpoint, environment, **options)
    assert found.what == what
    assert words in found.warning
