"""Programs that tell what they do, for `inferc verify` and `inferc profile`: the same calls with an observer around.

An observed program is built by giving `program.build` other lowerings. Each call of a kernel becomes a macro that calls
the kernel and then tells about it, so that nothing in the backend knows of observers, and a program without one has not
a byte of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...ir.graph import Node
from ...ir.target import Target
from .kernels import Arg, Call, DimValue, Kernel, Result
from .lower import LOWERINGS, Lowering
from .memory import state_results, storage_bytes

VALUES = Kernel("observed_values", (Path(__file__).parent / "observe_values.h").read_text("utf-8"))
TIMES = Kernel("observed_times", (Path(__file__).parent / "observe_times.h").read_text("utf-8"))

Observer = Callable[[int, Node, Call], Call]


@dataclass
class Observed:
    """Lowerings for `program.build` that put an observer around every kernel's call.

    `points` are the nodes observed: the number that the program gives with each observation is an index into them.
    """

    around: Observer
    base: Mapping[str, Lowering] = field(default_factory=lambda: LOWERINGS)
    points: list[Node] = field(default_factory=list)

    @property
    def lowerings(self) -> dict[str, Lowering]:
        return {op: self._observed(rule) for op, rule in self.base.items()}

    def _observed(self, rule: Lowering) -> Lowering:
        def lowered(node: Node, target: Target) -> Call:
            call = rule(node, target)
            self.points.append(node)
            return self.around(len(self.points) - 1, node, call)

        return lowered


def values(point: int, node: Node, call: Call) -> Call:
    """A call after which the program gives each result that is no state to `observe_value`, which the host defines."""
    states = {result for result, _ in state_results(node)}
    told = [i for i in range(len(node.types)) if i not in states and Result(i) in call.args]
    names = [f"{what}{i}" for i in told for what in ("at", "bytes")]
    extra: list[Arg] = [a for i in told for a in (Result(i), DimValue(storage_bytes(node[i])))]
    tells = "".join(f" observe_value({point}, {i}, at{i}, (size_t)(bytes{i}));" for i in told)
    name = f"observed_{point}"
    head = f"#define {name}({', '.join([*names, '...'])})"
    kernel = Kernel(name, f"{head} do {{ {call.kernel.symbol}(__VA_ARGS__);{tells} }} while (0)", (VALUES, call.kernel))
    return replace(call, kernel=kernel, args=(*extra, *call.args))


def times(point: int, node: Node, call: Call) -> Call:
    """A call whose time, and that of each thread in its parallel regions, goes into the log `inferc_observed`."""
    name = f"observed_{point}"
    text = f"#define {name}(...) do {{ const int64_t began = observed_begin({point}); " \
           f"{call.kernel.symbol}(__VA_ARGS__); observed_end({point}, began); }} while (0)"  # fmt: skip
    return replace(call, kernel=Kernel(name, text, (TIMES, call.kernel)))
