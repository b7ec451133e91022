"""What a measured run tells: ops, layers and threads as rows, a flame chart, a trace for Chrome's viewer."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from ...errors import InfercError
from ...ir.graph import Graph, Node
from .costs import AMX_OF, Cost, cost
from .measure import OP, REGION, Evaluation, Measured, layer_names

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#e0a030", "#7a5195", "#6c757d", "#2a9d8f", "#bc5090", "#ef8354", "#4d908e",
           "#577590", "#90be6d")  # fmt: skip
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1400px; margin: 1rem auto; padding: 0 1rem; }
span { white-space: nowrap; }
"""
TRACED = 4  # generated tokens that a trace shows: all are alike


@dataclass
class Row:
    """The calls of one op, or of all ops of one layer. `limit` is the least time that memory and multipliers allow for
    its calls, `regions` the parallel regions that were split, `waited` how long threads waited in them, summed."""

    calls: int = 0
    seconds: float = 0.0
    bytes: int = 0
    macs: int = 0
    limit: float = 0.0
    regions: int = 0
    waited: float = 0.0

    def add(self, seconds: float, cost: Cost, limit: float) -> None:
        self.calls += 1
        self.seconds += seconds
        self.bytes += cost.bytes
        self.macs += cost.macs
        self.limit += limit

    def data(self) -> dict[str, Any]:
        seconds = max(self.seconds, 1e-12)
        return {
            "calls": self.calls, "seconds": self.seconds, "bytes": self.bytes, "macs": self.macs,
            "bytes_per_second": self.bytes / seconds, "macs_per_second": self.macs / seconds,
            "of_limit": self.limit / seconds, "regions": self.regions, "waited_seconds": self.waited,
        }  # fmt: skip


@dataclass
class Thread:
    """What one thread did in the regions of a phase: time inside pieces, and waiting for others or not yet there."""

    busy: float = 0.0
    waited: float = 0.0
    pieces: int = 0


@dataclass
class Phase:
    """All evaluations of a phase. `ops` is by op and where it was traced, `calls` by layer, op and origin."""

    name: str
    tokens: int
    seconds: float
    plain_seconds: float
    evaluations: int
    ops: dict[tuple[str, str], Row] = field(default_factory=lambda: defaultdict(Row))
    layers: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    calls: dict[tuple[str, str, str], Row] = field(default_factory=lambda: defaultdict(Row))
    threads: dict[int, Thread] = field(default_factory=lambda: defaultdict(Thread))
    in_regions: float = 0.0
    barriers: int = 0

    def data(self) -> dict[str, Any]:
        rows = sorted(self.ops.items(), key=lambda item: -item[1].seconds)
        return {
            "phase": self.name, "tokens": self.tokens, "seconds": self.seconds, "evaluations": self.evaluations,
            "seconds_without_observers": self.plain_seconds, "barriers": self.barriers,
            "seconds_in_regions": self.in_regions,
            "ops": [{"op": op, "origin": origin, **row.data()} for (op, origin), row in rows],
            "layers": [{"layer": name, **row.data()} for name, row in self.layers.items()],
            "threads": [{"thread": n, "busy_seconds": t.busy, "waited_seconds": t.waited, "pieces": t.pieces}
                        for n, t in sorted(self.threads.items())],
        }  # fmt: skip


Limits = Mapping[str, float]  # "read" in bytes per second, and peaks in multiply-adds per second by name


def limits_of(measured: Measured) -> dict[str, float]:
    """The machine's limits now, for as many threads."""
    from ...benchmarks.roofline import Roofline

    roofline = Roofline()
    found = {"read": roofline.bandwidth(measured.threads)["max"]}
    for name in roofline.peaks:
        peak = roofline.peak(name, measured.threads)
        if peak is not None and (not name.startswith("amx") or "amx_tile" in measured.target.cpu_features):
            found[name] = peak
    return found


def phases(measured: Measured, limits: Limits) -> list[Phase]:
    """Sums the events of each phase."""
    found: dict[str, Phase] = {}
    names = layer_names(measured.module)
    graphs = {node: graph for graph in names for node in graph.nodes()}
    for e in measured.evaluations:
        phase = found.setdefault(e.phase, Phase(e.phase, 0, 0.0, measured.plain[e.phase], 0))
        phase.tokens += e.tokens
        phase.seconds += (e.end - e.begin) / 1e9
        phase.evaluations += 1
        _add(phase, e, measured, limits, names, graphs)
    return list(found.values())


def _add(phase: Phase, e: Evaluation, measured: Measured, limits: Limits, names: Mapping[Graph, Sequence[str]],
         graphs: Mapping[Node, Graph]) -> None:  # fmt: skip
    dims = {"T": e.tokens, "R": 1, "S": 1}
    seen = Counter[int]()
    costs: dict[int, tuple[Cost, float]] = {}
    regions, waited = 0, 0.0
    for op, inner in _grouped(e.events):
        point = int(op["point"])
        node = measured.points[point]
        if point not in costs:
            found = cost(node, dims, e.position)
            costs[point] = found, _limit(found, limits, e.tokens)
        layer = _layer(names.get(graphs[node], ()) if node in graphs else (), seen[point])
        seen[point] += 1
        regions, waited = _regions(phase, inner, measured.threads)
        seconds = (int(op["end"]) - int(op["begin"])) / 1e9
        origin = inside(node.origin.path, layer)
        for row in (phase.ops[node.op.name, origin], phase.layers[layer or "beside the layers"],
                    phase.calls[layer, node.op.name, origin]):  # fmt: skip
            row.add(seconds, *costs[point])
            row.regions += regions
            row.waited += waited


def _layer(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else ""


def inside(path: str, layer: str) -> str:
    """Where an op was traced, within its layer: equal layers share one graph, traced in the first."""
    parts = path.split(".")
    if layer and len(parts) > 1 and parts[0] == layer.split(".")[0] and parts[1].isdigit():
        parts = parts[2:]
    elif layer and parts[0] == layer.split(".")[0]:
        parts = parts[1:]
    return ".".join(parts)


def _grouped(events: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each op's event, which is logged at its end, and those of its regions before it."""
    start = 0
    for at in np.flatnonzero(events["worker"] == OP).tolist():
        yield events[at], events[start:at]
        start = at + 1


def _regions(phase: Phase, inner: np.ndarray, threads: int) -> tuple[int, float]:
    """Adds the regions of one op to its phase; how many were split, and the threads' waiting in them."""
    split, waited, wall, busy = 0, 0.0, 0.0, dict[int, float]()

    def close() -> float:
        total = 0.0
        for n in range(threads):
            thread = phase.threads[n]
            thread.busy += busy.get(n, 0.0)
            thread.waited += max(wall - busy.get(n, 0.0), 0.0)
            total += max(wall - busy.get(n, 0.0), 0.0)
        return total

    opened = False
    for event in inner:
        if event["worker"] == REGION:
            waited += close() if opened else 0.0
            opened, busy = bool(event["pieces"]), {}
            wall = (int(event["end"]) - int(event["begin"])) / 1e9
            split += int(opened)
            phase.in_regions += wall if opened else 0.0
        elif opened:
            busy[int(event["worker"])] = int(event["busy"]) / 1e9
            phase.threads[int(event["worker"])].pieces += int(event["pieces"])
    waited += close() if opened else 0.0
    phase.barriers += split
    return split, waited


def _limit(found: Cost, limits: Limits, tokens: int) -> float:
    """Seconds that the machine needs at least: tiles do the products of prompts where the CPU has them."""
    unit = AMX_OF.get(found.peak, "") if tokens > 1 else ""
    peak = limits.get(unit, limits.get(found.peak, 0.0))
    return max(found.bytes / limits["read"], found.macs / peak if peak else 0.0)


def trace(measured: Measured) -> dict[str, Any]:
    """For chrome://tracing and Perfetto: a track of ops, and one for each thread's parts of regions."""
    shown = [e for e in measured.evaluations if e.phase != "generation"]
    shown += [e for e in measured.evaluations if e.phase == "generation"][:TRACED]
    names, zero = layer_names(measured.module), min((e.begin for e in shown), default=0)
    graphs = {node: graph for graph in names for node in graph.nodes()}
    events: list[dict[str, Any]] = [_named(0, "ops"), *(_named(1 + n, f"thread {n}") for n in range(measured.threads))]

    def event(name: str, track: int, begin: Any, end: Any, **facts: Any) -> dict[str, Any]:
        return {"name": name, "ph": "X", "pid": 1, "tid": track, "ts": (int(begin) - zero) / 1e3,
                "dur": (int(end) - int(begin)) / 1e3, "args": facts}  # fmt: skip

    for e in shown:
        events.append(event(f"{e.phase}: {e.tokens} tokens at {e.position}", 0, e.begin, e.end))
        seen = Counter[int]()
        for op, inner in _grouped(e.events):
            node = measured.points[int(op["point"])]
            layer = _layer(names.get(graphs[node], ()) if node in graphs else (), seen[int(op["point"])])
            seen[int(op["point"])] += 1
            events.append(event(node.op.name, 0, op["begin"], op["end"], origin=node.origin.path, layer=layer))
            for part in inner[inner["worker"] >= 0]:
                events.append(event(node.op.name, 1 + int(part["worker"]), part["begin"], part["end"],
                                    pieces=int(part["pieces"]), busy_us=int(part["busy"]) / 1e3))  # fmt: skip
    return {"traceEvents": events, "displayTimeUnit": "ns"}


def _named(track: int, name: str) -> dict[str, Any]:
    return {"name": "thread_name", "ph": "M", "pid": 1, "tid": track, "args": {"name": name}}


def flame(found: Sequence[Phase], title: str, plotly_js: bool | str = True) -> str:
    """A page with one chart: phases, their layers, the layers' ops, each as wide as its time. It needs nothing else.

    Raises InfercError where plotly is not installed.
    """
    try:
        from plotly import graph_objects
    except ImportError as error:
        raise InfercError("the chart needs plotly: pip install 'inferc[bench]'") from error
    boxes: list[tuple[str, str, str, float, str, str]] = []
    ops = list(dict.fromkeys(op for phase in found for op, _ in phase.ops))

    def box(key: str, label: str, parent: str, row: Row | None, seconds: float, op: str = "") -> None:
        colour = COLOURS[ops.index(op) % len(COLOURS)] if op else "#dddddd"
        boxes.append((key, label, parent, seconds * 1e3, _note(row) if row else "", colour))

    total = sum(row.seconds for phase in found for row in phase.ops.values())
    box("all", title, "", None, total)
    for phase in found:
        measured = sum(row.seconds for row in phase.ops.values())
        box(phase.name, f"{phase.name}: {phase.tokens} tokens", "all", None, measured)
        for layer, row in phase.layers.items():
            box(f"{phase.name}/{layer}", layer, phase.name, row, row.seconds)
        for (layer, op, origin), row in phase.calls.items():
            above = f"{phase.name}/{layer or 'beside the layers'}"
            box(f"{above}/{op}/{origin}", f"{op} {origin}", above, row, row.seconds, op)
    ids, labels, parents, values, notes, colours = zip(*boxes)
    chart = graph_objects.Figure(graph_objects.Icicle(
        ids=ids, labels=labels, parents=parents, values=values, customdata=notes, branchvalues="total",
        sort=False, marker={"colors": colours}, tiling={"orientation": "v"}, leaf={"opacity": 1.0},
        texttemplate="%{label}<br>%{value:.2f} ms",
        hovertemplate="%{label}<br>%{value:.3f} ms<br>%{customdata}<extra></extra>",
    ))  # fmt: skip
    chart.update_layout(margin={"t": 10, "l": 10, "r": 10, "b": 10}, height=640,
                        uniformtext={"minsize": 9, "mode": "hide"})  # fmt: skip
    drawn = chart.to_html(include_plotlyjs=plotly_js, full_html=False, config={"displayModeBar": False})
    about = ("Time in the ops' calls, each box as wide as its share: phases, their layers, the layers' ops, each kind "
             "of op in a colour of its own. Click a box to see it alone, and the one above it to go back; a box tells "
             "more when pointed at.")  # fmt: skip
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return (f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><h1>inferc profile</h1>'
            f"<p>{escape(title)}. {about}</p><p>{_legend(found, ops)}</p>{drawn}</body></html>\n")  # fmt: skip


def _legend(found: Sequence[Phase], ops: Sequence[str]) -> str:
    """The colour of each kind of op, with its share of the time, the most first."""
    rows = [(op, row.seconds) for phase in found for (op, _), row in phase.ops.items()]
    share = {op: sum(s for name, s in rows if name == op) / max(sum(s for _, s in rows), 1e-12) for op in ops}
    marks = {op: f'<b style="color: {COLOURS[i % len(COLOURS)]}">■</b>' for i, op in enumerate(ops)}
    ordered = sorted(ops, key=lambda op: -share[op])
    return " ".join(f"<span>{marks[op]} {escape(op)} {100 * share[op]:.1f} %</span>" for op in ordered)


def _note(row: Row) -> str:
    d = row.data()
    return (f"{row.calls} calls, {d['bytes_per_second'] / 1e9:.1f} GB/s, {d['macs_per_second'] / 1e9:.0f} GMAC/s, "
            f"{100 * d['of_limit']:.0f} % of the limit, {row.waited * 1e3:.3f} ms waited")  # fmt: skip


