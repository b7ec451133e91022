"""The programs of a module: specialisations of its entry for numbers of tokens, wanted rows and keys read.

A language model's step has a program for each bucket of tokens, from which the runtime takes the least that fits. All
take the same weights and states; a state goes in and comes out, and is donated. Where devices share a model, a program
is what each of them evaluates on its own parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ...ir.graph import ROLES, Graph, IRError, Module
from ...ir.ops import STATE_USES
from ...ir.target import Target
from ...ir.types import Sym, Type, symbols
from . import greedy
from .context import Context, Facts
from .linear import FEW
from .lower import lower
from .parts import Part, part_types

TOKENS = (1, FEW, 64, 512)  # buckets
SPANS = (512, 2048, 8192, 32768)  # positions up to which programs of few tokens read caches, below the whole context
ALIGNMENT = 256  # bytes, of each tensor in the weights file


@dataclass(frozen=True)
class Spec:
    """One specialisation: the values of symbols and the facts; `kind` is "step", "greedy" or "run"."""

    name: str
    kind: str
    dims: Mapping[str, int] = field(hash=False)
    facts: Facts = Facts()
    names: tuple[Sym, ...] = ()  # sizes that are known when a function is called: its text has holes for them

    def as_data(self, file: str) -> dict[str, Any]:
        found = {"file": file, "kind": self.kind, "form": self.facts.form, "span": self.facts.span, **self.dims}
        return found | ({"open": [s.name for s in self.names]} if self.names else {})


@dataclass(frozen=True)
class Input:
    """An input of the entry: the tensors that hold it whole, where those of a weight lie in the weights file, the axis
    along which devices share them, None where each has all, and of what is joined of several the rows of each."""

    name: str
    role: str
    type: Type
    parts: tuple[Part, ...]
    offsets: tuple[int, ...] = ()
    axis: int | None = None
    joined: tuple[int, ...] = ()

    def as_data(self) -> dict[str, Any]:
        tensors: list[dict[str, Any]] = [{"shape": list(p.shape), "element": p.element} for p in self.parts]
        for tensor, offset in zip(tensors, self.offsets):
            tensor["offset"] = offset
        sharding = [self.axis] * len(tensors)
        return {"name": self.name, "role": self.role, "tensors": tensors, "sharding": sharding}


@dataclass(frozen=True)
class Program:
    """A module with the specialisations that an artifact holds: `graph` is what each of `devices` that share the model
    evaluates, `whole` what one would."""

    name: str
    graph: Graph
    whole: Graph
    devices: int
    target: Target
    context: int
    slots: int
    specs: tuple[Spec, ...]
    joined: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of weights that are joined, the rows of each

    @cached_property
    def inputs(self) -> tuple[Input, ...]:
        """The weights and states, in the order in which every program takes them after the arguments."""
        found, at = [], 0
        for node, own in zip(self.whole.inputs, self.graph.inputs):
            role = node.attr("role")
            if role == "arg":
                continue
            t, of_one = (Context({"S": self.slots}).type(n.types[0]) for n in (node, own))
            parts, offsets = part_types(t), []
            for part in parts if role == "weight" else ():
                offsets.append(at)
                at += -(-part.bytes // ALIGNMENT) * ALIGNMENT
            axis = next((i for i, sizes in enumerate(zip(t.sizes, of_one.sizes)) if len(set(sizes)) > 1), None)
            name = node.attr("name")
            found.append(Input(name, role, t, parts, tuple(offsets), axis, self.joined.get(name, ())))
        return tuple(found)

    @cached_property
    def summed(self) -> frozenset[str]:
        """The matrices, as a layer calls them, whose columns devices share: what they give is to be summed."""
        return frozenset(i.name.split(".", 2)[-1] for i in self.weights if i.axis == 1)

    @property
    def weights(self) -> list[Input]:
        return [i for i in self.inputs if i.role == "weight"]

    @property
    def states(self) -> list[Input]:
        return [i for i in self.inputs if i.role == "state"]

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of the weights file."""
        ends = [i.offsets[-1] + i.parts[-1].bytes for i in self.weights]
        return -(-max(ends, default=0) // ALIGNMENT) * ALIGNMENT

    @cached_property
    def rewind(self) -> int | None:
        """How far back of its furthest position a session can always be taken; None: to any position.

        A ring of `rows` for a window must still hold the window before a position.
        """
        windows = windows_of(self.graph)
        rings = [(i.type.sizes[2], windows[i.name]) for i in self.states if windows[i.name]]
        slacks = [rows - window for rows, window in rings if rows < self.context]
        return min(slacks, default=None)

    @property
    def state_bytes(self) -> int:
        return sum(p.bytes for i in self.states for p in i.parts)

    def text(self, spec: Spec, platform: str = "") -> str:
        """The StableHLO of one specialisation, for one platform alone or for all. Raises IRError for what cannot be
        expressed."""
        context = Context(spec.dims, spec.facts, self.target.compute, platform, bool(spec.names), self.devices,
                          self.summed)  # fmt: skip
        if spec.kind == "greedy":
            return greedy.write(context, self.graph, f"{self.name} {spec.name}")
        return lower(context, self.graph, f"{self.name} {spec.name}", self.attributes(context))

    def attributes(self, context: Context) -> list[str]:
        """For each tensor that a step takes, which result shares its memory, if one does."""
        outputs: dict[str, int] = {}
        at = 0
        for name, value in zip(self.graph.output_names, self.graph.outputs):
            outputs[name] = at
            at += len(context.held(value.type))
        found = []
        for node in self.graph.inputs:
            count = len(context.held(node.types[0]))
            donated = node.attr("role") == "state"
            first = outputs[node.attr("name")] if donated else 0
            found += [f"{{tf.aliasing_output = {first + i} : i32}}" if donated else "" for i in range(count)]
        return found

    def signature(self, spec: Spec) -> dict[str, Any]:
        """Inputs and results of a specialisation of a function: names with their tensors."""
        context = Context(spec.dims, is_open=bool(spec.names))

        def described(name: str, t: Type) -> dict[str, Any]:
            tensors = [([d if isinstance(d, int) else str(d) for d in s], e) for s, e in context.held(t)]
            return {"name": name, "tensors": [{"shape": s, "element": e} for s, e in tensors]}

        names = self.graph.output_names or [f"output{i}" for i in range(len(self.graph.outputs))]
        return {
            "inputs": [described(n.attr("name"), n.types[0]) for n in self.graph.inputs if n.attr("role") == "arg"],
            "outputs": [described(n, v.type) for n, v in zip(names, self.graph.outputs)],
        }


def build(module: Module, target: Target, *, name: str, context: int, chunk: int, slots: int = 1,
          own: Module | None = None, devices: int = 1) -> Program:  # fmt: skip
    """The programs of a module after the passes; `own` is that of each of several devices. Raises IRError for an entry
    that is neither step nor run, and modules that take different weights."""
    if "step" in module.entries:
        whole, graph = (_ordered(m.entries["step"]) for m in (module, own or module))
        if [n.attr("name") for n in whole.inputs] != [n.attr("name") for n in graph.inputs]:
            raise IRError("a device's part of the model takes other weights than the whole")
        specs = step_specs(context, chunk, slots)
        return Program(name, graph, whole, devices, target, context, slots, tuple(specs), _joined(module))
    if "run" not in module.entries:
        raise IRError("a module for XLA needs an entry `step` or `run`")
    graph = _ordered(module.entries["run"])
    free = {s for n in graph.inputs for d in n.types[0].shape for s in symbols(d)}
    return Program(name, graph, graph, 1, target, 0, 1, (Spec("run", "run", {}, names=tuple(sorted(free))),))


def _joined(module: Module) -> dict[str, tuple[int, ...]]:
    """The rows of each of the weights that a prepared one is joined of."""
    prepare = module.prepare
    outputs = zip(prepare.output_names, prepare.outputs) if prepare else ()
    return {
        name: tuple(v.type.sizes[0] for v in value.node.inputs)
        for name, value in outputs if value.node.op.name in ("concat_rows", "concatenate")
    }  # fmt: skip


def _ordered(graph: Graph) -> Graph:
    """The graph with arguments first, then weights, then states."""
    return replace(graph, inputs=tuple(n for role in ROLES for n in graph.inputs_of(role)))


def step_specs(context: int, chunk: int, slots: int) -> list[Spec]:
    """Buckets of tokens of one sequence, with the logits of the last token or of all; greedy generation; and, where
    there are several slots, a token for each, and any mixture."""
    found = []
    buckets = [t for t in TOKENS if t < chunk] + [chunk]
    for tokens in buckets:
        few = tokens <= FEW
        for span in spans(context) if few else [0]:
            for rows in sorted({1, tokens}):
                facts = Facts("one", span)
                found.append(_step(tokens, rows, slots, facts))
                if tokens == 1 and slots == 1:
                    name = f"greedy{_span(span)}"
                    found.append(Spec(name, "greedy", {"T": 1, "R": 1, "S": 1}, facts))
    if slots > 1:
        found += [_step(slots, slots, slots, Facts("each", span)) for span in spans(context)]
        found += [_step(tokens, slots, slots, Facts("mixed")) for tokens in buckets if tokens > slots]
    return found


def _step(tokens: int, rows: int, slots: int, facts: Facts) -> Spec:
    name = f"{facts.form}-T{tokens}-R{rows}{_span(facts.span)}"
    return Spec(name, "step", {"T": tokens, "R": rows, "S": slots}, facts)


def _span(span: int) -> str:
    return f"-C{span}" if span else ""


def spans(context: int) -> list[int]:
    """The spans of programs of few tokens: the last is the whole context."""
    return [*(s for s in SPANS if s < context), context]


def windows_of(graph: Graph) -> dict[str, int]:
    """The window of each state of a graph by its name, 0 for none: what the ops that write it say."""
    found: dict[str, int] = {}
    source = {n[0]: n.attr("name") for n in graph.inputs_of("state")}
    for node in graph.nodes():
        inner = windows_of(node.attr("graph")) if node.op.name == "call" else {}
        for i, value in enumerate(node.inputs):
            if value not in source:
                continue
            if node.op.name == "call":
                found[source[value]] = inner[node.attr("graph").inputs[i].attr("name")]
            elif STATE_USES.get(node.op.name, {}).get(i) == "write":
                found[source[value]] = node.attr("window")
    return {n.attr("name"): found.get(n.attr("name"), 0) for n in graph.inputs_of("state")}
