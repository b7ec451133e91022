"""Mapped files: what was read of one does not stay in memory."""

from __future__ import annotations

import subprocess
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is in memory")
def test_code_of_a_library_does_not_stay_and_comes_back() -> None:
    program = """
import numpy as np
from inferc.compiler.mapped import let_go_of_code

def resident():
    found, inside = 0, False
    for line in open("/proc/self/smaps"):
        if "-" in line.split()[0]:
            inside = "r-xp" in line and "/numpy" in line
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found

before = resident()
let_go_of_code("/numpy")
after = resident()
assert after < before / 4, (before, after)  # threads of it may run
matrix = np.random.default_rng(0).standard_normal((64, 64))
assert np.allclose(np.linalg.inv(matrix) @ matrix, np.eye(64)) and resident() > after
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is in memory")
def test_freed_memory_is_given_back() -> None:
    program = """
import numpy as np
from pathlib import Path
from inferc.compiler.mapped import give_back

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

kept = [np.ones(1 << 13, np.uint8) for _ in range(8000)]  # each too small for a mapping of its own
last = kept[-1]
before = resident()
del kept
give_back()
assert resident() < before - (1 << 25), (before, resident())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
