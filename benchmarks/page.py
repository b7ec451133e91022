"""Benchmark results as one page that needs nothing else: charts, tables, the machine, the commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..errors import InfercError
from . import tables

Row = Mapping[str, Any]
COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#e0a030", "#7a5195", "#6c757d", "#2a9d8f", "#bc5090", "#ef8354", "#4d908e",
           "#577590", "#90be6d")  # fmt: skip
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star", "x", "hexagon")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; font-variant-numeric: tabular-nums; }
td { white-space: nowrap; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
pre { background: #f4f4f4; padding: 0.7rem; overflow-x: auto; white-space: pre-wrap; }
.facts td { text-align: left; vertical-align: top; white-space: normal; }
.scroll { overflow-x: auto; }
"""


def as_html(results: Mapping[str, Any]) -> str:
    """The page. Raises InfercError where plotly is not installed."""
    try:
        from plotly import graph_objects, offline
    except ImportError as error:
        raise InfercError("the page's charts need plotly: pip install 'inferc[bench]'") from error
    rows, machine = results["rows"], results["machine"]
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    colour = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(backends)}
    parts = ["<h1>inferc bench</h1>", f"<p>{escape(_machine(machine))}</p>"]

    def chart(title: str, about: str, figure: Any) -> None:
        parts.append(f"<h2>{escape(title)}</h2><p>{escape(about)}</p>")
        figure.update_layout(template="plotly_white", font={"color": "#222", "size": 13}, margin={"t": 50, "b": 60},
                             legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"})  # fmt: skip
        parts.append(figure.to_html(include_plotlyjs=False, full_html=False, config={"displaylogo": False}))

    for threads in dict.fromkeys(row["threads"] for row in rows):
        here = [row for row in rows if row["threads"] == threads]
        for unit in dict.fromkeys(row["unit"] for row in here):
            some = [row for row in here if row["unit"] == unit]
            chart(f"Speed, {threads} thread{'s' * (threads > 1)}",
                  f"{unit} per second, higher is better: medians; whiskers from the least to the most of the rounds; "
                  "dashes are the machine's limit, measured in the same run, where it is near.",
                  _bars(graph_objects, some, unit, colour))  # fmt: skip
    if any("limit" in row for row in rows):
        chart("Roofline", "Multiply-adds per second over multiply-adds per byte of memory, both axes logarithmic: what "
              "lies under the slope is bound by memory, under a roof by that multiplier.",
              _roofline(graph_objects, rows, machine, colour))  # fmt: skip
    if figure := _depth(graph_objects, rows, colour):
        chart("Latency over depth", "Milliseconds for one generated token, lower is better, over the positions that "
              "the cache holds already.", figure)  # fmt: skip
    parts += ["<h2>Figures</h2>", _table(tables.speeds(rows)), _table(tables.costs(rows, results["compiled"]))]
    parts += _about(results)
    script = offline.get_plotlyjs()
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>inferc bench</title>'
    head += f"<style>{STYLE}</style><script>{script}</script>"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{"".join(parts)}</body></html>\n'


def _machine(found: Mapping[str, Any]) -> str:
    return (f"{found['date']}. {found['cpu']}, {found['cores']} cores, {found['memory_gb']} GB, {found['kernel']}, "
            f"{found['compiler']}, target {found['target']}.")  # fmt: skip


def _bars(go: Any, rows: Sequence[Row], unit: str, colour: Mapping[str, str]) -> Any:
    """A panel for each model and test, with its own scale and a bar for each backend: a line of panels for each model,
    or, where every model has one test, four models in a line."""
    from plotly.subplots import make_subplots

    models = list(dict.fromkeys(row["model"] for row in rows))
    lines = [[(m, t) for t in dict.fromkeys(row["test"] for row in rows if row["model"] == m)] for m in models]
    if alone := all(len(line) == 1 for line in lines):
        pairs = [line[0] for line in lines]
        lines = [pairs[i : i + 4] for i in range(0, len(pairs), 4)]
    columns = max(map(len, lines))
    cells = [[line[j] if j < len(line) else None for j in range(columns)] for line in lines]
    titles = [_short(cell[0] if alone else cell[1]) for line in cells for cell in line if cell]
    figure = make_subplots(len(cells), columns, subplot_titles=titles,
                           specs=[[{} if cell else None for cell in line] for line in cells],
                           vertical_spacing=0.3 / max(len(cells), 2), horizontal_spacing=0.06)  # fmt: skip
    for i, model in enumerate(models if not alone else (), 1):
        figure.update_yaxes(title_text=_short(model), row=i, col=1)
    named = set[str]()
    for i, line in enumerate(cells, 1):
        for j, cell in enumerate(line, 1):
            here = [row for row in rows if (row["model"], row["test"]) == cell]
            for row in here:
                speed, backend = row["tokens_per_second"], row["backend"]
                spread = {"type": "data", "symmetric": False, "thickness": 1.2, "color": "#222",
                          "array": [row["tokens_per_second_max"] - speed],
                          "arrayminus": [speed - row["tokens_per_second_min"]]}  # fmt: skip
                figure.add_trace(go.Bar(name=backend, x=[backend], y=[speed], error_y=spread, legendgroup=backend,
                                        marker_color=colour[backend], showlegend=backend not in named, textangle=0,
                                        text=[f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"],
                                        insidetextanchor="start", hovertemplate="%{x}: %{y:.4g}<extra></extra>"),
                                 row=i, col=j)  # fmt: skip
                named.add(backend)
            if not here:
                continue
            most, limit = max(row["tokens_per_second_max"] for row in here), next(
                (row["limit"] for row in here if "limit" in row), None)  # fmt: skip
            near = limit is not None and limit < 4 * most  # bars beside a far roof could not be read
            if near:
                figure.add_hline(limit, line={"dash": "dash", "color": "#666"}, row=i, col=j)
            figure.update_yaxes(range=[0, 1.15 * max(most, limit if near else 0)], row=i, col=j)
    figure.update_xaxes(showticklabels=len(named) <= 3)
    figure.update_layout(height=140 + 230 * len(cells), bargap=0.25)
    return figure


def _short(name: str, width: int = 22) -> str:
    """A name without its middle where it is long: files of one model differ at the end."""
    half = width // 2
    return name if len(name) <= width else f"{name[: half - 1]}…{name[-half:]}"


def _roofline(go: Any, rows: Sequence[Row], machine: Mapping[str, Any], colour: Mapping[str, str]) -> Any:
    threads = max(row["threads"] for row in rows)
    bandwidth, peaks = _roofs([row for row in rows if row["threads"] == threads], machine, threads)
    reach = (0.3, 3000.0)
    figure = go.Figure()

    def roof(ends: tuple[tuple[float, float], tuple[float, float]], text: Sequence[str], where: str) -> None:
        (x0, y0), (x1, y1) = ends
        line = {"color": "#999", "width": 1}
        figure.add_trace(go.Scatter(x=[x0, x1], y=[y0, y1], mode="lines+text", text=text, textposition=where,
                                    showlegend=False, hoverinfo="skip", line=line))  # fmt: skip

    for name, peak in peaks.items():
        roof(((peak / bandwidth, peak), (reach[1], peak)), ["", name], "top left")
    top = max(peaks.values()) / bandwidth
    roof(((reach[0], reach[0] * bandwidth), (top, top * bandwidth)), [f"read {bandwidth:.1f} GB/s", ""], "middle right")
    models = list(dict.fromkeys(row["model"] for row in rows))
    for backend in colour:
        points = [p for p in _points(rows, threads) if p[0]["backend"] == backend]
        figure.add_trace(go.Scatter(
            name=backend, x=[x for _, x, _ in points], y=[y for _, _, y in points], mode="markers",
            text=[f"{row['model']}, {row['test']}: {row['tokens_per_second']:.1f} {row['unit']}/s"
                  for row, _, _ in points],
            hovertemplate="%{text}<br>%{y:.1f} GMAC/s<extra>%{fullData.name}</extra>",
            marker={"color": colour[backend], "size": 10,
                    "symbol": [SYMBOLS[models.index(row["model"]) % len(SYMBOLS)] for row, _, _ in points]},
        ))  # fmt: skip
    for i, model in enumerate(models):
        mark = {"symbol": SYMBOLS[i % len(SYMBOLS)], "color": "#222", "size": 9}
        figure.add_trace(go.Scatter(name=model, x=[None], y=[None], mode="markers", marker=mark))
    figure.update_xaxes(type="log", title_text="multiply-adds per byte")
    figure.update_yaxes(type="log", title_text="10⁹ multiply-adds per second")
    figure.update_layout(height=620)
    return figure


def _roofs(rows: Sequence[Row], machine: Mapping[str, Any], threads: int) -> tuple[float, dict[str, float]]:
    """The most that was seen, before the runs or beside one: GB/s of reads, and 10⁹ multiply-adds a second by unit."""
    limits = next(v for k, v in machine["limits"].items() if int(k) == threads)
    bandwidth = max([limits["read_gbs"]["median"], *(row["bandwidth"] / 1e9 for row in rows if "bandwidth" in row)])
    beside = [row["peaks"] for row in rows if "peaks" in row]
    return bandwidth, {name: max([peak, *(p[name] / 1e9 for p in beside if name in p)])
                       for name, peak in limits["gmacs"].items()}  # fmt: skip


def _points(rows: Sequence[Row], threads: int) -> Iterator[tuple[Row, float, float]]:
    """(row, multiply-adds per byte, 10⁹ multiply-adds per second). A prompt reads the weights once for all tokens."""
    once = {row["model"]: row["bytes_per_token"] for row in rows
            if row.get("bytes_per_token") and not row["n_depth"] and row["batch"] == 1}  # fmt: skip
    for row in rows:
        if row["threads"] == threads and "macs_per_token" in row:
            size = row.get("bytes_per_token") or once.get(row["model"], 0) / max(row["n_prompt"], 1)
            if size:
                yield row, row["macs_per_token"] / size, row["macs_per_token"] * row["tokens_per_second"] / 1e9


def _depth(go: Any, rows: Sequence[Row], colour: Mapping[str, str]) -> Any:
    """None where nothing was measured at more than one depth."""
    generation = [row for row in rows if row["n_gen"] and row["batch"] == 1]
    figure, dashes = go.Figure(), ("solid", "dash", "dot", "dashdot")
    models = list(dict.fromkeys(row["model"] for row in generation))
    threads = max((row["threads"] for row in generation), default=0)
    for model in models:
        for backend in colour:
            own = sorted((row["n_depth"], 1e3 / row["tokens_per_second"]) for row in generation
                         if (row["model"], row["backend"], row["threads"]) == (model, backend, threads))  # fmt: skip
            if len({depth for depth, _ in own}) > 1:
                figure.add_trace(go.Scatter(
                    name=f"{backend}, {model}", x=[d for d, _ in own], y=[ms for _, ms in own], mode="lines+markers",
                    line={"color": colour[backend], "dash": dashes[models.index(model) % len(dashes)]},
                    marker={"symbol": SYMBOLS[models.index(model) % len(SYMBOLS)], "size": 9},
                ))  # fmt: skip
    if not figure.data:
        return None
    figure.update_xaxes(title_text="positions in the cache")
    figure.update_yaxes(title_text="ms per token", rangemode="tozero")
    figure.update_layout(height=480)
    return figure


def _table(markdown: str) -> str:
    """A markdown table, and lines before it, as HTML."""
    parts: list[str] = []
    rows = [line.strip("|").split("|") for line in markdown.splitlines() if line.startswith("|")]
    for line in markdown.splitlines():
        if line.startswith("#"):
            parts.append(f"<h3>{escape(line.lstrip('# '))}</h3>")
        elif line and not line.startswith("|"):
            parts.append(f"<p>{escape(line)}</p>")
    if rows:
        head = "".join(f"<th>{escape(cell.strip())}</th>" for cell in rows[0])
        body = "".join(f"<tr>{''.join(f'<td>{escape(cell.strip())}</td>' for cell in row)}</tr>" for row in rows[2:])
        parts.append(f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>')
    return "".join(parts)


def _about(results: Mapping[str, Any]) -> list[str]:
    """What was left out, the engines, the machine, the command."""
    parts = []
    if results["left_out"]:
        items = "".join(f"<li>{escape(x['model'])}, {escape(x['backend'])}, {escape(x['test'])}: "
                        f"{escape(x['reason'])}</li>" for x in results["left_out"])  # fmt: skip
        parts.append(f"<h2>Left out</h2><ul>{items}</ul>")
    machine = {k: v for k, v in results["machine"].items() if k != "limits"}
    facts = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(_value(v))}</td></tr>" for k, v in machine.items())
    for threads, limits in results["machine"]["limits"].items():
        facts += f"<tr><td>limits, {threads} threads</td><td>{escape(_value(limits))}</td></tr>"
    engines = "".join(f"<tr><td>{escape(name)}</td><td>{escape(_value(tables.without_commands(about)))}</td></tr>"
                      for name, about in results["engines"].items())  # fmt: skip
    parts += [f"<h2>Machine</h2><table class=facts>{facts}</table>",
              f"<h2>Engines</h2><table class=facts>{engines}</table>", "<h2>Commands</h2>"]  # fmt: skip
    parts += [f"<p>{escape(about)}</p><pre>{escape(text)}</pre>" for about, text in tables.commands(results)]
    return parts


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
