"""A function compiled for XLA: weights on a device, one program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import xla_call
from .artifact import Artifact
from .xla_call import TensorType, jax
from .xla_devices import find, groups
from .xla_engine import Weights

WIDE = ("i64", "ui64", "f64")


class Engine:
    """A function on a device; `target` is the platform that it runs on."""

    def __init__(self, artifact: Artifact, threads: int | None = None, target: str | None = None) -> None:
        """Raises InfercError for an unknown version of jax, a platform that is not here, or too little memory."""
        xla_call.check_version()
        xla_call.keep_compiled()
        self.target, devices = find(artifact.manifest["platforms"], target, artifact.path)
        (group,) = groups(devices, 1, 1, artifact.path)
        program = artifact.manifest["programs"][0]
        given, results = ([(t["shape"], t["element"]) for p in program[key] for t in p["tensors"]]
                          for key in ("inputs", "outputs"))  # fmt: skip
        weights = [t["element"] for p in artifact.manifest["inputs"] for t in p["tensors"]]
        self._wide = any(e in WIDE for e in (*(e for _, e in [*given, *results]), *weights))
        with xla_call.widths(self._wide):
            self._weights = Weights(artifact, group)
            operands: list[TensorType] = [*given, *self._weights.types("weight")]
            call = xla_call.exported(artifact.read(program["file"]), operands, results, self.target).call
            place = group.place()
            self._compiled = (
                jax.jit(call, in_shardings=(place,) * len(operands), out_shardings=(place,) * len(results))
                .lower(*xla_call.structs(operands, [place] * len(operands)))
                .compile(compiler_options=xla_call.options(self.target))
            )
        self._given = [xla_call.dtype_of(element) for _, element in given]

    def run(self, inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The outputs, given contiguous inputs of the right dtypes and shapes; bf16 is uint16 on both sides."""
        arrays = [a.view(d) if a.dtype != d else a for a, d in zip(inputs, self._given)]
        with xla_call.widths(self._wide):
            results: Sequence[Any] = self._compiled(*arrays, *self._weights.arrays)
            found = [np.asarray(r) for r in results]
        return [a.view(np.uint16) if a.dtype.name == "bfloat16" else a for a in found]

    def close(self) -> None:
        """Frees the weights."""
        self._weights.arrays = []
