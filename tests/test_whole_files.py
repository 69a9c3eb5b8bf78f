"""A file is there whole, or what was there before is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from async_delta_inference.whole_files import partial_path, why_not, write_whole


def test_file_is_written_and_its_folder_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    write_whole(path, lambda partial: partial.write_text("all of it"))
    assert path.read_text() == "all of it"
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


def test_writer_sees_the_ending_that_tells_the_format(tmp_path: Path) -> None:
    assert partial_path(tmp_path / "latency.png").suffix == ".png"
    assert partial_path(tmp_path / "latency.png").parent == tmp_path


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_whatever_stops_the_writer_keeps_what_was_there(tmp_path: Path, failure: BaseException) -> None:
    path = tmp_path / "file.txt"
    path.write_text("the older one")

    def stop_half_way(partial: Path) -> None:
        partial.write_text("the new")
        raise failure

    with pytest.raises(type(failure)):
        write_whole(path, stop_half_way)
    assert path.read_text() == "the older one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"]


def test_disk_that_is_full_only_when_it_is_flushed_keeps_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As over a network, and where blocks are given out late."""
    path = tmp_path / "file.txt"
    path.write_text("the older one")

    def full(descriptor: int) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="quota"):
        write_whole(path, lambda partial: partial.write_text("the new one"))
    assert path.read_text() == "the older one"


def test_reason_is_a_few_words_on_one_line() -> None:
    assert why_not(OSError(errno.ENOSPC, "No space left on device", "path")) == "No space left on device"
    assert why_not(ValueError("two\nlines")) == "ValueError: two lines"
    assert why_not(MemoryError()) == "MemoryError"
