"""A compiled function: arrays in, arrays out, checked against the signature that it was compiled with."""

from __future__ import annotations

import collections
import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from ctypes import POINTER, c_char_p, c_int32, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import InfercError
from .artifact import Artifact
from .session import Opened
from .sizes import named_sizes, names_in, size_of

# By the name in a signature, the NumPy dtype; bf16 lies as its bits.
DTYPES: Mapping[str, np.dtype] = {
    "bool": np.dtype(bool), "f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"),
    "bf16": np.dtype("u2"),
    **{f"{kind}{bits}": np.dtype(f"{kind}{bits // 8}") for kind in "iu" for bits in (8, 16, 32, 64)},
}  # fmt: skip
REMEMBERED = 64  # sets of shapes of which is known what they lead to
# What is converted without asking, as JAX does: 64 bits to 32, where the values fit.
NARROWED = {"i32": "int64", "u32": "uint64", "f32": "float64"}
COMPLEX = {"f32": "c64", "f64": "c128"}  # numbers of two parts, by the dtype of a part


@dataclass(frozen=True)
class Parameter:
    """An array that goes in or comes out: its shape has numbers, names, and expressions of names.

    Complex numbers lie as pairs of real ones: `dtype` is that of each, and `shape` ends with 2.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    complex: bool = False

    def __str__(self) -> str:
        if self.complex:
            return f"{COMPLEX[self.dtype]}[{', '.join(map(str, self.shape[:-1]))}]"
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    def of(self, shape: Sequence[int]) -> str:
        """A shape of such an array, as callers have it."""
        return str(list(shape[:-1] if self.complex else shape))


class Engine(Protocol):
    """What computes: a backend's side of an opened function."""

    @property
    def target(self) -> str: ...

    def run(self, inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """Outputs of these shapes, given contiguous inputs of the right dtypes and shapes."""
        ...

    def close(self) -> None: ...


class Function:
    """A compiled function: called with what the original took, it gives what that gave, as NumPy arrays.

    Numbers are arrays of rank 0. Arrays of 64 bits are converted where the function takes 32, as JAX does; bf16 is
    taken from arrays of that name or f32, and given as f32. Threads may share a function; their calls take turns.
    """

    def __init__(self, path: Path | str, threads: int | None = None, target: str | None = None) -> None:
        """Raises InfercError if the artifact cannot be used, or holds no function."""
        self.artifact = Artifact(path)
        manifest = self.artifact.manifest
        if manifest["kind"] != "function":
            raise InfercError(f"{path} is a {manifest['kind']} model, not a function: open it with inferc.load")
        self.signature: dict[str, Any] = manifest["signature"]
        self.inputs, self.outputs = (
            tuple(Parameter(p["name"], p["dtype"], tuple(p["shape"]), p.get("complex", False))
                  for p in self.signature[key])
            for key in ("inputs", "outputs")
        )  # fmt: skip
        self._arguments: dict[str, Any] = self.signature.get("arguments") or {
            p.name: i for i, p in enumerate(self.inputs)
        }
        self._engine = ENGINES[manifest["backend"]](self.artifact, threads, target)
        self._shapes: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = {}  # of outputs, by those of inputs
        self._turn = threading.Lock()
        self._closed = False

    def __enter__(self) -> Function:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model. Further calls raise InfercError."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self._engine.close()

    @property
    def target(self) -> str:
        """The kind of CPU, or the device, that runs it."""
        return self._engine.target

    def __repr__(self) -> str:
        takes = ", ".join(f"{p.name}: {p}" for p in self.inputs)
        return f"<{self.artifact.manifest['name']}({takes}) -> {', '.join(map(str, self.outputs))}>"

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """The function's result. Raises InfercError for arguments of another structure, dtype or shape."""
        flat: list[Any] = [None] * len(self.inputs)
        for name, value in self._bound(arguments, named).items():
            _flatten(self._arguments[name], value, name, flat)
        results = self.run_flat(flat)
        if "result" not in self.signature:
            return results[0] if len(results) == 1 else tuple(results)
        return _arranged(self.signature["result"], results)

    def run_flat(self, values: Sequence[Any]) -> list[np.ndarray]:
        """The outputs in the signature's order, given the inputs in that order. Raises InfercError as a call does."""
        arrays = [_array(p, v) for p, v in zip(self.inputs, values, strict=True)]
        given = tuple([a.shape for a in arrays])
        if (shapes := self._shapes.get(given)) is None:
            dims = self._dims(arrays)
            shapes = [tuple(size_of(d, dims) for d in p.shape) for p in self.outputs]
            if len(self._shapes) == REMEMBERED:
                self._shapes.clear()
            self._shapes[given] = shapes
        with self._turn:
            if self._closed:
                raise InfercError(f"{self.artifact.path} is closed")
            results = self._engine.run(arrays, shapes)
        return [_given(p, r) for p, r in zip(self.outputs, results)]

    def _bound(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Values by the name of their parameter."""
        names = list(self._arguments)
        found = dict(zip(names, arguments))
        twice, unknown = sorted(set(found) & set(named)), sorted(set(named) - set(names))
        missing = [n for n in names if n not in found and n not in named]
        if len(arguments) > len(names) or twice or unknown or missing:
            wrong = (f"no value for {', '.join(missing)}" if missing else f"an unknown {', '.join(unknown)}" if unknown
                     else f"{', '.join(twice)} given twice" if twice else f"{len(arguments)} values")  # fmt: skip
            raise InfercError(f"{self.artifact.manifest['name']} takes ({', '.join(names)}): {wrong}")
        return found | dict(named)

    def _dims(self, arrays: Sequence[np.ndarray]) -> dict[str, int]:
        """The sizes that have names. Raises InfercError for shapes that do not agree with the signature."""
        bounds: Mapping[str, Sequence[int]] = self.signature.get("dims", {})
        for p, array in zip(self.inputs, arrays):
            if array.ndim != len(p.shape):
                raise InfercError(f"{p.name} must be {p}, not of shape {p.of(array.shape)}")
        dims = named_sizes([p.shape for p in self.inputs], [a.shape for a in arrays])
        for p, array in zip(self.inputs, arrays):
            for name in names_in(p.shape):
                low, high = bounds[name]
                if not low <= dims[name] <= high:
                    raise InfercError(f"{p.name} must be {p} with {name} from {low} to {high}, not {dims[name]}")
            expected = tuple(size_of(d, dims) for d in p.shape)
            if array.shape != expected:
                known = ", ".join(f"{k} = {v}" for k, v in dims.items())
                raise InfercError(
                    f"{p.name} must be {p}{f' with {known}' if known else ''}, not of shape {p.of(array.shape)}"
                )
        return dims


# ---- arrays and sizes -----------------------------------------------------------------------------------------------


def _array(p: Parameter, value: Any) -> np.ndarray:
    """The value as a contiguous array of the parameter's dtype."""
    wanted = DTYPES[p.dtype]
    if p.complex:
        value = _pairs(p, value)
    if isinstance(value, (bool, int, float)):
        value = np.asarray(value, np.float32 if p.dtype == "bf16" else wanted)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise InfercError(f"{p.name} must be an array {p}, not a {type(value).__name__}") from error
    if p.dtype == "bf16" and array.dtype != np.uint16:
        if array.dtype.name not in ("bfloat16", "float32"):
            raise InfercError(f"{p.name} must be bfloat16 or float32, not {array.dtype}")
        array = array.view(np.uint16) if array.dtype.name == "bfloat16" else _rounded(array)
    elif array.dtype != wanted and array.dtype.name == NARROWED.get(p.dtype):
        narrow = array.astype(wanted)
        if array.dtype.kind != "f" and not np.array_equal(narrow, array):
            raise InfercError(f"{p.name} must be {wanted.name}: some of its values need {array.dtype.name}")
        array = narrow
    if array.dtype != wanted:
        raise InfercError(f"{p.name} must be {wanted.name}, not {array.dtype}: convert it with astype")
    return array if array.flags.c_contiguous else np.array(array, order="C")


def _pairs(p: Parameter, value: Any) -> np.ndarray:
    """Complex numbers as pairs in a last axis; real ones have imaginary parts of 0."""
    array, dtype = np.asarray(value), np.dtype(f"c{2 * DTYPES[p.dtype].itemsize}")
    if array.dtype.kind not in "cfiu":
        raise InfercError(f"{p.name} must be {dtype}, not {array.dtype}: convert it with astype")
    return apart(np.asarray(array, dtype))


def apart(x: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs of real ones in a last axis."""
    return np.array(x, order="C", copy=None)[..., None].view(f"f{x.itemsize // 2}")


def together(pairs: np.ndarray) -> np.ndarray:
    """Complex numbers of pairs in a last axis."""
    whole: np.ndarray = pairs.view(f"c{2 * pairs.itemsize}")[..., 0]
    return whole


def _given(p: Parameter, result: np.ndarray) -> np.ndarray:
    """A result as callers have it."""
    if p.complex:
        return together(result)
    return _widened(result) if p.dtype == "bf16" else result


def _rounded(x: np.ndarray) -> np.ndarray:
    """f32 → the bits of the nearest bf16, ties to even; a NaN stays one."""
    bits = np.ascontiguousarray(x).reshape(x.shape).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), (bits >> np.uint32(16)) | np.uint32(0x40), rounded).astype(np.uint16)


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


# ---- structures -----------------------------------------------------------------------------------------------------
# A structure is a number, the place of an array, or {"kind", "name", "keys", "children"}.


def _flatten(tree: Any, value: Any, where: str, flat: list[Any]) -> None:
    """Puts the arrays of a value in their places. Raises InfercError where it has another structure."""
    if isinstance(tree, int):
        flat[tree] = value
        return
    for key, child, inner in zip(tree["keys"], tree["children"], _children(tree, value, where)):
        _flatten(child, inner, f"{where}.{key}", flat)


def _children(tree: Mapping[str, Any], value: Any, where: str) -> list[Any]:
    kind, keys = tree["kind"], tree["keys"]
    if kind == "none":
        fits, children = value is None, []
    elif kind == "dict":
        fits = isinstance(value, Mapping) and set(value) == set(keys)
        children = [value[k] for k in keys] if fits else []
    elif kind in ("tuple", "list", "namedtuple"):
        fits = isinstance(value, (tuple, list)) and len(value) == len(keys)
        children = list(value) if fits else []
    else:
        fits = all(hasattr(value, str(k)) for k in keys)
        children = [getattr(value, str(k)) for k in keys] if fits else []
    if not fits:
        named = f" with {', '.join(map(str, keys))}" if kind in ("dict", "object") else f" of {len(keys)}"
        wanted = "None" if kind == "none" else f"a {tree['name'] or kind}{named}"
        raise InfercError(f"{where} must be {wanted}, not a {type(value).__name__}")
    return children


def _arranged(tree: Any, arrays: Sequence[np.ndarray]) -> Any:
    """The arrays in the structure of the function's result; an object of a class of the user's becomes a dict."""
    if isinstance(tree, int):
        return arrays[tree]
    children = [_arranged(child, arrays) for child in tree["children"]]
    match tree["kind"]:
        case "none":
            return None
        case "tuple":
            return tuple(children)
        case "list":
            return children
        case "namedtuple":
            return collections.namedtuple(tree["name"], tree["keys"])(*children)  # type: ignore[misc]
    return dict(zip(tree["keys"], children))


# ---- C --------------------------------------------------------------------------------------------------------------


class _Size(ctypes.Structure):
    _fields_ = [("size", c_char_p), ("least", c_int32), ("most", c_int32)]


class _Described(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("dtype", c_int32), ("rank", c_int32), ("axes", POINTER(_Size))]


class _Signature(ctypes.Structure):
    _fields_ = [("inputs", c_int32), ("outputs", c_int32), ("input", POINTER(_Described)),
                ("output", POINTER(_Described))]  # fmt: skip


def array_struct(rank: int) -> type[ctypes.Structure]:
    """`model_array` of a library whose arrays have at most `rank` axes."""
    fields = [("data", c_void_p), ("rank", c_int32), ("dims", c_int32 * max(1, rank))]
    return type("model_array", (ctypes.Structure,), {"_fields_": fields})


class CEngine:
    """A function in C, by the described interface of its library."""

    def __init__(self, artifact: Artifact, threads: int | None = None, target: str | None = None) -> None:
        signature = artifact.manifest["signature"]
        ranks = (len(p["shape"]) for key in ("inputs", "outputs") for p in signature[key])
        self._struct = array_struct(max(ranks, default=1))
        pointer = POINTER(self._struct)
        self._model = Opened(artifact, {
            "describe_run": (POINTER(_Signature), []),
            "run_bytes": (c_size_t, [c_void_p, pointer]),
            "run": (c_int32, [c_void_p, c_void_p, c_size_t, pointer, pointer]),
        }, threads, target)  # fmt: skip
        self._dtypes = [DTYPES[p["dtype"]] for p in signature["outputs"]]
        self._arrays: dict[tuple[tuple[int, ...], ...], tuple[Any, Any, int]] = {}  # described, by the inputs' shapes

    @property
    def target(self) -> str:
        return self._model.target

    @property
    def opened(self) -> Opened:
        """The library, opened."""
        return self._model

    def run(self, inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        model = self._model
        results = [np.empty(shape, dtype) for shape, dtype in zip(shapes, self._dtypes)]
        key = tuple([a.shape for a in inputs])
        if key not in self._arrays:
            if len(self._arrays) == REMEMBERED:
                self._arrays.clear()
            arrays = self._described(inputs), self._described(results)
            self._arrays[key] = (*arrays, model.c.run_bytes(model.handle, arrays[0]))
        given, made, wanted = self._arrays[key]
        for entry, array in zip(given, inputs):
            entry.data = array.ctypes.data
        for entry, array in zip(made, results):
            entry.data = array.ctypes.data
        memory = model.reserved(wanted)
        model.check(model.c.run(model.handle, memory.ctypes.data, memory.size, given, made))
        return results

    def _described(self, arrays: Sequence[np.ndarray]) -> Any:
        """`model_array`s of these shapes, without data."""
        found = (self._struct * max(1, len(arrays)))()
        for entry, array in zip(found, arrays):
            entry.rank = array.ndim
            entry.dims[: array.ndim] = array.shape
        return found

    def close(self) -> None:
        self._model.close()


def _xla(artifact: Artifact, threads: int | None, target: str | None) -> Engine:
    from . import xla_function  # here: it imports jax

    return xla_function.Engine(artifact, threads, target)


ENGINES: Mapping[str, Callable[[Artifact, int | None, str | None], Engine]] = {"c": CEngine, "xla": _xla}
