"""`LoadedPolicy`: a checkpoint as lerobot-eval loads it."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import draccus
import torch

from async_delta_inference.checkpoint_config import CheckpointConfig
from async_delta_inference.errors import AsyncDeltaError, SetupRefusedError
from async_delta_inference.server_adapter.lerobot.checkpoint import PolicyIdentity, file_of
from async_delta_inference.server_adapter.lerobot.episode_state import PolicyMemory
from async_delta_inference.server_adapter.lerobot.noise import RandomState, kept_random_state, random_state
from async_delta_inference.server_adapter.lerobot.old_processors import rebuilt_processors
from async_delta_inference.transport.action_prefix import PrefixLimits

__all__ = ["LoadedPolicy"]

logger = logging.getLogger(__name__)

_PREPROCESSOR, _POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"


class LoadedPolicy:
    """A policy and its processors, loaded.

    Args:
        identity: What is loaded.
        described: What its configuration's file says.
        action_dim: Length of the environment's actions.
        seed: What random numbers begin with: constructors draw.
        pinned: Whether frames may be copied out of pinned memory, where the policy is on a GPU.

    Raises:
        SetupRefusedError: It cannot be loaded; the message says why.
    """

    def __init__(
        self, identity: PolicyIdentity, described: CheckpointConfig, action_dim: int, seed: int, *, pinned: bool = True
    ) -> None:
        self.identity = identity
        self._described = described
        self._action_dim = action_dim
        self._streams: dict[int, RandomState] = {}
        with _as_refusal(identity):
            self.policy: Any = self._make(seed)
            self.config: Any = self.policy.config
            self.preprocessor, self.postprocessor = self._make_processors()
        # An adapter of PEFT's is wrapped around the policy, which is what remembers.
        unwrapped = getattr(self.policy, "get_base_model", None)
        self.memory = PolicyMemory(self.policy if unwrapped is None else unwrapped())
        self.prefix = PrefixLimits(*described.prefix_lengths)
        self.device = torch.device(self.config.device)
        self.pins_memory = pinned and self.device.type == "cuda"

    def stream(self, seed: int) -> RandomState:
        """The generators as lerobot-eval's are when its first episode begins, with this seed."""
        if seed not in self._streams:
            with kept_random_state(), _as_refusal(self.identity):
                self._make(seed)
        return self._streams[seed]

    def autocast(self) -> Any:
        """The context of an inference: mixed precision where the configuration asks for it."""
        return torch.autocast(device_type=self.device.type) if self.config.use_amp else nullcontext()

    def wait_for_device(self) -> None:
        """Until all that the policy's GPU was given has been done; for whoever measures."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _make(self, seed: int) -> Any:
        from lerobot.policies import make_policy
        from lerobot.utils.random_utils import set_seed

        if torch.device(self.identity.device).type == "cuda":
            # As lerobot-eval has it, for the whole process.
            torch.backends.cudnn.benchmark = True
            torch.backends.cuda.matmul.allow_tf32 = True
        config = self._make_config()
        set_seed(seed)
        # The renaming is ours, and so is the check of the cameras that LeRobot leaves out when there is one.
        policy = make_policy(config, env_cfg=_Environment(self._action_dim), rename_map={"": ""})
        policy.eval()
        self._streams[seed] = random_state()
        return policy

    def _make_config(self) -> Any:
        from lerobot.configs import PreTrainedConfig

        overrides = [f"--device={self.identity.device}", *(f"--{text}" for text in self.identity.overrides)]
        raw = dict(self._described.raw) | {"type": self.identity.policy_type}
        config_class: Any = PreTrainedConfig.get_choice_class(self.identity.policy_type)
        known = {field.name for field in fields(config_class)} | {"type"}
        overridden = {text.partition("=")[0] for text in self.identity.overrides}
        if wrong := sorted(name for name in overridden if name.partition(".")[0] not in known):
            raise SetupRefusedError(
                f"--policy.{wrong[0]}: a policy of type {self.identity.policy_type} has no such setting; it has "
                f"{', '.join(sorted(known - {'type'}))}"
            )
        if unknown := sorted(set(raw) - known - overridden):
            logger.warning(
                "%s: this LeRobot knows no %s: left out of its configuration", self.identity.path, ", ".join(unknown)
            )
        kept = {name: value for name, value in raw.items() if name in known - {"type"} and name not in overridden}
        # As PreTrainedConfig.from_pretrained does it, which leaves a temporary file each time.
        with tempfile.TemporaryDirectory() as folder, draccus.config_type("json"):
            file = Path(folder) / "config.json"
            file.write_text(json.dumps(kept))
            config: Any = draccus.parse(config_class, file, args=overrides)
        config.pretrained_path = Path(self.identity.path)
        return config

    def _make_processors(self) -> tuple[Any, Any]:
        from lerobot.policies import make_pre_post_processors

        path = self.identity.path
        # What is not in the folder of this machine is for LeRobot to fetch.
        file = file_of(path, _PREPROCESSOR, download=not Path(path).is_dir() and self._hub_has(_PREPROCESSOR))
        if file is None:
            weights = file_of(path, "model.safetensors")
            return rebuilt_processors(self.config, weights, path)
        steps = {
            str(step.get("registry_name") or step.get("class", "").rpartition(".")[2])
            for step in json.loads(file.read_text()).get("steps", [])
        }
        overrides: dict[str, dict[str, Any]] = {
            "device_processor": {"device": str(self.config.device)},
            "rename_observations_processor": {"rename_map": {}},
        }
        processors: tuple[Any, Any] = make_pre_post_processors(
            self.config,
            pretrained_path=path,
            preprocessor_overrides={name: value for name, value in overrides.items() if name in steps},
        )
        return processors

    def _hub_has(self, name: str) -> bool:
        """Whether the hub's checkpoint has such a file; where nobody can be asked, what is here decides."""
        from huggingface_hub import file_exists
        from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

        try:
            return file_exists(self.identity.path, name)
        except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
            return False


class _Environment:
    """The part of LeRobot's environment configuration that `make_policy` looks at: what the actions are."""

    def __init__(self, action_dim: int) -> None:
        from lerobot.configs import FeatureType, PolicyFeature

        self.features = {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))}
        self.features_map = {"action": "action"}


@contextmanager
def _as_refusal(identity: PolicyIdentity) -> Iterator[None]:
    """Whatever LeRobot raises about a checkpoint is why it is not served."""
    try:
        yield
    except AsyncDeltaError:
        raise
    except (Exception, SystemExit) as exc:
        logger.info("cannot load %s", identity, exc_info=True)
        raise SetupRefusedError(
            f"LeRobot cannot load {identity.policy_type!r} from {identity.path}: {type(exc).__name__}: {exc}"
        ) from exc
