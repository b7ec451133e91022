"""Session memory: where the cache regions of each layer lie in the bytes that a caller gives for a session.

    header (64 bytes)
    rings             regions of windowed layers, all their pages, whatever the session's length
    page 0, page 1 …  each 256 positions of every other region; a longer session only has more of them

The exact size for n positions is therefore `fixed_bytes + ceil(n / 256) * page_bytes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.graph import Graph, IRError, Node, Value
from ...ir.ops.cache import STATE_USES
from ...ir.types import Dim
from .memory import align, storage

PAGE = 256  # positions
HEADER_BYTES = 64
REWIND_SLACK = 256  # positions that a session with rings can be taken back at any time, beyond its last chunk


@dataclass(frozen=True)
class Region:
    """A `cache_region` of run.h: one state of one layer."""

    name: str
    base: int
    page_bytes: int
    pages: int
    window: int


@dataclass(frozen=True)
class SessionLayout:
    """`rewind` is how far back of its furthest position a session can always be taken; None: to any position."""

    regions: Mapping[str, Region]
    fixed_bytes: int
    page_bytes: int
    rewind: int | None

    def bytes(self, positions: int) -> int:
        """Session memory for that many positions."""
        return self.fixed_bytes + -(-positions // PAGE) * self.page_bytes


def windows_of(graph: Graph) -> dict[Value, int]:
    """For each state of a graph its layer's window, 0 for none. Raises IRError if the uses of one disagree."""
    of, inner = storage(graph), dict[Graph, dict[Value, int]]()
    found: dict[Value, set[int]] = {n[0]: set() for n in graph.inputs_of("state")}
    for node in graph.nodes():
        for i, value in enumerate(node.inputs):
            if of[value] not in found:
                continue
            callee = node.attr("graph") if node.op.name == "call" else None
            if callee is not None and callee.inputs[i].attr("role") == "state":
                if callee not in inner:
                    inner[callee] = windows_of(callee)
                found[of[value]].add(inner[callee][callee.inputs[i][0]])
            elif i in STATE_USES.get(node.op.name, {}):
                found[of[value]].add(node.attr("window"))
            else:
                raise IRError(f"{node.op.name} at {node.origin}: only cached_attention and cache writes take a state")
    for state, uses in found.items():
        if len(uses) > 1:
            raise IRError(f"state {state.node.attr('name')}: its uses have different windows, {sorted(uses)}")
    return {state: max(uses, default=0) for state, uses in found.items()}


def _position_bytes(state: Node) -> int:
    """Bytes of one position in one session: [S, heads, C, D] without S and C."""
    shape, dtype = state.types[0].shape, state.types[0].dtype
    if len(shape) == 4 and isinstance(shape[1], int) and isinstance(shape[3], int):
        return shape[1] * shape[3] // dtype.block * dtype.block_bytes
    name, found = state.attr("name"), state.types[0]
    raise IRError(f"state {name}: a state is [sessions, heads, context, head size], not {found}")


def session_layout(entries: Mapping[str, Graph], context: int, chunk: int) -> SessionLayout:
    """Lays out the states of all entries; states of one name are one state.

    A ring has room for its window, the chunk that is being written and `REWIND_SLACK` positions to go back. Where that
    is no less than the context, the region grows like one without a window.
    """
    states: dict[str, tuple[int, int]] = {}
    for graph in entries.values():
        windows = windows_of(graph)
        for node in graph.inputs_of("state"):
            one = windows[node[0]], _position_bytes(node)
            if states.setdefault(node.attr("name"), one) != one:
                raise IRError(f"state {node.attr('name')}: two entries see it with different windows or sizes")
    ring_pages = {name: -(-(w + chunk - 1 + REWIND_SLACK) // PAGE) for name, (w, _) in states.items() if w}
    ring_pages = {name: pages for name, pages in ring_pages.items() if pages * PAGE < context}
    regions: dict[str, Region] = {}
    fixed = HEADER_BYTES
    for name, pages in ring_pages.items():
        window, size = states[name]
        regions[name] = Region(name, fixed, PAGE * size, pages, window)
        fixed += pages * PAGE * size
    page = sum(PAGE * size for name, (_, size) in states.items() if name not in ring_pages)
    base = fixed
    for name, (window, size) in states.items():
        if name not in ring_pages:
            regions[name] = Region(name, base, page, 0, window)
            base += PAGE * size
    rewind = min((PAGE * r.pages - r.window + 1 for r in regions.values() if r.pages), default=None)
    return SessionLayout({name: regions[name] for name in states}, fixed, page, rewind)


def workspace(tokens: Dim, rows: Dim, width: int, arena: Dim) -> Dim:
    """Bytes of an evaluation's workspace: the lists that `step` reads, what it gives, its arena, as in language.c."""
    pointer, number = 8, 4
    lists = (tokens * pointer, tokens * number, tokens * number, tokens * number, rows * number)
    return sum(map(align, (*lists, rows * (width * number))), start=arena)
