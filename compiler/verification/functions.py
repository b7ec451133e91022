"""Functions through several backends: the outputs of each beside those of the graph as it was traced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InfercError
from ...ir.graph import Module
from ...ir.interpret import interpret
from ...runtime.function import Function
from .. import driver
from ..source import Source
from . import compare
from .inputs import inputs


def outputs(source: Source, backends: Sequence[str], targets: Sequence[str],
            folder: Path) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:  # fmt: skip
    """Each run's outputs by name, and why others were left out. "reference" is the interpreter on the graph before the
    passes, "interpreter" that on the C backend's graph. Raises InfercError as compiling does."""
    signature = source.facts()["signature"]
    given = inputs(signature)
    found: dict[str, list[np.ndarray]] = {}
    left_out: dict[str, str] = {}
    if "reference" in backends:
        found["reference"] = _interpreted(source.build(0, 0), signature, given)
    if "interpreter" in backends:
        planned = driver.plan(source, driver.Options(target=targets[0]))
        found["interpreter"] = _interpreted(planned.module, signature, given)
    wanted = [(f"c/{t}", driver.Options(target=t)) for t in targets if "c" in backends]
    wanted += [("xla", driver.Options(backend="xla", platforms="cpu"))] if "xla" in backends else []
    for name, options in wanted:
        path = folder / f"{name.replace('/', '-')}.inferc"
        try:
            driver.compile_source(source, path, options)
            with Function(path) as function:
                found[name] = [np.asarray(x) for x in function.run_flat(given)]
        except InfercError as error:
            left_out[name] = str(error)
    return found, left_out


def _interpreted(module: Module, signature: dict[str, Any], given: Sequence[np.ndarray]) -> list[np.ndarray]:
    bits = [_bits(x) if entry["dtype"] == "bf16" else x for entry, x in zip(signature["inputs"], given)]
    named = {entry["name"]: x for entry, x in zip(signature["inputs"], bits)}
    results = interpret(module, named, entry="run")
    made = list(results.values()) if isinstance(results, dict) else list(results)
    return [_widened(x) if entry["dtype"] == "bf16" else x for entry, x in zip(signature["outputs"], made)]


def _bits(x: np.ndarray) -> np.ndarray:
    """bf16 as the interpreter holds it, of f32 that it can hold."""
    return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype(np.uint16)


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def difference(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> compare.Difference:
    """All outputs as one."""
    return compare.difference(*(np.concatenate([np.asarray(x, np.float32).ravel() for x in outs]) for outs in (a, b)))
