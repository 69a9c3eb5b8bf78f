"""`Surroundings`: what stands between a session's observations, its policy and its actions."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass
from typing import Any

import torch

from async_delta_inference.errors import FeatureMismatchError, SetupRefusedError
from async_delta_inference.input_names import InputNames, input_names
from async_delta_inference.server_adapter.device import DevicePreparation
from async_delta_inference.server_adapter.image_tables import PIXELWISE_STEPS, image_tables
from async_delta_inference.server_adapter.lerobot.asking import FORGETFUL_TYPES
from async_delta_inference.server_adapter.lerobot.loading import LoadedPolicy
from async_delta_inference.server_adapter.processors import ELEMENTWISE_STEPS, Postprocessor, Preprocessor
from async_delta_inference.server_adapter.tensors import Preparation
from async_delta_inference.transport.messages import SessionSpec

__all__ = ["Surroundings", "cannot_take"]

logger = logging.getLogger(__name__)

_STATELESS_STEPS = PIXELWISE_STEPS | ELEMENTWISE_STEPS | {"SmolVLANewLineProcessor"}


@dataclass(frozen=True)
class Surroundings:
    """What stands around the policy, for sessions that observe alike and call it alike.

    Args:
        names: What the policy calls what they observe.
        prepare: From an observation to the preprocessor's input.
        preprocess: To the policy's.
        postprocess: From the policy's chunk to actions.
        processors: LeRobot's own two.
    """

    names: InputNames
    prepare: Preparation | DevicePreparation
    preprocess: Preprocessor
    postprocess: Postprocessor
    processors: tuple[Any, Any]

    @classmethod
    def of(cls, loaded: LoadedPolicy, spec: SessionSpec) -> Surroundings:
        """Made for a session.

        Raises:
            SetupRefusedError: The policy cannot take what the session observes.
        """
        try:
            names = input_names(spec.features, loaded.config.input_features or {}, spec.options.rename_map)
            _check_channels(loaded, names, spec)
            return cls._made(loaded, names, spec)
        except FeatureMismatchError as exc:
            raise SetupRefusedError(f"{loaded.identity}: {exc}") from exc
        except Exception as exc:
            raise cannot_take(loaded, spec, exc) from exc

    @classmethod
    def _made(cls, loaded: LoadedPolicy, names: InputNames, spec: SessionSpec) -> Surroundings:
        processors = _processors_of_a_session(loaded)
        shapes = {names.cameras[name]: (c, h, w) for name, (h, w, c) in spec.features.image_shapes}
        state = torch.linspace(-3, 3, spec.features.state_dim)[None]
        rest: dict[str, Any] = {key: state[:, part].clone() for key, part in names.vectors.items()} | {"task": ["a"]}
        tables = image_tables(processors[0], shapes, rest, loaded.device)
        images = {key: torch.zeros(1, *shape) for key, shape in shapes.items()}
        return cls(
            names,
            _preparation(loaded, names, tables),
            Preprocessor(processors[0], {**rest, **images}),
            Postprocessor(processors[1]),
            processors,
        )


def cannot_take(loaded: LoadedPolicy, spec: SessionSpec, exc: Exception) -> SetupRefusedError:
    """The refusal of a session whose observations the policy cannot take, for what was raised."""
    logger.info("cannot serve %s", spec, exc_info=exc)
    return SetupRefusedError(
        f"{loaded.identity} cannot take what the environment observes (cameras {dict(spec.features.images)}, a state "
        f"of {spec.features.state_dim}): {type(exc).__name__}: {exc}"
    )


def _preparation(
    loaded: LoadedPolicy, names: InputNames, tables: dict[str, torch.Tensor]
) -> Preparation | DevicePreparation:
    if loaded.device.type != "cpu" and tables:
        return DevicePreparation(names.cameras, names.vectors, tables)
    is_forgetful = loaded.identity.policy_type in FORGETFUL_TYPES
    on_cpu = {key: table.numpy() for key, table in tables.items()}
    return Preparation(names.cameras, names.vectors, on_cpu, is_forgetful=is_forgetful)


def _check_channels(loaded: LoadedPolicy, names: InputNames, spec: SessionSpec) -> None:
    """A grey image would be stretched to three channels by the statistics of three, without a word."""
    declared = loaded.config.input_features or {}
    for name, (_, _, channels) in spec.features.image_shapes:
        feature = declared.get(names.cameras[name])
        if feature is not None and len(feature.shape) == 3 and feature.shape[0] != channels:
            raise FeatureMismatchError(
                f"the environment's camera {name!r} has {channels} channels, the policy's image has shape "
                f"{tuple(feature.shape)}"
            )


def _processors_of_a_session(loaded: LoadedPolicy) -> tuple[Any, Any]:
    """Shared where no step remembers anything; else copies, made together, since steps of the two may be linked."""
    both = (loaded.preprocessor, loaded.postprocessor)
    steps = {type(step).__name__ for processor in both for step in processor.steps}
    return both if steps <= _STATELESS_STEPS else copy.deepcopy(both)
