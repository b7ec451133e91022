"""The items of a batch one after another, where their activations are too large for the caches together.

A network of images begins with large activations and small weights and ends the other way round. Its first part, up to
where going through the weights once for each item costs more than it saves, becomes a scan over the batch, whose body
is that part for one item. Every op there gives an item from that item alone, so every bit stays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...ir.graph import Graph, Node, Value, make, make_input
from ...ir.ops import OPS
from ...ir.ops.elementwise import ELEMENTWISE
from ...ir.quant.panels import packed_bytes
from ...ir.rewrite import splat, substitute
from ...ir.types import Type

LARGE = 8 << 20  # bytes of a value that does not stay in the caches from the op that writes it to those that read it
REREAD = 0.25  # what reading a byte of weights once more costs, in bytes of activations: it is foreseen and fetched
OPENED = 80 << 10  # what one more call of a kernel costs, in bytes
KERNELS = ("patch_linear", "convolution", "reduce_window", "attention")  # whose operands are arrays in memory

SCALAR = {op.name for op in ELEMENTWISE} | {"silu", "gelu", "gelu_tanh", "softcap", "gated"}


def run(graph: Graph) -> Graph:
    """The graph with the part that is worth it as a scan over the batch."""
    batches = {n.types[0].shape[0] for n in graph.inputs_of("arg") if n.types[0].rank}
    for batch in sorted(b for b in batches if isinstance(b, int) and b > 1):
        if part := _part(graph, batch):
            return _scanned(graph, part, batch)
    return graph


# ---- which operands an op reads item by item ------------------------------------------------------------------------


def _rows(node: Node, batch: int) -> tuple[bool, ...] | None:
    """For each operand whether an item of the node's result needs only that item of it, or all of it; None where the op
    does not work item by item."""
    if len(node.types) != 1 or not _has_items(node[0], batch):
        return None
    rule = RULES.get("elementwise" if node.op.name in SCALAR else node.op.name)
    rows = rule(node) if rule else None
    fits = rows is not None and all(not row or _has_items(v, batch) for row, v in zip(rows, node.inputs))
    return rows if fits else None


def _has_items(value: Value, batch: int) -> bool:
    return value.type.rank > 0 and value.shape[0] == batch and not value.type.layout and not value.dtype.is_block


def _alone(node: Node, *names: str) -> bool:
    """Whether settings of windows leave the first axis alone."""
    none = {"low": 0, "high": 0, "interior": 0}
    return all(node.attr(name)[0] == none.get(name, 1) for name in names)


def _broadcast(node: Node) -> tuple[bool, ...]:
    return (0 in node.attr("dims") and node.inputs[0].shape[node.attr("dims").index(0)] != 1,)


def _slice(node: Node) -> tuple[bool, ...] | None:
    whole = node.attr("start")[0] == 0 and node.attr("stride")[0] == 1
    return (True,) if whole and node.types[0].shape[0] == node.inputs[0].shape[0] else None


RULES: Mapping[str, Callable[[Node], tuple[bool, ...] | None]] = {
    "elementwise": lambda n: (True,) * len(n.inputs),
    "patch_linear": lambda n: (True, False) if n.inputs[0].type.rank >= 2 + len(n.attr("window")) else None,
    "convolution": lambda n: (True, False) if n.attr("x_dims")[0] == n.attr("out_dims")[0] == 0 else None,
    "reduce_window": lambda n: (True,) if _alone(n, "window", "strides", "base_dilation", "low", "high") else None,
    "pad": lambda n: (True, False) if _alone(n, "low", "high", "interior") else None,
    "reduce": lambda n: (True,) if 0 not in n.attr("axes") else None,
    "transpose": lambda n: (True,) if n.attr("permutation")[0] == 0 else None,
    "reshape": lambda n: (True,),
    "broadcast": _broadcast,
    "slice": _slice,
    "concatenate": lambda n: (True,) * len(n.inputs) if n.attr("axis") != 0 else None,
    "layer_norm": lambda n: (True, False, False) if n.inputs[0].type.rank > 1 else None,
    "attention": lambda n: (True, True, True, *(m.shape[0] != 1 for m in n.inputs[3:])),
}  # fmt: skip


# ---- which part -----------------------------------------------------------------------------------------------------


def _part(graph: Graph, batch: int) -> set[Node]:
    """The nodes that a scan computes: of all beginnings of what works item by item, the one that saves most."""
    depends = set(graph.inputs_of("arg"))
    items = {n for n in depends if _has_items(n[0], batch)}
    found: list[Node] = []
    users: dict[Value, list[Node]] = {}
    for node in graph.nodes():
        for value in dict.fromkeys(node.inputs):
            users.setdefault(value, []).append(node)
        if node.op.name == "input" or not any(v.node in depends for v in node.inputs):
            continue
        depends.add(node)
        rows = _rows(node, batch)
        if rows is not None and all(v.node not in depends or row and v.node in items
                                    for row, v in zip(rows, node.inputs)):  # fmt: skip
            items.add(node)
            found.append(node)
    place = {node: i for i, node in enumerate(found)}
    outside = len(found)  # the place of what no beginning has
    changes = [0.0] * (outside + 1)
    for i, node in enumerate(found):
        changes[i] -= _reread(node, batch)
        readers = users.get(node[0], [])
        read = sum(n.op.name in KERNELS for n in readers)
        if read and _bytes(node[0]) > LARGE and node[0] not in graph.outputs:
            changes[max(place.get(n, outside) for n in readers)] += (1 + read) * _bytes(node[0])
    best, saved, count = 0.0, 0.0, 0
    for i in range(outside):
        saved += changes[i]
        if saved > 0 and saved >= best:
            best, count = saved, i + 1
    return set(found[:count])


def _reread(node: Node, batch: int) -> float:
    """What computing a node item by item costs, in bytes."""
    rows = _rows(node, batch)
    if node.op.name not in KERNELS or rows is None:
        return 0.0
    return batch * (REREAD * sum(_bytes(v) for row, v in zip(rows, node.inputs) if not row) + OPENED)


def _bytes(value: Value) -> int:
    size = packed_bytes(value.type) if value.type.layout else value.type.bytes
    return size if isinstance(size, int) else 0


# ---- the scan -------------------------------------------------------------------------------------------------------


def _scanned(graph: Graph, part: set[Node], batch: int) -> Graph:
    inside = {v for n in part for v in n.values}
    leaving = [v for n in graph.nodes() if n not in part for v in n.inputs if v in inside]
    results = tuple(dict.fromkeys([*leaving, *(v for v in graph.outputs if v in inside)]))
    whole: dict[Value, Node] = {}  # the body's inputs for what every item reads all of
    rows: dict[Value, Node] = {}  # and for what it reads an item of
    made: dict[Value, Value] = {}

    def given(value: Value) -> Value:
        node = value.node
        if node.op.name == "constant":
            return value
        if value not in whole:
            is_weight = node.op.name == "input" and node.attr("role") == "weight"
            name = node.attr("name") if is_weight else f"x{len(whole)}"
            whole[value] = make_input(name, "weight" if is_weight else "arg", value.type)
        return whole[value][0]

    def item(value: Value) -> Value:
        """One item of a value, as an array of one."""
        if value not in made:
            made[value] = computed(value.node) if value in inside or spread(value) else row(value)
        return made[value]

    def row(value: Value) -> Value:
        rows[value] = make_input(f"item{len(rows)}", "arg", Type(value.shape[1:], value.dtype))
        return make(OPS["reshape"], rows[value][0], shape=(1, *value.shape[1:]))[0]

    def spread(value: Value) -> bool:
        """Whether a value that depends on no item is as cheap to make as to read."""
        return value.node.op.name == "broadcast" and _rows(value.node, batch) == (False,) or splat(value) is not None

    def computed(node: Node) -> Value:
        if node.op.name == "constant":
            number = make(OPS["constant"], value=node.attr("value")[: node.types[0].dtype.block_bytes],
                          type=Type((), node.types[0].dtype))  # fmt: skip
            return make(OPS["broadcast"], number[0], shape=(1, *node.types[0].shape[1:]), dims=())[0]
        reads = _rows(node, batch)
        assert reads is not None
        attrs: dict[str, Any] = dict(node.attrs)
        for name in ("shape", "limit"):
            if name in attrs:
                attrs[name] = (1, *attrs[name][1:])
        operands = (item(v) if is_row else given(v) for is_row, v in zip(reads, node.inputs))
        return make(node.op, *operands, origin=node.origin, **attrs)[0]

    for node in graph.nodes():  # operands first
        if node in part:
            item(node[0])
    ends = tuple(make(OPS["reshape"], item(v), shape=v.shape[1:])[0] for v in results)
    body = Graph("item", (*whole.values(), *rows.values()), ends)
    scan = make(OPS["scan"], *whole, *rows, body=body, length=batch, consts=len(whole))
    return substitute(graph, _by_node(results, scan))


def _by_node(results: tuple[Value, ...], scan: Node) -> dict[Node, tuple[Value, ...]]:
    """The nodes whose values the scan gives instead; all have one value."""
    return {v.node: (scan[i],) for i, v in enumerate(results)}
