"""The programs in examples/: each is built as its first line says, and prints the same text."""

from __future__ import annotations

import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.emulation import missing

from .test_emit import emitted_as

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMPT = "Once upon a time"
STRICT = ("-Wall", "-Wextra", "-pedantic", "-Werror", "-I.")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, cwd=cwd, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@cache
def folder() -> Path:
    """One folder with a static and a shared library and their header, named as in the examples."""
    return emitted_as("model", "a", "so")


@cache
def wanted() -> str:
    """What the C example prints."""
    run(toolchain.find_compiler()[0], "-std=c11", *STRICT, EXAMPLES / "c/main.c", "libmodel.a", "-lm", "-pthread", "-o",
        "c-main", cwd=folder())  # fmt: skip
    text = run("./c-main", PROMPT, cwd=folder())
    assert len(text) > 10 and text == run("./c-main", PROMPT, cwd=folder())
    assert text != run("./c-main", "Something else", cwd=folder())
    return text


def test_examples_are_short() -> None:
    sources = sorted(EXAMPLES.glob("*/main.*"))
    assert len(sources) == 5
    for source in sources:
        assert len(source.read_text().splitlines()) <= 60, source


def test_python_needs_nothing_installed() -> None:
    command = sys.executable, "-I", "-S", EXAMPLES / "python/main.py", "./libmodel.so", PROMPT
    assert run(*command, cwd=folder()) == wanted()


def test_cpp() -> None:
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler here")
    run(compiler, "-std=c++17", *STRICT, EXAMPLES / "cpp/main.cpp", "libmodel.a", "-lm", "-pthread", "-o", "cpp-main",
        cwd=folder())  # fmt: skip
    assert run("./cpp-main", PROMPT, cwd=folder()) == wanted()


def test_rust() -> None:
    compiler = shutil.which("rustc") or pytest.skip("no rustc here")
    run(compiler, "-O", EXAMPLES / "rust/main.rs", "-L.", "-lmodel", "-C", "link-arg=-Wl,-rpath,$ORIGIN",
        "-o", "rust-main", cwd=folder())  # fmt: skip
    assert run("./rust-main", PROMPT, cwd=folder()) == wanted()


@pytest.mark.slow
def test_node() -> None:
    if reason := missing("wasm128"):
        pytest.skip(reason)
    package = emitted_as("model", "wasm")
    assert run("node", "--no-liftoff", EXAMPLES / "node/main.mjs", package / "package", PROMPT, cwd=package) == wanted()
