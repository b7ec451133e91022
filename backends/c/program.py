"""A module as a C library: every source file, where each weight lies, and what memory it takes.

    PREFIX.h           the interface, documented
    PREFIX.c           the model: weights' offsets, one function a graph, `step`; compiled for the target
    PREFIX_kernels.h   the kernels that it calls
    PREFIX_program.h   what PREFIX.c gives to PREFIX_abi.c
    PREFIX_abi.c       open, sessions, eval: compiled for the baseline CPU
    *.h                hand-written: threads, CPU features, vector words
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...ir.graph import Graph, IRError, Module
from ...ir.types import bounds, evaluate, symbol
from . import interface
from .emit import Emitter
from .function import function_text
from .lower import LOWERINGS, Function, Lowering, lower_module
from .memory import align, storage_bytes
from .state import SessionLayout, session_layout, workspace
from .target import BASELINE_HEADERS, CTarget
from .text import LIBRARY, Names, isa_text, runtime_text

RUNTIME_HEADERS = ("run.h", "parallel.h", "floating.h", "cpu.h")


@dataclass(frozen=True)
class Program:
    """C sources by file name, and facts about them.

    `weight_order` lists (name, offset, bytes) of each weight in the weights file of `weight_bytes` bytes. `memory` has
    the exact formulas, over T tokens, R wanted rows and the number of threads, and their values at full size.
    """

    prefix: str
    sources: Mapping[str, str]
    weight_order: tuple[tuple[str, int, int], ...]
    weight_bytes: int
    kernels: tuple[str, ...]
    memory: Mapping[str, Any]
    session: SessionLayout

    @property
    def unit(self) -> str:
        """The source file that is compiled for the target."""
        return f"{self.prefix}.c"

    @property
    def units(self) -> tuple[str, ...]:
        """The source files that are compiled; all others are included."""
        return tuple(name for name in self.sources if name.endswith(".c"))

    def write(self, folder: Path) -> None:
        """Writes every source into an existing folder."""
        for name, text in self.sources.items():
            (folder / name).write_text(text, encoding="utf-8")


def build(module: Module, target: CTarget, *, prefix: str = "model", context: int, chunk: int, name: str,
          lowerings: Mapping[str, Lowering] = LOWERINGS) -> Program:  # fmt: skip
    """The C library of a module whose weights are all given (those of `prepare` included).

    An entry named `step` becomes the language model's sessions and eval; any other entry, which may have no states,
    becomes a function PREFIX_ENTRY of its dimensions, arguments and results. `context` is the most positions of a
    session, `chunk` the most tokens of one eval. Raises IRError for an op without a kernel, a state that is not a
    cache, or a step without its inputs.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", prefix):
        raise IRError(f"the prefix {prefix!r} is no C identifier")
    functions = lower_module(module, target.ir, context, lowerings)
    layout = session_layout(module.entries, context, chunk)
    order, weight_bytes = _weight_order(module)
    emitter = Emitter(
        functions, frozenset(module.entries.values()), context, {n: offset for n, offset, _ in order}, layout.regions,
        Names(("cpu_features", f"{prefix}_program", *LIBRARY)),
    )  # fmt: skip
    facts = interface.Facts(prefix, name, target, context, chunk, weight_bytes, module.entries, emitter, layout)
    kernels = {k.symbol: k.source for f in functions.values() for line in f.lines if line.call
               for k in line.call.kernel.closure()}  # fmt: skip
    memory = _memory(facts, functions)
    sources = {
        f"{prefix}.h": interface.header(facts, memory),
        f"{prefix}.c": _model(facts, functions, memory),
        f"{prefix}_kernels.h": _kernels(kernels, target),
        f"{prefix}_program.h": interface.program_header(facts, _fingerprint(facts, order)),
        f"{prefix}_abi.c": interface.implementation(facts),
        **{header: runtime_text(header) for header in RUNTIME_HEADERS},
        **{header: isa_text(header) for header in (target.header, *BASELINE_HEADERS)},
    }
    return Program(prefix, sources, order, weight_bytes, tuple(kernels), memory, layout)


def _weight_order(module: Module) -> tuple[tuple[tuple[str, int, int], ...], int]:
    """The weights that the entries read, each once, in the order of their inputs, and the size of the whole file."""
    order: dict[str, tuple[int, int]] = {}
    end = 0
    for graph in module.entries.values():
        for node in graph.inputs_of("weight"):
            if (name := node.attr("name")) not in order:
                size = evaluate(storage_bytes(node[0]), {})
                order[name] = evaluate(align(end), {}), size
                end = order[name][0] + size
    return tuple((name, offset, size) for name, (offset, size) in order.items()), end


def _fingerprint(facts: interface.Facts, order: tuple[tuple[str, int, int], ...]) -> int:
    """What a session of this model begins with: equal for targets that share a layout, so that sessions may move."""
    regions = [[r.name, r.base, r.page_bytes, r.pages, r.window] for r in facts.layout.regions.values()]
    text = json.dumps([facts.name, facts.context, facts.chunk, order, regions])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") or 1


def _memory(facts: interface.Facts, functions: Mapping[Graph, Function]) -> dict[str, Any]:
    """Exact formulas as text, and bytes at the context and at a full chunk with one wanted row on one thread."""
    memory: dict[str, Any] = {"weights": facts.weight_bytes}
    if facts.vocab_size:
        layout = facts.layout
        step = facts.entries["step"]
        tokens, rows = symbol("T", 1, facts.chunk), symbol("R", 1, facts.chunk)
        arena = functions[step].plan.plan.bytes
        named = symbol(facts.emitter.arena_name(step), *bounds(arena))
        total = workspace(tokens, rows, facts.vocab_size, arena)
        memory |= {
            "session": f"{layout.fixed_bytes} + {layout.page_bytes} * ceil(positions / 256)",
            "session_at_context": layout.bytes(facts.context),
            "workspace": str(workspace(tokens, rows, facts.vocab_size, named)),
            "workspace_at_chunk": evaluate(total, {"T": facts.chunk, "R": 1, "threads": 1}),
        }
    for graph in reversed(facts.emitter.measured()):
        if functions[graph].plan.plan.slots:
            memory[facts.emitter.arena_name(graph)] = str(sum(facts.emitter.slot_bytes(graph), start=0))
    return memory


def _kernels(kernels: Mapping[str, str], target: CTarget) -> str:
    includes = "\n".join(f'#include "{header}"' for header in ("run.h", target.header, *BASELINE_HEADERS))
    body = "\n\n".join(text.strip() for text in kernels.values())
    return f"/* The kernels that the model calls, for {target.name}. */\n{includes}\n\n{body}\n"


def _model(facts: interface.Facts, functions: Mapping[Graph, Function], memory: Mapping[str, Any]) -> str:
    """The model's own file."""
    emitter, prefix = facts.emitter, facts.prefix
    reads = "".join(f"\n *   {key}: {value}" for key, value in memory.items() if isinstance(value, int))
    sections = [
        f"/* {interface.comment_text(facts.name)}, compiled by inferc for {facts.target.name}.\n *\n"
        f" * Bytes (exact formulas: {prefix}.h):{reads} */\n"
        f'#include <string.h>\n\n#include "{prefix}_kernels.h"\n#include "{prefix}_program.h"'
    ]
    if constants := emitter.constant_definitions():
        sections.append("/* Constants. */\n" + "\n".join(constants))
    types = [text for graph in functions if (text := emitter.parts_type(graph))]
    if types:
        sections.append(
            "/* What a function is given once for all runs: where its weights lie in the weights file, and its cache\n"
            " * regions in a session. */\n" + "\n\n".join(types)
        )
    for graph in facts.entries.values():
        if emitter.parts[graph]:
            name = emitter.function_names[graph]
            sections.append(f"static const {name}_parts {name}_at = {{\n{emitter.parts_value(graph)}\n}};")
    measured = emitter.measured()
    for graph in functions:
        if graph in measured:
            sections.append(emitter.arena_function(graph))
        sections.append(function_text(emitter, graph))
    sections.append(interface.program_table(facts))
    return "\n\n".join(sections) + "\n"
