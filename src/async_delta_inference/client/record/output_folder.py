"""The folder that a run writes into."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from tempfile import TemporaryFile

from async_delta_inference.errors import ConfigError

__all__ = ["default_output_dir", "make_output_dir"]


def default_output_dir(env_type: str, policy_type: str) -> Path:
    """``outputs/eval/<date>/<time>_<env>_<policy>``."""
    now = datetime.now()
    return Path("outputs/eval") / f"{now:%Y-%m-%d}" / f"{now:%H-%M-%S}_{env_type}_{policy_type}"


def make_output_dir(folder: Path) -> None:
    """Make the folder before a run, not after it.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as exc:
        raise ConfigError(f"--output_dir={folder} cannot be written to: {exc.strerror or exc}") from exc
