"""Front ends: each opens one kind of model. The table says which, by what the path looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ..source import Source


@dataclass(frozen=True)
class FrontEnd:
    """`reads` tells whether a path is of this kind; `module` has `load(path) -> Source` and is imported when needed."""

    what: str
    module: str
    reads: Callable[[Path], bool]


FRONT_ENDS: tuple[FrontEnd, ...] = (
    FrontEnd("a GGUF file", "gguf", lambda path: True),  # the last: its errors say what is wrong with any other file
)


def open_source(path: Path) -> Source:
    """Opens a model with the first front end that reads such a path. Raises InfercError as that front end does."""
    front_end = next(f for f in FRONT_ENDS if f.reads(path))
    source: Source = import_module(f".{front_end.module}", __package__).load(path)
    return source
