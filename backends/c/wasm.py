"""A program as a WebAssembly package: the module's own exports, and the JavaScript around it."""

from __future__ import annotations

from pathlib import Path

from .program import Program


def with_glue(program: Program) -> Program:
    """The program with what JavaScript calls beside the interface."""
    return program


def write_package(program: Program, folder: Path) -> None:
    """Writes the package's files beside the module."""
