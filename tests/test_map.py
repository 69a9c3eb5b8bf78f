"""The map in CONTRIBUTING.md is complete, and names nothing that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = "src/async_delta_inference"
LINE = re.compile(r"( *)([\w./]+(?:, [\w./]+)*)(?: {2,}(\S.*))?")
UNNAMED = {"__init__.py", "__main__.py"}
"""What every package may have."""


def map_lines() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    _, _, after = text.partition("## The map of the house")
    _, block, _ = after.split("```", 2)
    return block.strip("\n").split("\n")


def places(lines: Iterable[str]) -> dict[str, str]:
    """Every path on the map, folders without their slash, and what is said of it."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in lines:
        match = LINE.fullmatch(line)
        assert match is not None, f"not a line of the map: {line!r}"
        indentation, names, purpose = match.groups()
        depth, rest = divmod(len(indentation), 4)
        assert rest == 0, f"indented by other than four spaces: {line!r}"
        assert depth <= len(folders), f"in no folder: {line!r}"
        del folders[depth:]
        for name in names.split(", "):
            found["/".join([*folders, name.rstrip("/")])] = purpose or ""
        if names.endswith("/"):
            folders.append(names.rstrip("/"))
    return found


def missing(lines: Iterable[str], files: Iterable[Path]) -> list[str]:
    """Modules and packages that have no line; a folder without lines below it may tell its files in its own."""
    mapped = places(lines)
    parents = {path.rpartition("/")[0] for path in mapped}
    found = []
    for file in files:
        path = file.as_posix()
        folder, _, name = path.rpartition("/")
        told_by_folder = folder not in parents and name in re.findall(r"\w+\.py", mapped.get(folder, ""))
        if path not in mapped and not told_by_folder:
            found.append(path)
    return found


def source_files() -> list[Path]:
    modules = [path.relative_to(ROOT) for path in (ROOT / SOURCE).rglob("*.py") if path.name not in UNNAMED]
    packages = [path.parent.relative_to(ROOT) for path in (ROOT / SOURCE).rglob("__init__.py")]
    return sorted([*modules, *packages])


def test_every_module_is_on_the_map() -> None:
    assert missing(map_lines(), source_files()) == []


def test_everything_on_the_map_is_there() -> None:
    lines = map_lines()
    assert [path for path in places(lines) if not (ROOT / path).exists()] == []
    told = [name for line in lines for name in re.findall(r"\w+\.py\b", line)]
    names = {path.name for path in source_files()}
    assert [name for name in told if name not in names] == []


def test_everything_on_the_map_has_a_purpose() -> None:
    assert [path for path, purpose in places(map_lines()).items() if not purpose and path != SOURCE] == []


def test_whatever_the_map_leaves_out_is_found() -> None:
    for file in source_files():
        lines = [re.sub(rf"(?<!\w){re.escape(file.name)}", "other", line) for line in map_lines()]
        assert file.as_posix() in missing(lines, [file]), file
        newcomer = file.with_name("newcomer.py")
        assert missing(map_lines(), [newcomer]) == [newcomer.as_posix()]
