"""Front ends: each opens one kind of model. The table says which, by what the path looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ...errors import InfercError
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


BOUNDED = (".onnx", ".pt2")  # files of models whose sizes have names
PACKAGES = ("onnx", "torch")  # extras of these names bring them

# What is opened in memory, by how the module of its type, or of one that that derives from, begins; the last is for
# anything that can be called.
# `module` has `opened(object, examples, weights, dynamic) -> Source`.
OBJECTS: tuple[tuple[str, str], ...] = (("torch", "torch_export"), ("onnx", "onnx_model"), ("", "jax_function"))


def open_object(source: object, examples: tuple[Any, ...], weights: Any, dynamic: Any) -> Source:
    """Opens a model in memory. Raises InfercError as its front end does."""
    origins = [cls.__module__ for cls in type(source).__mro__]
    module = next(module for begin, module in OBJECTS if any(o.startswith(begin) for o in origins))
    made: Source = _module(module).opened(source, examples, weights, dynamic)
    return made


def open_source(path: Path, **options: Any) -> Source:
    """Opens a model with the first front end that reads such a path; ONNX and torch take `bounds` of sizes by name.

    Raises InfercError as that front end does.
    """
    front_end = next(f for f in FRONT_ENDS if f.reads(path))
    source: Source = _module(front_end.module).load(path, **options)
    return source


def _module(name: str) -> Any:
    """The front end's module. Raises InfercError where the package that it reads with is missing."""
    try:
        return import_module(f".{name}", __package__)
    except ModuleNotFoundError as error:
        if error.name not in PACKAGES:
            raise
        raise InfercError(f"this model needs the package {error.name}: pip install 'inferc[{error.name}]'") from error
