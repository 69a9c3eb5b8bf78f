"""What stays light, and what must not be loaded twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from async_delta_inference import errors

ROOT = Path(__file__).parents[1]


def loaded_after(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import async_delta_inference",
        "import async_delta_inference.transport",
        "import async_delta_inference.client",
        "import async_delta_inference.server_adapter",
        "from async_delta_inference.transport.registry import backend; backend('shm'), backend('inproc')",
    ],
)
def test_import_is_light(statement: str) -> None:
    heavy = {"torch", "lerobot", "gymnasium", "grpc", "libero", "robosuite", "mujoco", "matplotlib", "draccus", "cv2"}
    assert loaded_after(statement) & heavy == set()


def test_transport_needs_no_more_than_its_three_packages() -> None:
    modules = loaded_after("import async_delta_inference.transport, async_delta_inference.transport.shm")
    packages = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    # cython_runtime is no package: Cython makes it inside numpy.
    allowed = {"async_delta_inference", "numpy", "msgpack", "posix_ipc", "cython_runtime"}
    found = {name for name in packages if not name.startswith("_")}
    assert found - allowed == set()


def test_no_bare_name_is_loaded() -> None:
    """With the root on sys.path the links would load a second copy whose classes differ."""
    modules = loaded_after("import async_delta_inference.client, async_delta_inference.server_adapter.cli")
    assert modules & {"transport", "client", "server_adapter"} == set()


@pytest.mark.parametrize("name", ["transport", "client", "server_adapter"])
def test_names_at_the_root_lead_into_the_package(name: str) -> None:
    assert (ROOT / name).resolve() == ROOT / "src" / "async_delta_inference" / name


def test_every_error_is_in_the_tree_and_is_the_natural_builtin() -> None:
    for name in errors.__all__:
        error = getattr(errors, name)
        assert issubclass(error, errors.AsyncDeltaError)
        assert name in (errors.__doc__ or "")
    natural = {
        errors.TransportTimeout: TimeoutError,
        errors.TransportClosed: ValueError,
        errors.PeerGoneError: ConnectionError,
        errors.PeerUnreachableError: ConnectionError,
        errors.ProtocolError: ValueError,
        errors.SetupRefusedError: ValueError,
        errors.PolicyError: RuntimeError,
        errors.ConfigError: ValueError,
        errors.MissingExtraError: ImportError,
    }
    for error, builtin in natural.items():
        assert issubclass(error, builtin)


def test_no_registry_or_machine_path_is_committed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in listed.stdout.split():
        path = ROOT / name
        if path.is_symlink() or not path.is_file() or path.suffix in {".png", ".safetensors", ".svg", ".mp4"}:
            continue
        text = path.read_text(errors="replace")
        assert "index-url" not in text.replace("no-emit-index-url", "") or path == Path(__file__), name
        assert str(ROOT) + "/" not in text, name
