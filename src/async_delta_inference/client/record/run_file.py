"""``run.yaml``: what was run, with what, on what; and whether another run would give the same episodes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from async_delta_inference.errors import ConfigError

__all__ = [
    "RUN_NAME",
    "checkpoint_fingerprint",
    "check_same_episodes",
    "computed_otherwise",
    "describe_run",
    "flat_flags",
    "read_run",
    "what_differs",
    "write_run",
]

RUN_NAME = "run.yaml"
_PACKAGES = (
    *("async-delta-inference", "lerobot", "torch", "numpy", "gymnasium", "mujoco"),
    *("hf-libero", "robosuite", "metaworld", "gym-pusht", "gym-aloha"),
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ALL_OF_IT_BYTES = 16 * 2**20
_SAMPLES = 64
_SAMPLE_BYTES = 2**16
_SAME_EPISODES = frozenset(
    [
        *("n_episodes", "output_dir", "overwrite", "resume", "check", "n_envs", "max_retries", "episode_timeout_s"),
        *("runner", "ray_address", "num_servers"),
        *(
            "transport",
            "server_address",
            "render",
            "render_device",
            "check_repeatable",
            "n_videos",
            "stop_when",
            "baseline",
            "record_dataset",
            "display_data",
            "display_ip",
            "display_port",
            "display_save",
            "save_trajectories",
            "debug_visualize_queue_size",
        ),
        *("plot_latency", "trace", "progress", "connect_timeout_s", "setup_timeout_s", "inference_timeout_s"),
        *("reconnect_timeout_s", "pretrained_name_or_path", "inference_delay_trace"),
    ]
)
"""Flags that change no episode. The checkpoint is compared by what is in it, a trace by its delays."""


def describe_run(config: Any, checkpoint: Path | None, delays: Any = None) -> dict[str, Any]:
    """Plain data for the file.

    Args:
        config: The flags.
        checkpoint: The policy's folder, where this machine has it.
        delays: Those of ``--inference_delay_trace``.
    """
    described = {
        "configuration": plain(config),
        "checkpoint": {"sha256": None if checkpoint is None else checkpoint_fingerprint(checkpoint)},
        "versions": {"python": platform.python_version()} | _versions(),
        "machine": {
            "host": platform.node(),
            "system": platform.platform(),
            "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "memory_bytes": _memory_bytes(),
        },
        "threads": _threads(),
        # Of the servers, who say it when they are reached.
        "computation": None,
    }
    if delays is not None:
        described["delays_sha256"] = hashlib.sha256(repr(delays).encode()).hexdigest()
    return described


def write_run(path: Path, described: Mapping[str, Any]) -> None:
    """Write it, as JSON where there is no YAML: every YAML reader reads that."""
    try:
        import yaml
    except ModuleNotFoundError:
        path.write_text(json.dumps(described, indent=2) + "\n")
    else:
        path.write_text(yaml.safe_dump(dict(described), sort_keys=False))


def read_run(path: Path) -> dict[str, Any]:
    """What an earlier run was.

    Raises:
        ConfigError: The file is missing, or is none.
    """
    try:
        text = path.read_text()
        try:
            import yaml
        except ModuleNotFoundError:
            read = json.loads(text)
        else:
            read = yaml.safe_load(text)
        if not isinstance(read["configuration"], dict):
            raise TypeError("its configuration is none")
    except OSError as exc:
        raise ConfigError(f"{path} cannot be read, so nobody knows what was run there: {exc.strerror}") from exc
    except Exception as exc:  # YAML's errors are not of one kind.
        raise ConfigError(f"{path} is not what a run left there: {' '.join(str(exc).split())}") from exc
    found: dict[str, Any] = read
    return found


def check_same_episodes(earlier: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    """Refuse to go on with a run whose episodes would be others.

    Raises:
        ConfigError: Names the first flag that differs, and both values.
    """
    before, after = flat_flags(earlier["configuration"]), flat_flags(now["configuration"])
    before["pretrained_name_or_path"] = _policy_of(earlier, before)
    after["pretrained_name_or_path"] = _policy_of(now, after)
    before["inference_delay_trace"], after["inference_delay_trace"] = (
        run.get("delays_sha256") for run in (earlier, now)
    )
    for flag in sorted(before.keys() | after.keys()):
        matters = flag in ("pretrained_name_or_path", "inference_delay_trace") or flag not in _SAME_EPISODES
        if matters and before.get(flag) != after.get(flag):
            raise ConfigError(
                f"--resume: {folder} holds other episodes: --{flag} was {_shown(before.get(flag))} there and is "
                f"{_shown(after.get(flag))} now; give the same, or another --output_dir"
            )


def what_differs(run: Mapping[str, Any]) -> list[str]:
    """What a run had that this process has not: packages, threads, the checkpoint's files; a line each."""
    notes = []
    for what, now in (("versions", {"python": platform.python_version()} | _versions()), ("threads", _threads())):
        before = run.get(what) or {}
        changed = [name for name in before if name in now and before[name] != now[name]]
        if changed:
            words = ", ".join(f"{name} was {before[name]} and is {now[name]}" for name in changed)
            notes.append(f"note: other {what} than in that run, and a result may depend on them: {words}")
    earlier = (run.get("checkpoint") or {}).get("sha256")
    folder = Path(str(run["configuration"].get("pretrained_name_or_path") or "")).expanduser()
    if earlier and folder.is_dir() and checkpoint_fingerprint(folder) != earlier:
        notes.append(f"note: the files in {folder} are others than in that run")
    return notes


def computed_otherwise(earlier: Sequence[Any], now: Mapping[str, Any]) -> str:
    """What is another now than when the earlier run ended, of how the policy computes, in a line; empty: nothing.

    Args:
        earlier: All ways of it, as `read_run` gives them.
        now: What a server says.
    """
    last = earlier[-1] if earlier and isinstance(earlier[-1], Mapping) else {}
    changed = [name for name in last if name in now and last[name] != now[name]]
    words = ", ".join(f"{name} was {last[name]} and is {now[name]}" for name in changed)
    return (
        f"the policy computes otherwise than in the run before, and a result may depend on it: {words}" if words else ""
    )


def checkpoint_fingerprint(folder: Path) -> str:
    """SHA-256 over the names, sizes and contents of a checkpoint's files; of large ones over many samples."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _ALL_OF_IT_BYTES:
                digest.update(file.read())
                continue
            for sample in range(_SAMPLES):
                file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def plain(value: Any) -> Any:
    """As JSON and YAML have it."""
    if is_dataclass(value) and not isinstance(value, type):
        # LeRobot's configurations say by a property which they are.
        said = getattr(value, "type", None)
        kind = {"type": said} if isinstance(said, str) else {}
        return kind | {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return plain(value.value)
    if isinstance(value, SimpleNamespace):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def flat_flags(value: Any, prefix: str = "") -> dict[str, Any]:
    """A configuration by the names that its flags have on the command line, with dots between nested ones."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {
        name: inner
        for key, part in value.items()
        for name, inner in flat_flags(part, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def _policy_of(run: Mapping[str, Any], flat: Mapping[str, Any]) -> Any:
    return (run.get("checkpoint") or {}).get("sha256") or flat.get("pretrained_name_or_path")


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _threads() -> dict[str, Any]:
    """What the environment says, which a server of a run's own inherits, and torch's number in this process."""
    torch: Any = sys.modules.get("torch")
    own = {} if torch is None else {"torch": torch.get_num_threads()}
    return {name: os.environ.get(name) for name in _THREADS} | own


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
