"""The C backend as `inferc verify` sees it: a model's program for each target, run on ids, with every value if asked.

Targets that share their passes share the module, the interpreter's results and the weights file: a `Group`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ...backends.c import evaluation, observe, program
from ...backends.c.lower import LOWERINGS, Lowering
from ...backends.c.memory import state_results, storage
from ...backends.c.target import TARGETS, CTarget, get, supported
from ...ir.graph import Graph, Module, Node, Value
from ...ir.interpret import Observer, interpret
from ...ir.types import array_dtype, evaluate, f32
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


def chosen(names: Sequence[str]) -> list[CTarget]:
    """Targets by name, each once; "all" is every one that this host runs, natively or emulated. Raises InfercError."""
    found: dict[str, CTarget] = {}
    for name in names:
        if name == "all":
            every = [*reversed(supported()), *(t for t in TARGETS.values() if t.foreign)]
            found |= {t.name: t for t in every if not evaluation.missing(t)}
        else:
            found[get(name).name] = get(name)
    return list(found.values())


@dataclass
class Group:
    """Targets that run one module, which the interpreter runs too."""

    planned: Plan
    targets: tuple[CTarget, ...]
    folder: Path
    lowerings: Mapping[str, Lowering] = field(default_factory=lambda: LOWERINGS)

    @property
    def module(self) -> Module:
        return self.planned.module

    @cached_property
    def layers(self) -> list[Layer]:
        return layers_of(self.module.entries["step"])

    @property
    def vocabulary(self) -> int:
        return int(self.planned.source.facts()["vocab_size"])

    @cached_property
    def weights(self) -> Path:
        """The weights file, written when it is first asked for."""
        path = self.folder / f"{self.targets[0].name}.weights"
        with path.open("wb") as file:
            for offset, array in packed_weights(self.planned, lambda what, done, total: None):
                file.seek(offset)
                file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
            file.truncate(self.planned.lowered.weight_bytes)
        return path

    def interpret(self, ids: np.ndarray, observer: Observer | None = None) -> np.ndarray:
        """The interpreter's logits f32[len(ids), vocabulary] of a text from empty caches."""
        step, count = self.module.entries["step"], len(ids)
        states = {}
        for node in step.inputs_of("state"):
            stored = node.types[0]
            row = stored.dtype.block_bytes if stored.dtype.is_block else 1
            shape = [evaluate(d, {"S": 1, "C": self.planned.context}) for d in stored.shape]
            shape[-1] = shape[-1] // stored.dtype.block * row if stored.dtype.is_block else shape[-1]
            states[node.attr("name")] = np.zeros(shape, array_dtype(stored))
        order = np.arange(count, dtype=np.int32)
        inputs = {"tokens": ids, "sequence": np.zeros_like(order), "position": order, "rows": order, **states}
        return interpret(self.module, inputs, observer=observer)["logits"]

    def run(self, target: CTarget, ids: np.ndarray, *, threads: int, step: int) -> np.ndarray:
        """The logits of a target's program, exactly as an artifact has it."""
        path = self.folder / f"evaluate-{target.name}"
        if not path.exists():
            evaluation.build(self._program(target, self.lowerings), path)
        return evaluation.run(path, target, self.weights, ids, threads=threads, step=step, vocabulary=self.vocabulary)

    def observe(self, target: CTarget, ids: np.ndarray, *, threads: int) -> Trace:
        """Every value that the target's program computes for a text in one evaluation."""
        observed = observe.Observed(observe.values, self.lowerings)
        path, values = self.folder / f"observe-{target.name}", self.folder / f"values-{target.name}"
        evaluation.build(self._program(target, observed.lowerings), path)
        logits = evaluation.run(path, target, self.weights, ids, threads=threads, step=len(ids),
                                vocabulary=self.vocabulary, values=values)  # fmt: skip
        return Trace(values, {node: i for i, node in enumerate(observed.points)}, logits)

    def _program(self, target: CTarget, lowerings: Mapping[str, Lowering]) -> program.Program:
        p = self.planned
        return program.build(p.module, [target], prefix=PREFIX, context=p.context, chunk=p.chunk, name=p.source.name,
                             lowerings=lowerings)  # fmt: skip


class Trace:
    """What an observed program told: every data result of every kernel's call, in files."""

    def __init__(self, path: Path, points: Mapping[Node, int], logits: np.ndarray) -> None:
        self.logits = logits
        self._points, self._path = points, path
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


def groups(source: Source, targets: Sequence[CTarget], folder: Path, *, context: int, chunk: int, kv: str,
           lowerings: Mapping[str, Lowering] = LOWERINGS) -> Iterator[Group]:  # fmt: skip
    """Plans the model once for all targets whose passes are alike. Raises InfercError as `driver.plan` does."""
    apart: dict[object, list[CTarget]] = {}
    for target in targets:
        apart.setdefault(replace(target.ir, name="", tuning=None), []).append(target)
    for alike in apart.values():
        options = Options(target=alike[0].name, context=context, chunk=chunk, kv=kv)
        yield Group(plan(source, options), tuple(alike), folder, lowerings)

