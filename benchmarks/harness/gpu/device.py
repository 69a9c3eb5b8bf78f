"""The device that policies run on: whether there is one, and what it is."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from typing import Any

import torch

from async_delta_inference.errors import ConfigError
from harness.machine import describe_machine

__all__ = ["check_device", "describe_device_and_machine", "precision_flags"]

_QUERY_TIMEOUT_S = 20.0
_DRIVER_FIELDS = {
    "driver": "driver_version",
    "most_sm_clock": "clocks.max.sm",
    "power_limit": "power.limit",
    "pcie_generation": "pcie.link.gen.max",
    "pcie_lanes": "pcie.link.width.max",
}
"""Names in the results, and those of ``nvidia-smi``, which writes the units after the values."""


def check_device(name: str) -> torch.device:
    """The device of this name.

    Raises:
        ConfigError: There is none.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("torch finds no CUDA device here: --device=cpu tries everything out, with figures of no use")
    return device


def describe_device_and_machine(device: torch.device) -> dict[str, Any]:
    """The machine, and of a GPU its name, memory, driver and libraries; what is not known is None."""
    described: dict[str, Any] = {
        **describe_machine(),
        "device": str(device),
        "usable_cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = {
            "name": properties.name,
            "memory_gb": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            **_driver(),
        }
    return described


def precision_flags() -> dict[str, bool]:
    """As loading a policy has set them in this process."""
    return {
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
    }


def _driver() -> dict[str, str | None]:
    """What ``nvidia-smi`` says of the first GPU."""
    values: list[str] = []
    if (command := shutil.which("nvidia-smi")) is not None:
        arguments = [command, f"--query-gpu={','.join(_DRIVER_FIELDS.values())}", "--format=csv,noheader"]
        with suppress(OSError, subprocess.TimeoutExpired):  # Not known, then.
            asked = subprocess.run(arguments, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S, check=False)
            values = [value.strip() for value in asked.stdout.partition("\n")[0].split(",")]
    if len(values) != len(_DRIVER_FIELDS):
        values = []
    return {name: values[i] if values else None for i, name in enumerate(_DRIVER_FIELDS)}
