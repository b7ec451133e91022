"""The weights file of a C program: its sum, weights that are built in, and weights that are refused."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from ctypes import c_void_p
from pathlib import Path

import numpy as np
import pytest

from inferc.backends.c import toolchain, weights

from .c_programs import OK, WEIGHTS, Library, build, language_model, packed_weights, toy


def plain_sum(data: bytes) -> int:
    """The sum as sum.h says it, word by word."""
    total = 0
    for index in range(0, -(-len(data) // 8)):
        word = int.from_bytes(data[8 * index : 8 * index + 8].ljust(8, b"\0"), "little")
        key = (index + 1) * weights.STEP % (1 << 64)
        low, high = (word + key) % (1 << 32), ((word >> 32) + (key >> 32)) % (1 << 32)
        total = (total + low * high) % (1 << 64)
    return total | 1


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1000, 4096])
def test_sums_of_pieces_are_the_sum(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    assert weights.sum_of([data]) == plain_sum(data)
    assert weights.sum_of([data[i : i + 13] for i in range(0, size, 13)]) == plain_sum(data)


def opened(path: Path, given: np.ndarray, **options: int) -> int:
    """The status of opening a library with these weights."""
    library = Library.__new__(Library)
    library.c, model = ctypes.CDLL(str(path)), c_void_p()
    status = library.open(given, 2, model, **options)
    if status == OK:
        library.c.model_close(model)
    return status


def test_altered_weights_are_refused(tmp_path: Path) -> None:
    module = language_model()
    built = build(module, "native")
    data = packed_weights(module, built)
    path = tmp_path / "lib.so"
    toolchain.compile_program(built.with_weights(weights.sum_of([data.tobytes()])), path)
    assert opened(path, data) == OK
    for at in (0, data.nbytes // 2, data.nbytes - 1):
        data[at] ^= 4
        assert opened(path, data) == WEIGHTS
        assert opened(path, data, unchecked=1) == OK
        data[at] ^= 4
    assert opened(path, data[:-64]) == WEIGHTS
    assert opened(path, data) == OK


@pytest.mark.parametrize("large", [False, True], ids=["", "large"])
def test_weights_are_built_in(large: bool, tmp_path: Path) -> None:
    module, plain = toy()
    data = plain.weights
    (tmp_path / "model.weights").write_bytes(data.tobytes())
    built = plain.built.with_weights(weights.sum_of([data.tobytes()]), embed=True, large=large)
    path = tmp_path / "lib.so"
    toolchain.compile_program(built, path, weights=tmp_path / "model.weights")
    library = Library(built, path, np.empty(0, np.uint8))  # opened with none of its own
    ids = list(range(20))
    assert np.array_equal(library.session(20).feed(ids, 20), plain.session(20).feed(ids, 20))
    library.close()


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_files_of_another_size_are_not_built_in(compiler: str, tmp_path: Path) -> None:
    """By either compiler's assembler, where a source's weights file is not the one that it was written with."""
    if not shutil.which(compiler):
        pytest.skip(f"no {compiler} here")
    built = toy()[1].built
    (tmp_path / "model.weights").write_bytes(bytes(1000))
    for size in (999, 1000, 1001):
        built.write(tmp_path)
        (tmp_path / "model_weights.c").write_text(weights.unit("model", size, 1, embed=True))
        command = [compiler, *toolchain.FLAGS, *toolchain.WARNINGS, "-Werror", "-c", "model_weights.c", "-o", "unit.o"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode == 0) == (size == 1000), done.stderr
