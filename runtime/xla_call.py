"""A portable StableHLO artifact as a function that jax compiles and runs. The only jax interfaces used are public."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import platformdirs

from ..errors import InfercError

try:
    import jax
    import jax.numpy as jnp
    from jax import export
    from jax.experimental.compilation_cache.compilation_cache import reset_cache
    from jax.extend import mlir
except ImportError as error:
    raise InfercError("this artifact runs through XLA and jax is missing: pip install jax") from error

KNOWN = (0, 10), (0, 13)  # versions of jax from the first to below the last

# Element types by StableHLO's names, as jax calls them.
DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i1": "bool",
    **{f"i{n}": f"int{n}" for n in (8, 16, 32, 64)}, **{f"ui{n}": f"uint{n}" for n in (8, 16, 32, 64)},
}  # fmt: skip

TensorType = tuple[Sequence[int], str]  # shape, StableHLO's element type


def check_version() -> None:
    """Raises InfercError for a version of jax that this runtime does not know."""
    found = jax.__version_info__[:2]
    if not KNOWN[0] <= found < KNOWN[1]:
        raise InfercError(f"XLA artifacts run with jax 0.10 to 0.12 and this is jax {jax.__version__}: install one")


def keep_compiled(folder: Path | None = None) -> None:
    """Compiled programs are kept on disk, by default in the user's cache; a folder that jax was told stays."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        chosen = folder or Path(platformdirs.user_cache_dir("inferc", appauthor=False)) / "xla"
        jax.config.update("jax_compilation_cache_dir", str(chosen))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
        reset_cache()  # which is opened, or found to be none, when jax first compiles anything


def widths(wide: bool) -> AbstractContextManager[Any]:
    """Within it jax keeps the 64 bits that a program has; else it goes by what the user told it."""
    return jax.enable_x64(True) if wide else nullcontext()


def portable(text: str, version: str) -> bytes:
    """StableHLO as a portable artifact of a version."""
    return mlir.serialize_portable_artifact(text.encode(), version)


def dtype_of(element: str) -> Any:
    """The jax dtype of a StableHLO element type."""
    return jnp.dtype(DTYPES[element])


def structs(types: Sequence[TensorType], shardings: Sequence[Any] = ()) -> list[jax.ShapeDtypeStruct]:
    """What stands for arrays of these types where a program is compiled before there are any."""
    placed = shardings or [None] * len(types)
    return [jax.ShapeDtypeStruct(tuple(s), dtype_of(e), sharding=p) for (s, e), p in zip(types, placed)]


def exported(code: bytes, inputs: Sequence[TensorType], outputs: Sequence[TensorType],
             platform: str) -> export.Exported:  # fmt: skip
    """The artifact as jax's own export of a function of these types would be: a stub whose code is replaced."""

    def stub(*_: Any) -> tuple[Any, ...]:
        return tuple(jnp.zeros(tuple(shape), dtype_of(element)) for shape, element in outputs)

    made = export.export(jax.jit(stub, keep_unused=True), platforms=[platform])(*structs(inputs))
    return dataclasses.replace(made, mlir_module_serialized=code)


# What XLA is told besides, by platform. On CPUs a library for reductions would keep weights from being unpacked where
# they are read. On TPUs a cache would be held in fast memory while a row is written and then copied back, all of it;
# and weights would be brought there in four pieces each, every one with two tables of 16 KiB among the temporaries, and
# more of them ahead than is of use.
OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cpu": {"xla_cpu_experimental_ynn_fusion_type": ""},
    "tpu": {"xla_msa_max_outstanding_evictions": "0", "xla_tpu_sliced_prefetch_max_slices": "1",
            "xla_msa_max_outstanding_prefetches": "4"},
}


@cache
def options(platform: str) -> dict[str, str | bool]:
    """The compiler options for a platform that this version of XLA knows."""
    found: dict[str, str | bool] = {}
    for name, value in OPTIONS.get(platform, {}).items():
        try:
            jax.jit(jnp.negative).lower(structs([((), "f32")])[0]).compile(compiler_options={name: value})
        except jax.errors.JaxRuntimeError:  # another version has no such option
            continue
        found[name] = value
    return found
