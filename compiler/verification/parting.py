"""Where a compiled program parts from the interpreter: the first op whose inputs were equal and whose result is not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...ir.graph import Graph, Node
from ...ir.interpret import Arrays, to_array
from ...ir.types import Type, bf16
from .compare import Difference, difference, statistics_of
from .compiled import Layer, Trace


@dataclass(frozen=True)
class Parting:
    """The op, where it was traced, in which layer and in which call of its graph; the first element that differs with
    both values; how far the results are apart (None for bytes); what its operands look like."""

    op: str
    origin: str
    sources: tuple[str, ...]
    layer: str
    occurrence: int
    result: int
    type: str
    index: tuple[int, ...]
    expected: float
    found: float
    differing: int
    difference: Difference | None
    operands: tuple[dict[str, Any], ...]

    def data(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        where = f" in {self.layer}" if self.layer else ""
        lines = [f"first op that differs: {self.op} at {self.origin or 'the top'}{where}, result {self.type}"]
        at = ", ".join(map(str, self.index))
        lines.append(f"  element [{at}] is {self.found:.9g} rather than {self.expected:.9g}; {self.differing} differ")
        if self.difference:
            lines.append(f"  max abs {self.difference.max_abs:.3g}, of the norm {self.difference.norm_rel:.3g}")
        for i, facts in enumerate(self.operands):
            shown = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in facts.items())
            lines.append(f"  operand {i}: {shown}")
        return lines


class Watch:
    """Compares what programs told with what the interpreter computes, while it computes.

    Its `observe` is the interpreter's observer. `partings` has the first for each trace; `layers` the interpreter's
    results of `layers`, by name.
    """

    def __init__(self, traces: Mapping[str, Trace], layers: list[Layer]) -> None:
        self.traces, self.partings = traces, dict[str, Parting]()
        self.layers: dict[str, np.ndarray] = {}
        self._calls = {layer.call: layer for layer in layers}
        self._names: dict[Graph, list[str]] = {}
        for layer in layers:
            self._names.setdefault(layer.call.attr("graph"), []).append(layer.name)
        self._graphs = {n: g for g in self._names for n in g.nodes()}
        self._seen = Counter[Node]()

    def observe(self, node: Node, operands: Arrays, results: Arrays) -> None:
        """Sees a node that was interpreted."""
        if layer := self._calls.get(node):
            self.layers[layer.name] = results[layer.result]
        occurrence = self._seen[node]
        self._seen[node] += 1
        for name, trace in self.traces.items():
            if name in self.partings:
                continue
            for i, expected in enumerate(results):
                found = trace.find(node[i], occurrence)
                if found is not None and not same(node.types[i], expected, found):
                    self.partings[name] = self._parting(node, occurrence, i, operands, expected, found)
                    break

    def _parting(self, node: Node, occurrence: int, result: int, operands: Arrays, expected: np.ndarray,
                 raw: np.ndarray) -> Parting:  # fmt: skip
        names = self._names.get(self._graphs[node], []) if node in self._graphs else []
        layer = names[occurrence] if occurrence < len(names) else ""
        a, b = readable(node.types[result], expected, raw)
        apart = np.flatnonzero(differs(a, b))
        index = tuple(int(i) for i in np.unravel_index(apart[0], a.shape))
        return Parting(
            node.op.name, node.origin.path, tuple(sorted(node.origin.sources)), layer, occurrence, result,
            str(node.types[result]), index, float(a[index]), float(b[index]), len(apart),
            difference(a, b) if a.dtype.kind == "f" else None, tuple(statistics_of(x) for x in operands),
        )  # fmt: skip


def differs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which elements have other bits; one NaN is like another."""
    kind = f"u{a.dtype.itemsize}"
    apart = a.view(kind) != b.view(kind)
    if a.dtype.kind == "f":
        apart &= ~(np.isnan(a) & np.isnan(b))
    return np.asarray(apart).ravel()


def same(type: Type, expected: np.ndarray, raw: np.ndarray) -> bool:
    """Whether a told value's bytes are the interpreter's, NaNs alike."""
    flat = np.ascontiguousarray(expected).reshape(-1).view(np.uint8)
    if np.array_equal(flat, raw):
        return True
    return expected.dtype.kind == "f" and not differs(*readable(type, expected, raw)).any()


def readable(type: Type, expected: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both values as arrays of one shape: numbers where the type has them, else bytes. bf16 becomes f32."""
    found = to_array(type, np.array(raw)) if not type.layout and expected.nbytes == raw.size else np.array(raw)
    if found.shape != expected.shape:
        view = found.view(expected.dtype) if found.nbytes == expected.nbytes else found
        found = view.reshape(expected.shape) if view.size == expected.size else view
    if type.dtype == bf16:
        return tuple((x.astype(np.uint32) << 16).view(np.float32) for x in (expected, found))  # type: ignore[return-value]
    return np.ascontiguousarray(expected), np.ascontiguousarray(found)
