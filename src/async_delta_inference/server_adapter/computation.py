"""How a policy of torch's computes in this process, for the record of a run: where, with which numbers and settings."""

from __future__ import annotations

import platform
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from async_delta_inference.transport.computation import Computation

__all__ = ["computation_of"]

_CPU_INFO = Path("/proc/cpuinfo")
_DRIVER = Path("/sys/module/nvidia/version")


def computation_of(policy: Any, *, autocast: bool) -> Computation:
    """Of the process as it is now; None stands for what its device has not got, or nobody tells.

    Args:
        policy: A module with LeRobot's ``config``.
        autocast: Whether it is asked in mixed precision.
    """
    numbers: Counter[str] = Counter()
    device = torch.device(policy.config.device)
    for parameter in policy.parameters():
        numbers[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
        device = parameter.device
    compiled = bool(getattr(policy.config, "compile_model", False))
    return {
        "torch": str(torch.__version__),
        "device": str(device),
        **_of_device(device),
        "parameters": ", ".join(dtype for dtype, _ in numbers.most_common()) or None,
        "autocast": str(torch.get_autocast_dtype(device.type)).removeprefix("torch.") if autocast else None,
        "float32_matmul": torch.get_float32_matmul_precision(),
        "compiled": compiled,
        "compile_mode": getattr(policy.config, "compile_mode", None) if compiled else None,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


def _of_device(device: torch.device) -> dict[str, str | bool | None]:
    on_cuda = device.type == "cuda"
    cudnn: Any = torch.backends.cudnn
    return {
        "device_name": torch.cuda.get_device_name(device)
        if on_cuda
        else _processor()
        if device.type == "cpu"
        else None,
        "cuda": torch.version.cuda if on_cuda else None,
        "driver": _driver() if on_cuda else None,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32 if on_cuda else None,
        "tf32_cudnn": cudnn.allow_tf32 if on_cuda else None,
        "cudnn_benchmark": cudnn.benchmark if on_cuda else None,
        "cudnn_deterministic": cudnn.deterministic if on_cuda else None,
    }


def _processor() -> str | None:
    try:
        lines = _CPU_INFO.read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))[:256]
    except (OSError, StopIteration):
        return platform.processor() or None


def _driver() -> str | None:
    try:
        return _DRIVER.read_text().strip()[:256]
    except OSError:
        return None
