"""Mapped files: what was read of one does not stay in memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from inferc.compiler.mapped import let_go


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process holds in memory."""
    lines = Path("/proc/self/smaps").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return 1024 * int(next(line for line in lines[at:] if line.startswith("Rss:")).split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is in memory")
def test_what_was_read_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    want = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8)
    want.tofile(path)
    mapped = np.memmap(path, np.uint8, "r")
    view = np.asarray(mapped)[4096:].view(np.uint16)[10:]
    total = int(mapped.sum())
    assert resident(path) == 1 << 20
    let_go(view)
    assert resident(path) == 0
    assert np.array_equal(mapped, want) and int(mapped.sum()) == total


def test_arrays_of_no_file_are_left_alone() -> None:
    array = np.arange(5)
    let_go(array[1:])
    assert array.tolist() == [0, 1, 2, 3, 4]
