"""Ops that one kernel computes together, as `fused`: what follows a product element by element, chains and broadcasts,
and what a reduction or a move reads. Every bit stays."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.graph import Graph, Module, Node, Value, make, make_input, map_graphs
from ...ir.ops import OPS
from ...ir.ops.elementwise import ELEMENTWISE
from ...ir.ops.fused import channels_last
from ...ir.rewrite import splat, substitute
from ...ir.target import Target
from ...ir.types import f32
from . import images

SCALAR = {op.name for op in ELEMENTWISE} | {"silu", "gelu", "gelu_tanh", "softcap", "gated"}
MOVES = {"transpose", "slice", "pad", "reverse"}  # each element is read at most once
SPREAD = {"broadcast", "reshape"}
LARGEST = 24  # ops of a group


def run(module: Module, target: Target) -> Module:
    """Groups in the graphs of functions; a language model's step has kernels of its own."""
    if "fused" not in target.fusions or "step" in module.entries:
        return module
    return map_graphs(map_graphs(module, images.run), _grouped)


def _plain(node: Node) -> bool:
    return all(not v.dtype.is_block and not v.type.layout for v in (*node.inputs, *node.values))


def _grouped(graph: Graph) -> Graph:
    order = list(graph.nodes())
    users: dict[Value, list[Node]] = {}
    for node in order:
        for value in node.inputs:
            users.setdefault(value, []).append(node)
    outputs = set(graph.outputs)
    root: dict[Node, Node] = {}  # the last op of the group that a node belongs to
    members: dict[Node, list[Node]] = {}
    anchored: set[Node] = set()
    exact: dict[Node, bool] = {}  # whether a member's elements are where the root's are
    views = {last: nodes for node in order if node.op.name == "attention"
             for last, nodes in (_with_views(node, users, outputs),)}  # fmt: skip
    taken = {n for nodes in views.values() for n in nodes}
    for node in reversed(order):
        if node.op.name in ("input", "constant") or node in taken:
            continue
        target = _joinable(node, users, outputs, root, members, anchored, exact)
        if target is not None:
            root[node] = target
            members[target].append(node)
            exact[node] = node.types[0].shape == target.types[0].shape and all(
                exact[u] and u.op.name in SCALAR for u in users[node[0]])  # fmt: skip
            if node.op.name in ANCHORS or node.op.name == "convolution":
                anchored.add(target)
        elif node.op.name in SCALAR | MOVES | {"reduce"} and _plain(node) and len(node.types) == 1:
            root[node], members[node], exact[node] = node, [node], True
    replaced = {r: (_fused(r, nodes),) for r, nodes in members.items() if _worth(nodes)}
    # An attention reads its mask where it lies, if all of it is one number too.
    replaced |= {last: (_fused(last, nodes, numbers=False),) for last, nodes in views.items() if len(nodes) > 1}
    return substitute(graph, replaced)


def _keeps_rows(node: Node) -> bool:
    """Whether a transpose leaves the last of four axes in its place."""
    return node.op.name == "transpose" and node.types[0].rank == 4 and node.attr("permutation")[3] == 3


def _with_views(node: Node, users: dict[Value, list[Node]], outputs: set[Value]) -> tuple[Node, list[Node]]:
    """An attention with the transposes of its operands and of its result, which it does in strides; the last node."""
    nodes = [node, *dict.fromkeys(v.node for v in node.inputs[:3] if _keeps_rows(v.node))]
    using = users.get(node[0], [])
    if node[0] not in outputs and len(using) == 1 and _keeps_rows(using[0]):
        return using[0], [using[0], *nodes]
    return node, nodes


ANCHORS = ("patch_linear",)


def _is_depthwise(node: Node) -> bool:
    """A convolution of each channel with its own filter, channels last, of a known image."""
    if node.op.name != "convolution" or node.types[0].rank != 4 or node.types[0].dtype != f32:
        return False
    x, w = node.inputs
    known = all(isinstance(d, int) for d in (*x.shape[1:], *w.shape, *node.attr("low"), *node.attr("high")))
    layout = {name: node.attr(name) for name in ("x_dims", "w_dims", "out_dims")} == channels_last(2)
    alone = node.attr("groups") == x.shape[-1] == w.shape[-1] and w.shape[2] == 1
    return known and layout and alone and node.attr("base_dilation") == (1, 1)


def _worth(nodes: list[Node]) -> bool:
    """Whether one kernel saves an array: of another op, or of a number that the only op reads spread."""
    spread = any(v.node.op.name in SPREAD and _is_number(v) for v in nodes[0].inputs)
    return any(n.op.name != "reshape" for n in nodes[1:]) or nodes[0].op.name in SCALAR and spread


def _joinable(node: Node, users: dict[Value, list[Node]], outputs: set[Value], root: dict[Node, Node],
              members: dict[Node, list[Node]], anchored: set[Node],
              exact: dict[Node, bool]) -> Node | None:  # fmt: skip
    """The root of the one group that all users of the node's value are in, if the node may join it."""
    value = node[0]
    if value in outputs or len(node.types) != 1 or not users.get(value):
        return None
    roots = {root.get(u) for u in users[value]}
    if len(roots) != 1 or (target := next(iter(roots))) is None or len(members[target]) >= LARGEST:
        return None
    using = users[value]
    if node.op.name in ANCHORS or _is_depthwise(node):
        fits = target not in anchored and target.op.name in SCALAR and target.types[0].shape == node.types[0].shape
        return target if fits and all(exact[u] and u.op.name in SCALAR for u in using) else None
    if not _plain(node):
        return None
    if node.op.name in SPREAD:
        scalar_users = all(u.op.name in SCALAR | SPREAD for u in using)
        return target if scalar_users and node.op.name == "broadcast" else None
    if node.op.name == "slice":
        return target if all(u.op.name in SCALAR for u in using) else None
    if node.op.name in SCALAR:
        once = all(u.op.name in SCALAR or u.op.name in MOVES | {"reduce"} and u is target for u in using)
        if target.op.name in MOVES | {"reduce"}:
            once = once and len(using) == 1 if using[0] is target else once
        return target if once else None
    return None


def _fused(last: Node, nodes: list[Node], numbers: bool = True) -> Value:
    """The nodes as one, of which `last` gives the result; `numbers` that they read go inside."""
    inside = set(nodes)
    inputs: dict[Value, Node] = {}
    names = _names()

    def visit(value: Value) -> None:
        if value.node in inside:
            for v in value.node.inputs:
                visit(v)
        elif value not in inputs and not (numbers and _is_number(value)):
            wanted = value.node.attr("name").rpartition(".")[2] if value.node.op.name == "input" else "x"
            inputs[value] = make_input(names(wanted), "arg", value.type)

    visit(last[0])
    made: dict[Value, Value] = {v: n[0] for v, n in inputs.items()}

    def copy(value: Value) -> Value:
        if value not in made:
            node = value.node
            made[value] = make(node.op, *(copy(v) for v in node.inputs), origin=node.origin, **dict(node.attrs))[0]
        return made[value]

    result = copy(last[0])
    graph = Graph("fused", tuple(inputs.values()), (result,))
    origin = type(last.origin).merge(n.origin for n in nodes)
    return make(OPS["fused"], *inputs, graph=graph, origin=origin)[0]


def _is_number(value: Value) -> bool:
    """One number, spread or not, which goes inside of every group that reads it."""
    return value.node.op.name in ("constant", *SPREAD) and splat(value) is not None


def _names() -> Callable[[str], str]:
    taken: set[str] = set()

    def new(wanted: str) -> str:
        name, count = wanted, 1
        while name in taken:
            count += 1
            name = f"{wanted}{count}"
        taken.add(name)
        return name

    return new


