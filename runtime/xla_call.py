"""A portable StableHLO artifact as a function that jax compiles and runs. The only jax interfaces used are public."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

# Element types by StableHLO's names, as jax calls them.
DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i1": "bool",
    **{f"i{n}": f"int{n}" for n in (8, 16, 32, 64)}, **{f"ui{n}": f"uint{n}" for n in (8, 16, 32, 64)},
}  # fmt: skip

TensorType = tuple[Sequence[int], str]  # shape, StableHLO's element type


def dtype_of(element: str) -> Any:
    """The jax dtype of a StableHLO element type."""
    return jnp.dtype(DTYPES[element])


def structs(types: Sequence[TensorType]) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(tuple(shape), dtype_of(element)) for shape, element in types]


def exported(code: bytes, inputs: Sequence[TensorType], outputs: Sequence[TensorType], platform: str) -> export.Exported:
    """The artifact as jax's own export of a function of these types would be: a stub whose code is replaced."""

    def stub(*_: Any) -> tuple[Any, ...]:
        return tuple(jnp.zeros(tuple(shape), dtype_of(element)) for shape, element in outputs)

    made = export.export(jax.jit(stub, keep_unused=True), platforms=[platform])(*structs(inputs))
    return dataclasses.replace(made, mlir_module_serialized=code)
