"""The C backend as `inferc verify` sees it: a model's program for each target, run on ids, with every value if asked.

Targets that share their passes share the module, the interpreter's results and the weights file: a `Group`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ...backends.c import evaluation, observe, program
from ...backends.c.evaluation import missing as missing
from ...backends.c.lower import LOWERINGS, Lowering
from ...backends.c.memory import state_results, storage
from ...backends.c.target import TARGETS, CTarget, named, supported
from ...ir.graph import Graph, Module, Node, Value
from ...ir.interpret import Observer, interpret
from ...ir.types import array_dtype, evaluate, f32
from ...runtime.function import DTYPES
from ..driver import Options, Plan, packed_weights, plan
from ..source import Source

PREFIX = "model"


@dataclass(frozen=True)
class Layer:
    """A call of a layer's graph, and where its first result comes from: a value of that graph, the n-th time it is
    computed."""

    name: str
    call: Node
    result: int
    value: Value
    occurrence: int


def layers_of(step: Graph) -> list[Layer]:
    """The calls of a step that give a f32 matrix beside states, in order."""
    found: list[Layer] = []
    seen = Counter[Graph]()
    for node in step.nodes():
        if node.op.name != "call":
            continue
        callee: Graph = node.attr("graph")
        states = {result for result, _ in state_results(node)}
        data = [i for i, t in enumerate(node.types) if i not in states and t.dtype == f32 and t.rank == 2]
        if data and states:
            value = storage(callee)[callee.outputs[data[0]]]
            found.append(Layer(node.origin.path or f"layers.{len(found)}", node, data[0], value, seen[callee]))
        seen[callee] += 1
    return found


def step_inputs(planned: Plan, ids: np.ndarray) -> dict[str, np.ndarray]:
    """Arguments and empty states with which a step evaluates a text at once, as the interpreter holds them."""
    states = {}
    for node in planned.module.entries["step"].inputs_of("state"):
        stored = node.types[0]
        row = stored.dtype.block_bytes if stored.dtype.is_block else 1
        shape = [evaluate(d, {"S": 1, "C": planned.context}) for d in stored.shape]
        shape[-1] = shape[-1] // stored.dtype.block * row if stored.dtype.is_block else shape[-1]
        states[node.attr("name")] = np.zeros(shape, array_dtype(stored))
    order = np.arange(len(ids), dtype=np.int32)
    return {"tokens": ids, "sequence": np.zeros_like(order), "position": order, "rows": order, **states}


def chosen(names: Sequence[str]) -> list[CTarget]:
    """Targets by the names of targets and platforms, each once; "all" is every one that this host runs, natively or
    emulated. Raises InfercError."""
    found: dict[str, CTarget] = {}
    for name in names:
        if name == "all":
            every = [*reversed(supported()), *(t for t in TARGETS.values() if t.foreign), *named("riscv64-linux")]
            found |= {t.label: t for t in every if not evaluation.missing(t)}
        else:
            found |= {t.label: t for t in named(name)}
    return list(found.values())


@dataclass
class Group:
    """Targets that run one module, which the interpreter runs too."""

    planned: Plan
    targets: tuple[CTarget, ...]
    folder: Path
    lowerings: Mapping[str, Lowering] = field(default_factory=lambda: LOWERINGS)

    SOURCE: ClassVar[str]

    @property
    def module(self) -> Module:
        return self.planned.module

    @property
    def layers(self) -> list[Layer]:
        """The layers whose results are compared."""
        return []

    @cached_property
    def weights(self) -> Path:
        """The weights file, written when it is first asked for."""
        path = self.folder / f"{self.targets[0].label}.weights"
        with path.open("wb") as file:
            for offset, array in packed_weights(self.planned, lambda what, done, total: None):
                file.seek(offset)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.truncate(self.planned.lowered.weight_bytes)
        return path

    def executable(self, target: CTarget) -> Path:
        """The target's program, exactly as an artifact has it."""
        path = self.folder / f"evaluate-{target.label}"
        if not path.exists():
            evaluation.build(self._program(target, self.lowerings), path, source=self.SOURCE)
        return path

    def observed(self, target: CTarget) -> tuple[Path, Path, dict[Node, int]]:
        """The target's program with an observer after each kernel, the file for what it tells, each node's number."""
        seen = observe.Observed(observe.values, self.lowerings)
        path, values = self.folder / f"observe-{target.label}", self.folder / f"values-{target.label}"
        evaluation.build(self._program(target, seen.lowerings), path, source=self.SOURCE)
        return path, values, {node: i for i, node in enumerate(seen.points)}

    def _program(self, target: CTarget, lowerings: Mapping[str, Lowering]) -> program.Program:
        p = self.planned
        return program.build(p.module, [target], prefix=PREFIX, context=p.context, chunk=p.chunk, name=p.source.name,
                             lowerings=lowerings)  # fmt: skip


class LanguageGroup(Group):
    """Targets of a language model, which are given token ids."""

    SOURCE = "evaluate.c"

    @cached_property
    def layers(self) -> list[Layer]:
        return layers_of(self.module.entries["step"])

    @property
    def vocabulary(self) -> int:
        return int(self.planned.source.facts()["vocab_size"])

    def interpret(self, ids: np.ndarray, observer: Observer | None = None) -> np.ndarray:
        """The interpreter's logits f32[len(ids), vocabulary] of a text from empty caches."""
        inputs = step_inputs(self.planned, ids)
        return interpret(self.module, inputs, observer=observer)["logits"]

    def run(self, target: CTarget, ids: np.ndarray, *, threads: int, step: int) -> np.ndarray:
        """The logits of a target's program."""
        return evaluation.run(self.executable(target), target, self.weights, ids, threads=threads, step=step,
                              vocabulary=self.vocabulary)  # fmt: skip

    def observe(self, target: CTarget, ids: np.ndarray, *, threads: int) -> Trace:
        """Every value that the target's program computes for a text in one evaluation."""
        path, values, points = self.observed(target)
        evaluation.run(path, target, self.weights, ids, threads=threads, step=len(ids), vocabulary=self.vocabulary,
                       values=values)  # fmt: skip
        return Trace(values, points)


class FunctionGroup(Group):
    """Targets of a function, which are given arrays: those of the signature, bf16 as bits."""

    SOURCE = "evaluate_function.c"

    @cached_property
    def _dtypes(self) -> list[np.dtype]:
        return [DTYPES[entry["dtype"]] for entry in self.planned.source.facts()["signature"]["outputs"]]

    def run(self, target: CTarget, inputs: Sequence[np.ndarray], *, threads: int) -> list[np.ndarray]:
        """The outputs of a target's program, bf16 as bits."""
        return evaluation.run_function(self.executable(target), target, self.weights, inputs, self._dtypes,
                                       threads=threads)  # fmt: skip

    def observe(self, target: CTarget, inputs: Sequence[np.ndarray], *, threads: int) -> Trace:
        """Every value that the target's program computes in one call."""
        path, values, points = self.observed(target)
        evaluation.run_function(path, target, self.weights, inputs, self._dtypes, threads=threads, values=values)
        return Trace(values, points)


class Trace:
    """What an observed program told: every data result of every kernel's call, in files."""

    def __init__(self, path: Path, points: Mapping[Node, int]) -> None:
        self._points = points
        self._told: dict[tuple[int, int], list[evaluation.Told]] = {}
        for told in evaluation.told_in(path):
            self._told.setdefault((told.point, told.result), []).append(told)
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)

    def find(self, value: Value, occurrence: int) -> np.ndarray | None:
        """The bytes of a value, the n-th time that it was computed; None where no kernel computes it."""
        told = self._told.get((self._points.get(value.node, -1), value.index), ())
        if occurrence >= len(told):
            return None
        return self._bytes[told[occurrence].offset :][: told[occurrence].size]


def groups(source: Source, targets: Sequence[CTarget], folder: Path, *, context: int | None = None, chunk: int = 1,
           kv: str = "f16", lowerings: Mapping[str, Lowering] = LOWERINGS) -> Iterator[Group]:  # fmt: skip
    """Plans the model once for all targets whose passes are alike. Raises InfercError as `driver.plan` does."""
    of = LanguageGroup if source.kind == "language" else FunctionGroup
    apart: dict[object, list[CTarget]] = {}
    for target in targets:
        apart.setdefault(replace(target.ir, name="", tuning=None), []).append(target)
    for alike in apart.values():
        options = Options(target=alike[0].name, context=context, chunk=chunk, kv=kv)
        yield of(plan(source, options), tuple(alike), folder, lowerings)
