"""The XLA backend as the driver sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InfercError
from ...ir.graph import Module
from ...ir.target import Target
from ...ir.types import Type
from . import embedding, greedy, mesh, program, target, tpu, triton
from .parts import device_rows, split
from .portable import VERSION, serialize
from .program import Input, Program, Spec
from .text import filled

TPU = "tpu"
PLATFORMS = ("cpu", *triton.PLATFORMS, TPU)


@dataclass(frozen=True)
class Lowered:
    """A module as programs. The weights file has each tensor of each weight, as `parts.split` gives them."""

    program: Program
    platforms: tuple[str, ...]
    shape: mesh.Mesh

    @property
    def weight_order(self) -> Sequence[tuple[str, int, int]]:
        built = self.program
        return [(i.name, i.offsets[0], i.offsets[-1] + i.parts[-1].bytes - i.offsets[0]) for i in built.weights]

    @property
    def weight_bytes(self) -> int:
        return self.program.weight_bytes

    def stored(self, name: str, offset: int, type: Type, array: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """(offset, array) of each tensor of a weight in the weights file."""
        weight = next(i for i in self.program.weights if i.name == name)
        parts = split(type, array)
        if weight.axis == 0 and len(weight.joined) > 1:
            rows = device_rows(weight.joined, self.program.devices)
            parts = [p[rows] for p in parts]
        return zip(weight.offsets, parts)

    def facts(self) -> dict[str, Any]:
        """The manifest's part: what the runtime needs to know of the programs before it loads one."""
        built = self.program
        return {
            "backend": "xla",
            "target": "xla " + ",".join(self.platforms),
            "platforms": list(self.platforms),
            "compute": str(built.target.compute),
            "slots": built.slots,
            "mesh": self.shape.as_data(),
            "kernels": [],
            "memory": {"weights": built.weight_bytes, "session": built.state_bytes // built.slots},
            "programs": [self._program(spec) for spec in built.specs],
            "inputs": [self._input(i) for i in built.inputs],
            "rewind": built.rewind,
            "greedy": {"most": greedy.MOST, "ends": greedy.ENDS},
            "stablehlo": VERSION,
        }

    def emit(self, form: str, weights: Path, folder: Path, *, name: str, embed: bool, facts: Mapping[str, Any],
             text: Path | None) -> str:  # fmt: skip
        """Writes the form "pjrt" into an empty folder; the version of StableHLO that its programs are in."""
        embedding.write(self.program, weights, folder)
        return f"StableHLO {VERSION}"

    def _input(self, i: Input) -> dict[str, Any]:
        """With how its tensors lie in a TPU's memory where programs rely on it."""
        found = i.as_data()
        own = TPU in self.platforms and self.variants and i.role == "weight"
        layouts = tpu.layouts(i.type, [p.shape for p in i.parts]) if own else None
        for tensor, layout in zip(found["tensors"], layouts or ()):
            tensor["layouts"] = {TPU: layout}
        return found

    def _program(self, spec: Spec) -> dict[str, Any]:
        found = spec.as_data(_file(spec))
        if own := self.variants.get(spec):
            found["variants"] = {platform: _file(spec, platform) for platform in own}
        return found | (self.program.signature(spec) if spec.kind == "run" else {})

    @cached_property
    def texts(self) -> Mapping[Spec, str]:
        """The StableHLO of every program, as all platforms take it."""
        return {spec: self.program.text(spec) for spec in self.program.specs}

    @cached_property
    def variants(self) -> Mapping[Spec, Mapping[str, str]]:
        """By platform the text of the programs of language models that differ for it: for GPUs those of few tokens,
        whose kernels of their own read packed weights; for TPUs all."""
        steps = [s for s in self.program.specs if s.kind != "run"]
        few = [s for s in steps if s.dims["T"] <= triton.MOST]
        found: dict[Spec, dict[str, str]] = {}
        for platform in self.platforms:
            for spec in few if platform in triton.PLATFORMS else steps if platform == TPU else ():
                text = self.program.text(spec, platform)
                if text != self.texts[spec]:
                    found.setdefault(spec, {})[platform] = text
        return found

    def _tried(self, spec: Spec, text: str) -> None:
        """Checks a text with holes at the least and the most sizes. Raises IRError where that is no program."""
        for end in ("lo", "hi"):
            serialize(filled(text, {s.name: getattr(s, end) for s in spec.names}))

    def files(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The portable artifact of every program, and the text of the first to read."""
        texts = {_file(spec): text for spec, text in self.texts.items() if not spec.names}
        for spec, own in self.variants.items():
            texts |= {_file(spec, platform): text for platform, text in own.items()}
        with ThreadPoolExecutor(2) as pool:
            files = dict(zip(texts, pool.map(serialize, texts.values())))
        spec, text = next(iter(self.texts.items()))
        if spec.names:  # it becomes a portable artifact when the sizes are known
            self._tried(spec, text)
            files[_file(spec)] = text.encode()
        else:
            files[f"xla/{spec.name}.mlir"] = text.encode()
        return files, {}


def _file(spec: Spec, platform: str = "") -> str:
    """Of the program for all platforms, or for one alone."""
    if spec.names:
        return f"xla/{spec.name}.mlir.in"
    return f"xla/{platform}/{spec.name}.vhlo" if platform else f"xla/{spec.name}.vhlo"


@dataclass(frozen=True)
class Backend:
    """The choices of a compilation for XLA."""

    ir: Target
    platforms: tuple[str, ...]
    slots: int
    shape: mesh.Mesh

    @classmethod
    def choose(cls, platforms: str, compute: str, kv: str, slots: int, shape: str, quantised: bool = False) -> Backend:
        """`platforms` are names with commas between them, `shape` is a mesh such as `tp=2,dp=4`, or "".

        Raises InfercError for what there is none of.
        """
        names = tuple(p.strip() for p in platforms.split(",") if p.strip())
        if not names or (wrong := [p for p in names if p not in PLATFORMS]):
            raise InfercError(f"there is no platform {wrong[0] if names else ''!r}: choose of {', '.join(PLATFORMS)}")
        if compute not in target.COMPUTE:
            raise InfercError(f"products cannot be computed in {compute!r}: choose one of {', '.join(target.COMPUTE)}")
        if slots < 1:
            raise InfercError(f"there must be 1 slot or more, not {slots}")
        return cls(target.target(compute, kv, quantised), names, slots, mesh.Mesh.parse(shape))

    def check(self) -> None:
        """Raises InfercError where jax is missing or of a version that this backend does not know."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            found = version("jax")
        except PackageNotFoundError as error:
            raise InfercError("the XLA backend needs jax: pip install 'inferc[compiler]'") from error
        major, minor = (int(n) for n in found.split(".")[:2])
        if not (0, 10) <= (major, minor) < (0, 13):
            raise InfercError(f"the XLA backend knows jax 0.10 to 0.12 and this is jax {found}: install one of those")

    def lower(self, module: Module, *, name: str, prefix: str, context: int, chunk: int, vocabulary: int,
              share: Callable[[int], Module]) -> Lowered:  # fmt: skip
        """The module after the passes; `vocabulary` does not matter here. Raises IRError for what cannot be expressed,
        InfercError for a mesh that does not divide the heads, and for one of a function."""
        if self.shape != mesh.Mesh() and "step" not in module.entries:
            raise InfercError(f"{name} is a function, which has no mesh: leave --mesh out")
        devices = self.shape.tp
        own = share(devices) if devices > 1 else module
        built = program.build(module, self.ir, name=name, context=context, chunk=chunk, slots=self.slots, own=own,
                              devices=devices)  # fmt: skip
        return Lowered(built, self.platforms, self.shape)
