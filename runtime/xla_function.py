"""A function compiled for XLA: weights on a device, a program for each set of sizes that it is called with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from . import xla_call
from .artifact import Artifact
from .sizes import filled, named_sizes, size_of
from .xla_call import TensorType, jax
from .xla_devices import find, groups
from .xla_engine import Weights

WIDE = ("i64", "ui64", "f64")
REMEMBERED = 64  # programs that are kept, one for each set of sizes


class Engine:
    """A function on a device; `target` is the platform that it runs on.

    A function whose sizes are fixed has one program, compiled when it is opened. One with sizes that are known when it
    is called has a text with holes: what that becomes is compiled at the first call with each set of sizes, and jax
    keeps it in the user's cache.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None, target: str | None = None) -> None:
        """Raises InfercError for an unknown version of jax, a platform that is not here, or too little memory."""
        xla_call.check_version()
        xla_call.keep_compiled()
        self.target, devices = find(artifact.manifest["platforms"], target, artifact.path)
        (group,) = groups(devices, 1, 1, artifact.path)
        program = artifact.manifest["programs"][0]
        self._given, self._results = ([(t["shape"], t["element"]) for p in program[key] for t in p["tensors"]]
                                      for key in ("inputs", "outputs"))  # fmt: skip
        weights = [t["element"] for p in artifact.manifest["inputs"] for t in p["tensors"]]
        self._wide = any(e in WIDE for e in (*(e for _, e in [*self._given, *self._results]), *weights))
        with xla_call.widths(self._wide):
            self._weights = Weights(artifact, group)
        self._place = group.place()
        self._dtypes = [xla_call.dtype_of(element) for _, element in self._given]
        self._code, self._version = artifact.read(program["file"]), artifact.manifest["stablehlo"]
        self._programs: dict[tuple[tuple[int, ...], ...], Any] = {}
        self._is_open = bool(program.get("open"))
        if not self._is_open:
            self._programs[tuple(tuple(s) for s, _ in self._given)] = self._compiled({})

    def _compiled(self, dims: dict[str, int]) -> Any:
        """The program for these sizes."""
        code = self._code
        if self._is_open:
            code = xla_call.portable(filled(code.decode(), dims), self._version)
        given, results = ([([size_of(d, dims) for d in s], e) for s, e in types]
                          for types in (self._given, self._results))  # fmt: skip
        with xla_call.widths(self._wide):
            operands: list[TensorType] = [*given, *self._weights.types("weight")]
            call = xla_call.exported(code, operands, results, self.target).call
            place = self._place
            return (
                jax.jit(call, in_shardings=(place,) * len(operands), out_shardings=(place,) * len(results))
                .lower(*xla_call.structs(operands, [place] * len(operands)))
                .compile(compiler_options=xla_call.options(self.target))
            )

    def run(self, inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
        """The outputs, given contiguous inputs of the right dtypes and shapes; bf16 is uint16 on both sides."""
        sizes = tuple([a.shape for a in inputs])
        if sizes not in self._programs:
            if len(self._programs) == REMEMBERED:
                del self._programs[next(iter(self._programs))]
            self._programs[sizes] = self._compiled(named_sizes([s for s, _ in self._given], sizes))
        arrays = [a.view(d) if a.dtype != d else a for a, d in zip(inputs, self._dtypes)]
        with xla_call.widths(self._wide):
            results: Sequence[Any] = self._programs[sizes](*arrays, *self._weights.arrays)
            found = [np.asarray(r) for r in results]
        return [a.view(np.uint16) if a.dtype.name == "bfloat16" else a for a in found]

    def close(self) -> None:
        """Frees the weights and the programs."""
        self._weights.arrays = []
        self._programs = {}
