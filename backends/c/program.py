"""A module as a C library: every source file, where each weight lies, and what memory it takes.

    PREFIX.h                  the interface, documented
    PREFIX_TARGET.c           the model: weights' offsets, one function a graph, `step`; compiled for that target
    PREFIX_TARGET_kernels.h   the kernels that it calls
    PREFIX_program.h          what each PREFIX_TARGET.c gives to PREFIX_abi.c: one constant table
    PREFIX_abi.c              open, sessions, eval: compiled for the baseline CPU, chooses among the tables
    PREFIX_weights.c          the sum of the weights file, and the weights themselves where they are built in
    *.h                       hand-written: threads, CPU features, vector words

Every variant reads the same weights file and the same sessions.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ...ir.graph import Graph, IRError, Module
from ...ir.types import bounds, evaluate, symbol
from . import interface
from .emit import Emitter
from .function import function_text
from .kernels import functions_of
from .lower import LOWERINGS, Lowering, lower_module
from .memory import align, storage_bytes
from .state import SessionLayout, session_layout, workspace
from .target import BASELINE_HEADERS, CTarget
from .text import LIBRARY, Names, isa_text, runtime_text
from .weights import unit as weights_unit

RUNTIME_HEADERS = ("run.h", "parallel.h", "floating.h", "cpu.h", "sum.h", "text_tables.h")
TEXT_HEADERS = ("utf8.h", "normalize.h", "pieces.h", "tokenizer.h", "detokenizer.h", "chat.h")
SAMPLING_HEADERS = ("sampler.h",)


@dataclass(frozen=True)
class Program:
    """C sources by file name, and facts about them.

    `units` are the sources that are compiled, each with its flags for the CPU; all others are included. `targets` has
    one target for each variant, the best first. `weight_order` lists (name, offset, bytes) of each weight in the
    weights file of `weight_bytes` bytes. `memory` has the exact formulas, over T tokens, R wanted rows and the number
    of threads, and their values at full size. `regions` counts the parallel regions of one token, by function, those
    of the functions that it calls included. `output` is what a language model's step gives, "logits" or "embeddings",
    else "".
    """

    prefix: str
    sources: Mapping[str, str]
    units: Mapping[str, tuple[str, ...]]
    targets: tuple[CTarget, ...]
    weight_order: tuple[tuple[str, int, int], ...]
    weight_bytes: int
    kernels: tuple[str, ...]
    memory: Mapping[str, Any]
    regions: Mapping[str, int]
    session: SessionLayout
    output: str

    def with_weights(self, total: int, *, embed: bool = False, large: bool | None = None, text: int = 0) -> Program:
        """The program that knows its weights' sum, and has the file PREFIX.weights built in where `embed` says so;
        `large` and `text` are as in `weights.unit`."""
        unit = weights_unit(self.prefix, self.weight_bytes, total, embed=embed, large=large, text=text)
        return replace(self, sources={**self.sources, f"{self.prefix}_weights.c": unit})

    def write(self, folder: Path) -> None:
        """Writes every source into an existing folder."""
        for name, text in self.sources.items():
            (folder / name).write_text(text, encoding="utf-8")


def build(module: Module, targets: Sequence[CTarget], *, prefix: str = "model", context: int, chunk: int, name: str,
          vocabulary: int = 0, lowerings: Mapping[str, Lowering] = LOWERINGS) -> Program:  # fmt: skip
    """The C library of a module whose weights are all given (those of `prepare` included), for `targets`, best first.

    An entry named `step` becomes the language model's sessions and eval; any other entry, which may have no states,
    becomes a function PREFIX_ENTRY of its dimensions, arguments and results. `context` is the most positions of a
    session, `chunk` the most tokens of one eval. A step gives logits, whose columns are its tokens; `vocabulary` counts
    the tokens of one that gives embeddings, or of a function that has a tokenizer. Raises IRError for an op without a
    kernel, a state that is not a cache, a step without its inputs, or targets that the passes would give different
    modules.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", prefix):
        raise IRError(f"the prefix {prefix!r} is no C identifier")
    first, *others = targets
    for target in others:
        if replace(target.ir, name=first.name, tuning=first.ir.tuning) != first.ir:
            raise IRError(f"no library can hold both {first.name} and {target.name}: their passes differ")
    layout = session_layout(module.entries, context, chunk)
    order, weight_bytes = _weight_order(module)
    entries, offsets = frozenset(module.entries.values()), {n: offset for n, offset, _ in order}
    variants = []
    for target in targets:
        functions = lower_module(module, target.ir, context, lowerings)
        words = [functions_of(isa_text(header)) for header in (target.header, *BASELINE_HEADERS)]
        names = Names(("cpu_features", f"{prefix}_program_{target.name}", *LIBRARY, *chain(*words)))
        variants.append(interface.Variant(target, Emitter(functions, entries, context, offsets, layout.regions, names)))
    facts = interface.Facts(prefix, name, tuple(variants), context, chunk, weight_bytes, module.entries, layout,
                            vocabulary)  # fmt: skip
    memory = _merged({v.name: _memory(facts, v) for v in variants})
    headers = (*RUNTIME_HEADERS, *(TEXT_HEADERS if facts.vocab_size else ()),
               *(SAMPLING_HEADERS if facts.output == "logits" else ()))  # fmt: skip
    sources = {f"{prefix}.h": interface.header(facts, memory)}
    for v in variants:
        sources[f"{prefix}_{v.name}.c"] = _model(facts, v)
        sources[f"{prefix}_{v.name}_kernels.h"] = _kernels(v)
    sources |= {
        f"{prefix}_program.h": interface.program_header(facts, _fingerprint(facts, order)),
        f"{prefix}_abi.c": interface.implementation(facts),
        f"{prefix}_weights.c": weights_unit(prefix, weight_bytes),
        **{header: runtime_text(header) for header in headers},
        **{header: isa_text(header) for t in targets for header in (t.header, *BASELINE_HEADERS)},
    }
    units = {f"{prefix}_{v.name}.c": v.target.cflags for v in variants}
    units |= dict.fromkeys((f"{prefix}_abi.c", f"{prefix}_weights.c"), first.baseline)
    kernels = dict.fromkeys(symbol for v in variants for symbol in v.kernels)
    regions = _regions(variants[0])
    return Program(prefix, sources, units, tuple(targets), order, weight_bytes, tuple(kernels), memory, regions, layout,
                   facts.output)


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


def _memory(facts: interface.Facts, variant: interface.Variant) -> dict[str, Any]:
    """Exact formulas as text, and bytes at the context and at a full chunk with one wanted row on one thread."""
    emitter, functions = variant.emitter, variant.emitter.functions
    memory: dict[str, Any] = {"weights": facts.weight_bytes}
    if facts.output:
        layout = facts.layout
        step = facts.entries["step"]
        tokens, rows = symbol("T", 1, facts.chunk), symbol("R", 1, facts.chunk)
        arena = functions[step].plan.plan.bytes
        named = symbol(emitter.arena_name(step), *bounds(arena))
        total = workspace(tokens, rows, facts.output_width, arena)
        memory |= {
            "session": f"{layout.fixed_bytes} + {layout.page_bytes} * ceil(positions / 256)",
            "session_at_context": layout.bytes(facts.context),
            "workspace": str(workspace(tokens, rows, facts.output_width, named)),
            "workspace_at_chunk": evaluate(total, {"T": facts.chunk, "R": 1, "threads": 1}),
        }
    for graph in reversed(emitter.measured()):
        if functions[graph].plan.plan.slots:
            memory[emitter.arena_name(graph)] = str(sum(emitter.slot_bytes(graph), start=0))
    return memory


def _merged(memories: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The memory of all variants; what differs between them goes by "KEY for VARIANT"."""
    merged: dict[str, Any] = {}
    for key in dict.fromkeys(key for memory in memories.values() for key in memory):
        values = {name: memory.get(key, 0) for name, memory in memories.items()}
        if len(set(values.values())) == 1:
            merged[key] = next(iter(values.values()))
        else:
            merged |= {f"{key} for {name}": value for name, value in values.items()}
    return merged


def _regions(variant: interface.Variant) -> dict[str, int]:
    """Of a loop, one turn is counted, and of a branch the one with the most."""
    emitter, found = variant.emitter, dict[Graph, int]()
    for graph, function in emitter.functions.items():
        found[graph] = 0
        for line in function.lines:
            called = [found[use.graph] for use in line.uses]
            found[graph] += line.call.regions if line.call else max(called, default=0)
    return {emitter.function_names[graph]: count for graph, count in reversed(found.items()) if count}


def _kernels(variant: interface.Variant) -> str:
    includes = "\n".join(f'#include "{header}"' for header in ("run.h", variant.target.header, *BASELINE_HEADERS))
    body = "\n\n".join(text.strip() for text in variant.kernels.values())
    return f"/* The kernels that the model calls, for {variant.name}. */\n{includes}\n\n{body}\n"


def _model(facts: interface.Facts, variant: interface.Variant) -> str:
    """The model's own file for one target."""
    emitter, functions, prefix = variant.emitter, variant.emitter.functions, facts.prefix
    memory = _memory(facts, variant)
    reads = "".join(f"\n *   {key}: {value}" for key, value in memory.items() if isinstance(value, int))
    sections = [
        f"/* {interface.comment_text(facts.name)}, compiled by inferc for {variant.name}.\n *\n"
        f" * Bytes (exact formulas: {prefix}.h):{reads} */\n"
        f'#include <string.h>\n\n#include "{prefix}_{variant.name}_kernels.h"\n#include "{prefix}_program.h"'
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
    sections.append(interface.program_table(facts, variant))
    return "\n\n".join(sections) + "\n"
