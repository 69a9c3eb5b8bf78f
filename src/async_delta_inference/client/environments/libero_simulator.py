"""LIBERO's simulator with what it wastes left out; everything it computes stays bit-equal.

A hard reset builds the same XML again, compiles it, uploads every mesh and texture to a new rendering context, and
renders 28 images of which one pair is used. Here the compiled model and its rendering context are kept and put back
into the state they were in after compilation, whenever the XML is the same; and frames go through a `LiberoFrameGate`.

This is the one place that relies on private methods of robosuite 1.4 and of LIBERO's problem classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.libero_cameras import (
    LiberoFrameGate,
    any_skips_second_step,
    gated_sensor,
)
from async_delta_inference.client.environments.libero_contexts import (
    free_collected,
    free_while_current,
    make_current,
)
from async_delta_inference.errors import ConfigError

__all__ = ["CompiledModel", "LeanSimulator", "lean_simulators"]

_RELIED_ON = (
    "_add_placement_initializer",
    "_create_camera_sensors",
    "_destroy_sim",
    "_initialize_sim",
    "_reset_internal",
    "_update_observables",
)
_IMMUTABLE = ("tex_", "mesh_", "skin_", "hfield_", "flex_", "bvh_", "oct_", "text_", "names")

if TYPE_CHECKING:
    _Domain = Any
else:
    _Domain = object


@contextmanager
def lean_simulators(gate: LiberoFrameGate) -> Iterator[None]:
    """Within it, whatever LIBERO builds is a `LeanSimulator` of the given gate.

    Raises:
        ConfigError: The installed LIBERO or robosuite is not built as this module relies on.
    """
    from libero.libero.envs.bddl_base_domain import TASK_MAPPING

    originals = dict(TASK_MAPPING)
    for domain in originals.values():
        if missing := [name for name in _RELIED_ON if not hasattr(domain, name)]:
            raise ConfigError(f"the installed robosuite lacks {', '.join(missing)}: use robosuite 1.4.0 and hf-libero")
    # The class keeps its name: LIBERO compares it with the problem's.
    TASK_MAPPING.update(
        {name: type(domain.__name__, (LeanSimulator, domain), {"gate": gate}) for name, domain in originals.items()}
    )
    try:
        yield
    finally:
        TASK_MAPPING.update(originals)


class CompiledModel:
    """A compiled model as it was fresh from the compiler, and the XML it was compiled from.

    Args:
        xml: The source.
        model: A ``mujoco.MjModel``.
    """

    def __init__(self, xml: str, model: Any) -> None:
        self.xml = xml
        self._arrays = {name: array.copy() for name, array in _mutable_arrays(model)}

    def restore(self, model: Any) -> None:
        """Undo whatever an episode did to the model: moved fixtures, lit lamps, hidden sites."""
        for name, array in self._arrays.items():
            np.copyto(getattr(model, name), array)


def _mutable_arrays(model: Any) -> Iterator[tuple[str, NDArray[Any]]]:
    """Everything but meshes, textures and names, which the renderer has copied and nobody changes."""
    for name in dir(model):
        if not name.startswith(("_", *_IMMUTABLE)) and isinstance(array := getattr(model, name), np.ndarray):
            yield name, array


class LeanSimulator(_Domain):  # type: ignore[misc]
    """Goes before a LIBERO problem class."""

    gate: LiberoFrameGate
    sim: Any
    _compiled: CompiledModel | None = None
    _idle_sim: Any = None
    _context_is_old = False
    _samplers_when_built: list[Any] | None = None
    _samplers_of_a_reset: list[Any]
    object_property_initializers: list[Any]

    def begin_episode(self, episode: int) -> None:
        """The next reset is to be the ``episode``-th since the simulator was built, counted from 0, whichever it is.

        LIBERO keeps the samplers of drawers and knobs, adds them once more in every reset and asks all of them: each
        reset draws more numbers than the one before it, and so places its fixtures elsewhere.
        """
        if self._samplers_when_built is None:
            self._samplers_when_built = list(self.object_property_initializers)
        self.object_property_initializers[:] = self._samplers_when_built + self._samplers_of_a_reset * episode

    def step(self, action: Any) -> Any:
        """One control step, rendering only what the gate lets through."""
        self.gate.begin_step(self._sampled_ahead)
        return super().step(action)

    def close(self) -> None:
        """Free the model and the rendering context that resets have kept."""
        super().close()
        if self._idle_sim is not None:
            self._idle_sim.free()
            self._idle_sim = None
        free_collected()

    def _sampled_ahead(self) -> bool:
        cameras = [self._observables[f"{camera}_image"] for camera in self.camera_names]
        return any_skips_second_step(cameras, self.model_timestep, int(self.control_timestep / self.model_timestep))

    def _create_camera_sensors(self, cam_name: str, cam_w: int, cam_h: int, **kwargs: Any) -> Any:
        sensors, names = super()._create_camera_sensors(cam_name, cam_w=cam_w, cam_h=cam_h, **kwargs)
        return [
            gated_sensor(self.gate, name, self._in_own_context(sensor), (cam_h, cam_w, 3))
            for name, sensor in zip(names, sensors, strict=True)
        ], names

    def _in_own_context(self, sensor: Any) -> Any:
        """Robosuite renders in whatever context is current; with two environments alive that may be the other's."""

        def rendered(obs_cache: Any) -> Any:
            make_current(self.sim._render_context_offscreen)
            return sensor(obs_cache)

        rendered.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
        return rendered

    def _add_placement_initializer(self) -> None:
        before = len(self.object_property_initializers)
        super()._add_placement_initializer()
        self._samplers_of_a_reset = self.object_property_initializers[before:]

    def _destroy_sim(self) -> None:
        """Called first in a hard reset: keep it, the model that comes next is most likely the same."""
        if self.sim is not None:
            self._idle_sim, self.sim = self.sim, None

    def _initialize_sim(self, xml_string: str | None = None) -> None:
        xml = xml_string or self.model.get_xml()
        idle, self._idle_sim = self._idle_sim, None
        if idle is not None and self._compiled is not None and self._compiled.xml == xml:
            self._compiled.restore(idle.model._model)
            idle.reset()
            idle.forward()
            self.sim = idle
            self.initialize_time(self.control_freq)
            self._context_is_old = True
            return
        if idle is not None:
            idle.free()
            free_collected()
        super()._initialize_sim(xml_string=xml)
        self._compiled = CompiledModel(xml, self.sim.model._model)

    def _reset_internal(self) -> None:
        if self._context_is_old:
            # A new rendering context begins with this; left out, the solver's warm start would differ.
            self.sim.forward()
            self._context_is_old = False
        super()._reset_internal()
        if (context := self.sim._render_context_offscreen) is not None:
            free_while_current(context)
