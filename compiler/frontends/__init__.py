"""Front ends: each opens one kind of model. The table says which, by what the path looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..source import Source


@dataclass(frozen=True)
class FrontEnd:
    """`reads` tells whether a path is of this kind; `module` has `load(path) -> Source` and is imported when needed."""

    what: str
    module: str
    reads: Callable[[Path], bool]


FRONT_ENDS: tuple[FrontEnd, ...] = (
    FrontEnd("a function in a file", "jax_function", lambda path: ".py:" in path.name),
    FrontEnd("an ONNX model", "onnx_model", lambda path: path.suffix == ".onnx"),
    FrontEnd("a program of torch.export", "torch_export", lambda path: path.suffix == ".pt2"),
    FrontEnd("a Hugging Face folder", "huggingface", Path.is_dir),
    FrontEnd("a GGUF file", "gguf", lambda path: True),  # the last: its errors say what is wrong with any other file
)


# What is opened in memory, by how the module of its type begins; the last is for anything that can be called.
# `module` has `opened(object, examples, weights, dynamic) -> Source`.
OBJECTS: tuple[tuple[str, str], ...] = (("torch", "torch_export"), ("onnx", "onnx_model"), ("", "jax_function"))


def open_object(source: object, examples: tuple[Any, ...], weights: Any, dynamic: Any) -> Source:
    """Opens a model in memory. Raises InfercError as its front end does."""
    module = next(module for begin, module in OBJECTS if type(source).__module__.startswith(begin))
    made: Source = import_module(f".{module}", __package__).opened(source, examples, weights, dynamic)
    return made


def open_source(path: Path) -> Source:
    """Opens a model with the first front end that reads such a path. Raises InfercError as that front end does."""
    front_end = next(f for f in FRONT_ENDS if f.reads(path))
    source: Source = import_module(f".{front_end.module}", __package__).load(path)
    return source
