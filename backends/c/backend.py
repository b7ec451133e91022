"""The C backend as the driver sees it: targets for the passes, a module lowered, its library built."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...ir.graph import Module
from ...ir.target import Target
from ...ir.types import Type
from . import forms, program, target, toolchain, tuning


@dataclass(frozen=True)
class Lowered:
    """A module as C text. `weight_order` and `weight_bytes` are its weights file's, as of `program.Program`."""

    program: program.Program
    module: Module
    name: str
    context: int
    chunk: int
    vocabulary: int = 0

    @property
    def weight_order(self) -> Sequence[tuple[str, int, int]]:
        return self.program.weight_order

    @property
    def weight_bytes(self) -> int:
        return self.program.weight_bytes

    @property
    def library(self) -> str:
        """The library's name in the artifact."""
        return f"c/lib{self.program.prefix}.so"

    def facts(self) -> dict[str, Any]:
        """The manifest's part that is known before the C compiler runs."""
        built = self.program
        tunings = {t.name: tuning.tuning_of(t.ir) for t in built.targets}
        return {
            "backend": "c",
            "target": " ".join(t.name for t in built.targets),
            "variants": [{"target": t.name, "cpu_features": list(t.cpu_features)} for t in built.targets],
            "tuning": {
                "sha256": tuning.digest(tunings),
                "targets": {name: tuning.as_data(t) for name, t in tunings.items()},
            },
            "regions": dict(built.regions),
            "machine": built.targets[0].machine or target.HOST,
            "system": built.targets[0].system or ("" if built.targets[0].machine == "wasm32" else target.HOST_SYSTEM),
            "prefix": built.prefix,
            "library": self.library,
            "flags": list(toolchain.FLAGS),
            "units": {unit: list(flags) for unit, flags in built.units.items()},
            "kernels": list(built.kernels),
            "memory": dict(built.memory),
        }

    def stored(self, name: str, offset: int, type: Type, array: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """(offset, bytes) of what the weights file holds of a weight: all of it, as the passes packed it."""
        return [(offset, array)]

    def files(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The artifact's members of this backend by name, and what building them adds to the manifest.

        Raises InfercError where no C compiler is found or it fails.
        """
        with tempfile.TemporaryDirectory(prefix="inferc-") as scratch:
            library = Path(scratch) / Path(self.library).name  # which programs that link it look for
            compiler = toolchain.compile_program(self.program, library)
            sources = {f"c/{name}": text.encode() for name, text in self.program.sources.items()}
            return sources | {self.library: library.read_bytes()}, {"compiler": compiler}

    def emit(self, form: str, weights: Path, folder: Path, *, name: str, embed: bool,
             facts: Mapping[str, Any], text: Path | None) -> str:  # fmt: skip
        """Writes the files of a form that people embed, as `forms.emit`; the compiler's version."""
        return forms.emit(self.program, form, weights, folder, name=name, embed=embed, facts=facts, text=text)

    @property
    def runs_here(self) -> bool:
        """Whether this computer can run one of the library's variants."""
        here = {t.name for t in target.supported()}
        return any(not t.foreign and t.name in here for t in self.program.targets)

    def for_host(self, output: Path) -> None:
        """Writes a shared library of the same model, with the same weights file, that this computer can run."""
        built = program.build(self.module, [target.native()], prefix=self.program.prefix, context=self.context,
                              chunk=self.chunk, name=self.name, vocabulary=self.vocabulary)  # fmt: skip
        toolchain.compile_program(built, output, extra=("-O1",))  # for a few tokens; optimisation changes no bit


@dataclass(frozen=True)
class Backend:
    """The targets of one library, the best first."""

    targets: tuple[target.CTarget, ...]

    @classmethod
    def choose(cls, names: str, tunings: Path | None = None) -> Backend:
        """The targets that `names` says, as `target.choose` reads it, with block sizes from a file of `inferc tune`.

        Raises InfercError for an unknown target or a bad file.
        """
        return cls(target.choose(names, tuning.read(tunings) if tunings else None))

    @property
    def ir(self) -> Target:
        """What the passes see, the same for all targets but for the name."""
        return self.targets[0].ir

    def check(self, form: str = "so") -> None:
        """Raises InfercError where no C compiler is found, or the target has no such form, before any work is done."""
        toolchain.check(self.targets[0], form)

    def lower(self, module: Module, *, name: str, prefix: str, context: int, chunk: int, vocabulary: int,
              share: Callable[[int], Module]) -> Lowered:  # fmt: skip
        """The module after the passes as C text; arguments as of `program.build`, which says what it raises. Nothing is
        shared here."""
        built = program.build(module, self.targets, prefix=prefix, context=context, chunk=chunk, name=name,
                              vocabulary=vocabulary)  # fmt: skip
        return Lowered(built, module, name, context, chunk, vocabulary)
