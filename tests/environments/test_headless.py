"""Who renders is chosen before any simulator is imported, and apart from the GPUs that policies use."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from async_delta_inference.client.environments import (
    EnvironmentOptions,
    headless,
    make_environments,
    register_environment,
    registry,
)
from async_delta_inference.errors import ConfigError

VARIABLES = ("MUJOCO_GL", "DISPLAY", "CUDA_VISIBLE_DEVICES", "MUJOCO_EGL_DEVICE_ID")


class Machine:
    """What is installed, and how many devices EGL finds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.installed = {"EGL", "OSMesa"}
        self.devices = 1
        self._monkeypatch = monkeypatch
        for name in VARIABLES:
            monkeypatch.setenv(name, "")
            monkeypatch.delenv(name)

    def says(self, **variables: str | None) -> None:
        for name, value in variables.items():
            if value is not None:
                self._monkeypatch.setenv(name, value)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(headless.ctypes.util, "find_library", lambda name: name if name in machine.installed else None)
    monkeypatch.setattr(headless, "_egl_devices", lambda: machine.devices)
    return machine


@pytest.mark.parametrize(
    ("chosen", "display", "installed", "expected"),
    [
        (None, None, {"EGL", "OSMesa"}, "egl"),
        ("", None, {"EGL"}, "egl"),
        (None, None, {"OSMesa"}, "osmesa"),
        ("osmesa", None, {"EGL", "OSMesa"}, "osmesa"),
        (None, ":0", {"EGL"}, None),
        (None, None, set(), None),
    ],
)
def test_a_renderer_is_chosen_where_nobody_chose_one(
    machine: Machine, chosen: str | None, display: str | None, installed: set[str], expected: str | None
) -> None:
    machine.says(MUJOCO_GL=chosen, DISPLAY=display)
    machine.installed = installed
    headless.choose_renderer()
    assert os.environ.get("MUJOCO_GL") == expected


@pytest.mark.parametrize(
    ("chosen", "installed", "words"),
    [
        (None, set(), "nothing can render without a display: apt-get install libegl1"),
        ("osmesa", {"EGL"}, "MUJOCO_GL=osmesa needs libOSMesa.*apt-get install libosmesa6"),
        ("egl", {"OSMesa"}, "MUJOCO_GL=egl needs libEGL.*apt-get install libegl1"),
        ("glfw", {"EGL"}, "MUJOCO_GL=glfw needs a display"),
        ("off", {"EGL"}, "MUJOCO_GL=off turns rendering off"),
    ],
)
def test_what_cannot_render_is_named(machine: Machine, chosen: str | None, installed: set[str], words: str) -> None:
    machine.says(MUJOCO_GL=chosen)
    machine.installed = installed
    with pytest.raises(ConfigError, match=words):
        headless.require_renderer()


@pytest.mark.parametrize(
    ("cuda", "devices", "expected"),
    [
        (None, 1, None),
        ("", 1, "0"),
        ("1", 1, "0"),
        ("1", 2, "1"),
        ("-1", 1, "0"),
        ("MIG-0123", 1, "0"),
        ("GPU-0123,GPU-4567", 2, "0"),
        ("1,0", 2, "1"),
        ("0", 1, "0"),
    ],
)
def test_the_device_that_renders_is_not_the_policys(
    machine: Machine, cuda: str | None, devices: int, expected: str | None
) -> None:
    machine.says(CUDA_VISIBLE_DEVICES=cuda)
    machine.devices = devices
    headless.choose_renderer()
    assert os.environ.get("MUJOCO_EGL_DEVICE_ID") == expected
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == cuda


def test_the_users_device_is_taken(machine: Machine) -> None:
    machine.devices = 3
    machine.says(MUJOCO_EGL_DEVICE_ID="1", CUDA_VISIBLE_DEVICES="0")
    headless.choose_renderer()
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "1"
    headless.choose_renderer(2)
    assert os.environ["MUJOCO_EGL_DEVICE_ID"] == "2"


@pytest.mark.parametrize("device", ["1", "-1", "first"])
def test_a_device_that_is_not_there_is_refused(machine: Machine, device: str) -> None:
    machine.says(MUJOCO_EGL_DEVICE_ID=device)
    with pytest.raises(ConfigError, match=f"MUJOCO_EGL_DEVICE_ID={device} is not the number"):
        headless.choose_renderer()
    with pytest.raises(ConfigError, match="--render_device=7 is not the number"):
        headless.choose_renderer(7)


def test_cuda_is_hidden_for_a_while_only(machine: Machine) -> None:
    machine.says(CUDA_VISIBLE_DEVICES="3")
    with headless.cuda_devices_unseen():
        assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


def test_this_machine_is_asked() -> None:
    assert headless._egl_devices() >= 0


def test_whatever_the_environment_a_renderer_is_chosen_before_it_is_made(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_factories", {})
    seen: list[Any] = []

    @register_environment("anything")
    def make(config: Any) -> list[Any]:
        seen.extend(os.environ.get(name) for name in ("MUJOCO_GL", "MUJOCO_EGL_DEVICE_ID"))
        return [object()]

    machine.devices = 2
    make_environments(SimpleNamespace(type="anything"), EnvironmentOptions(render_device=1))
    assert seen == ["egl", "1"]
