"""The interface of a compiled module: its header, and the files that join it to the model's functions."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.graph import Graph, IRError
from ...ir.types import Type, i32
from . import described
from .described import function_name
from .emit import Emitter, Parameter
from .state import HEADER_BYTES, SessionLayout
from .target import CTarget
from .text import c_string, comment_text, folded, runtime_text

# Parts of a language model that depend on what it gives: what samples from logits, a comment on embeddings.
OWN_PARTS = {("sampling", "h"), ("sampling", "c"), ("embeddings", "h")}
STEP_INPUTS = ("tokens", "sequence", "position", "rows")


@dataclass(frozen=True)
class Variant:
    """A module lowered for one target."""

    target: CTarget
    emitter: Emitter

    @property
    def name(self) -> str:
        return self.target.name

    @property
    def kernels(self) -> dict[str, str]:
        """The source of every kernel that is called, by its symbol, after what it needs."""
        calls = (line.call for f in self.emitter.functions.values() for line in f.lines if line.call)
        return {k.symbol: k.source for call in calls for k in call.kernel.closure()}


@dataclass(frozen=True)
class Facts:
    """What the interface says about a module; `variants` are in the order in which a CPU tries them.

    `vocabulary` counts the tokens of a model whose step gives embeddings (where it is 0, the columns of the logits do),
    and of a function that has a tokenizer.
    """

    prefix: str
    name: str
    variants: tuple[Variant, ...]
    context: int
    chunk: int
    weight_bytes: int
    entries: Mapping[str, Graph]
    layout: SessionLayout
    vocabulary: int = 0

    def __post_init__(self) -> None:
        for graph in self.entries.values():
            for v in self.variants[1:]:
                if v.emitter.signature(graph) != self.emitter.signature(graph):
                    raise IRError(f"{graph.name} takes other arguments on {v.name} than on {self.variants[0].name}")
        for entry, graph in self.entries.items():
            if entry != "step" and graph.inputs_of("state"):
                raise IRError(f"entry {entry}: only the entry named step may have states")
        if "step" in self.entries:
            self._check_step(self.entries["step"])

    def _check_step(self, graph: Graph) -> None:
        arguments = {n.attr("name"): n.types[0] for n in graph.inputs_of("arg")}
        dims = [s.name for s in self.emitter.dimensions(graph)]
        outputs = [graph.outputs[i].type for i in self.emitter.results(graph)]
        if tuple(arguments) != STEP_INPUTS or any(t.dtype != i32 or t.rank != 1 for t in arguments.values()):
            found = ", ".join(f"{n} {t}" for n, t in arguments.items())
            raise IRError(f"entry step: it takes tokens, sequence and position i32[T] and rows i32[R], not {found}")
        if dims != ["T", "R"] or len(outputs) != 1 or outputs[0].rank != 2 or not isinstance(outputs[0].shape[1], int):
            raise IRError(f"entry step: it gives {self.output} f32[R, width] over T and R, not {outputs} over {dims}")
        if self.emitter.functions[graph].optional is None:
            raise IRError(f"entry step: its {self.output} do not depend on the wanted rows")

    @property
    def emitter(self) -> Emitter:
        """That of the first variant: in what the interface shows they agree."""
        return self.variants[0].emitter

    @property
    def targets(self) -> str:
        """The variants' names, separated by spaces."""
        return " ".join(v.name for v in self.variants)

    @property
    def vocab_size(self) -> int:
        """Tokens of a model with text; 0 of other functions."""
        return self.vocabulary or self.output_width

    @property
    def output(self) -> str:
        """What the step gives of a wanted row: "logits" or "embeddings"; "" without a step."""
        return "" if "step" not in self.entries else "embeddings" if self.vocabulary else "logits"

    @property
    def output_width(self) -> int:
        """Columns of what the step gives; 0 without one."""
        if "step" not in self.entries:
            return 0
        graph = self.entries["step"]
        size = graph.outputs[self.emitter.results(graph)[0]].shape[1]
        assert isinstance(size, int)
        return size

    @property
    def functions(self) -> dict[str, Graph]:
        """Entries that become a function of their own."""
        return {name: graph for name, graph in self.entries.items() if name != "step"}

    def arrays(self, graph: Graph) -> tuple[list[tuple[str, Type]], list[tuple[str, Type]]]:
        """Names and types of what a function takes and gives."""
        names = [graph.output_names[i] if graph.output_names else f"out{i}" for i in range(len(graph.outputs))]
        results = [(names[i], graph.outputs[i].type) for i in self.emitter.results(graph)]
        return [(n.attr("name"), n.types[0]) for n in graph.inputs_of("arg")], results

    def prefixed(self, text: str) -> str:
        """`prefixed` with this module's prefix."""
        return prefixed(self.prefix, text)


def prefixed(prefix: str, text: str) -> str:
    """Hand-written C with a prefix in the place of `model`."""
    text = re.sub(r"\bmodel_", f"{prefix}_", text)
    text = re.sub(r"\bMODEL_", f"{prefix.upper()}_", text)
    return text.replace('"model.h"', f'"{prefix}.h"')


def header(facts: Facts, memory: Mapping[str, Any]) -> str:
    """PREFIX.h."""
    title = comment_text(f"{facts.name}, compiled by inferc for {facts.targets}.")
    text = runtime_text("abi.h").replace("@TITLE@", title)
    constants = []
    if facts.output:
        constants = [f"MODEL_VOCAB_SIZE = {facts.vocab_size},",
                     f"MODEL_OUTPUT_WIDTH = {facts.output_width}, /* floats that an eval gives of a wanted token */",
                     f"MODEL_MAX_POSITIONS = {facts.context}, /* of a session */",
                     f"MODEL_MAX_TOKENS = {facts.chunk} /* of one eval */"]  # fmt: skip
        language = _language(facts, "h").replace("@SESSION_FORMULA@", memory["session"])
        formulas = [f"{key} = {value}" for key, value in memory.items() if key == "workspace" or "_arena" in key]
        text += language.replace("@WORKSPACE_FORMULA@", "\n * ".join(map(_folded, formulas)))
    elif facts.vocab_size:
        constants = [f"MODEL_VOCAB_SIZE = {facts.vocab_size} /* ids of a text are less */"]
        text += runtime_text("encoder.h") + runtime_text("text.h")
    text = text.replace("  @CONSTANTS@\n", "".join(f"  {line}\n" for line in constants))
    for name, graph in facts.functions.items():
        text += "\n" + _function_declaration(facts, name, graph)
    if described.ENTRY in facts.entries:
        text += described.header_text(*facts.arrays(facts.entries[described.ENTRY]))
    return facts.prefixed(text + runtime_text("abi_end.h"))


def _language(facts: Facts, kind: str) -> str:
    """The hand-written part of a language model, of "h" or "c". What an eval gives is named after what it is."""
    session = runtime_text(f"language.{kind}").replace("logits", facts.output)
    own = "sampling" if facts.output == "logits" else "embeddings"
    return session + runtime_text(f"text.{kind}") + (runtime_text(f"{own}.{kind}") if (own, kind) in OWN_PARTS else "")


def _folded(text: str, width: int = 110) -> str:
    """A long formula over several comment lines."""
    lines, row = [], ""
    for word in text.split(" "):
        if len(row) + len(word) > width:
            lines.append(row.rstrip())
            row = ""
        row += word + " "
    return "\n * ".join([*lines, row.rstrip()])


def _function_declaration(facts: Facts, name: str, graph: Graph) -> str:
    parameters = facts.emitter.parameters(graph)
    what = ", ".join(f"{p.name} {p.type}" for p in parameters if p.type is not None)
    return (
        f"/* {comment_text(what)}. INVALID, SIZE. */\n"
        f"MODEL_API model_status {_function_head(name, parameters)};\n"
        f"MODEL_API size_t {_bytes_head(facts, name, graph)};\n"
    )


def _function_head(name: str, parameters: Sequence[Parameter]) -> str:
    declared = ", ".join(p.declaration for p in parameters)
    head = f"model_{function_name(name)}(model_model *model, void *workspace, size_t bytes, {declared})"
    return folded(head, "    ", 90)


def _bytes_head(facts: Facts, name: str, graph: Graph) -> str:
    dims = "".join(f", int32_t {s.name}" for s in facts.emitter.dimensions(graph))
    return f"model_{function_name(name)}_workspace_bytes(const model_model *model{dims})"


def _entry_type(facts: Facts, name: str, graph: Graph) -> list[str]:
    dims = [s.name for s in facts.emitter.dimensions(graph)]
    return [
        f"  void (*{name})({', '.join(facts.emitter.signature(graph))});",
        f"  size_t (*{name}_arena_bytes)({', '.join(f'int32_t {d}' for d in ('threads', *dims))});",
    ]


def program_header(facts: Facts, fingerprint: int) -> str:
    """PREFIX_program.h: the table that the model's file for each target gives, and constants of its sessions."""
    lines = [
        "/* What the model's own files, one for each target, give to the library's functions. */",
        "#ifndef MODEL_PROGRAM_H\n#define MODEL_PROGRAM_H\n",
        '#include "model.h"\n#include "run.h"\n',
    ]
    if facts.output:
        layout = facts.layout
        rewind = "INT32_MAX" if layout.rewind is None else str(layout.rewind)
        lines += [
            f"#define MODEL_HEADER_BYTES {HEADER_BYTES}",
            f"#define MODEL_SESSION_FIXED_BYTES ((size_t){layout.fixed_bytes})",
            f"#define MODEL_SESSION_PAGE_BYTES ((size_t){layout.page_bytes}) /* for each 256 positions */",
            f"#define MODEL_REWIND {rewind} /* positions before the furthest that are surely remembered */",
            f"#define MODEL_FINGERPRINT UINT64_C(0x{fingerprint:016x})\n",
        ]
    lines += ["typedef struct model_program_table {", "  model_info info;"]
    lines += ["  const char *const *cpu_features; /* ends with a null pointer */"]
    for name, graph in facts.entries.items():
        lines += _entry_type(facts, name, graph)
    lines += ["} model_program_table;\n"]
    lines += ["/* The weights that the model was compiled with: where they are built in, if they are, as the text\n"
              " * tables may be, and the weights' sum as in sum.h, 0 for unknown. */",
              "typedef struct model_weights_facts {\n  const void *data;\n  size_t bytes;\n  const void *text;\n"
              "  size_t text_bytes;\n  uint64_t sum;\n"
              "} model_weights_facts;\n",
              "extern const model_weights_facts model_own_weights;"]  # fmt: skip
    lines += [f"extern const model_program_table model_program_{v.name};" for v in facts.variants]
    lines += ["\n#endif\n"]
    return facts.prefixed("\n".join(lines))


def program_table(facts: Facts, variant: Variant) -> str:
    """The definition of that table, at the end of a target's file."""
    target, emitter = variant.target, variant.emitter
    features = ", ".join([*(c_string(f) for f in target.cpu_features), "NULL"])
    fields = [
        f".abi = {facts.prefix.upper()}_ABI", f".vocab_size = {facts.vocab_size}",
        f".context = {facts.context if facts.output else 0}", f".chunk = {facts.chunk if facts.output else 0}",
        f".weights_bytes = {facts.weight_bytes}", f".name = {c_string(facts.name)}",
        f".target = {c_string(variant.name)}", f".cpu_features = {c_string(' '.join(target.cpu_features))}",
        f".targets = {c_string(facts.targets)}", f".output = {c_string(facts.output)}",
        f".output_width = {facts.output_width}",
    ]  # fmt: skip
    rows = "".join(f"          {field},\n" for field in fields)
    entries = ""
    for name, graph in facts.entries.items():
        function, arena = emitter.function_names[graph], emitter.arena_name(graph)
        entries += f"    .{name} = {function},\n    .{name}_arena_bytes = {arena}_bytes,\n"
    return (
        f"static const char *const cpu_features[] = {{{features}}};\n\n"
        f"const {facts.prefix}_program_table {facts.prefix}_program_{variant.name} = {{\n"
        f"    .info =\n        {{\n{rows}        }},\n    .cpu_features = cpu_features,\n{entries}}};"
    )


def implementation(facts: Facts) -> str:
    """PREFIX_abi.c."""
    programs = "".join(f"    &model_program_{v.name},\n" for v in facts.variants)
    text = runtime_text("abi.c").replace("    @PROGRAMS@\n", programs)
    text += _language(facts, "c") if facts.output else runtime_text("text.c") if facts.vocab_size else ""
    for name, graph in facts.functions.items():
        text += "\n" + _function_definition(facts, name, graph)
    if run := facts.entries.get(described.ENTRY):
        text += described.implementation_text(run, *facts.arrays(run), facts.emitter.dimensions(run))
    return facts.prefixed(text)


def _function_definition(facts: Facts, name: str, graph: Graph) -> str:
    """An entry's own function: checks, then the graph."""
    symbols = facts.emitter.dimensions(graph)
    parameters = facts.emitter.parameters(graph)
    dims = "".join(f", {s.name}" for s in symbols)
    outside = "".join(f" || {s.name} < {s.lo} || {s.name} > {min(s.hi, (1 << 31) - 1)}" for s in symbols)
    nulls = "".join(f" || !{p.name}" for p in parameters if isinstance(p.type, Type))
    passed = ", ".join(p.name for p in parameters)
    return f"""size_t {_bytes_head(facts, name, graph)} {{
  return model ? model->program->{name}_arena_bytes(model->threads{dims}) : 0;
}}

model_status {_function_head(name, parameters)} {{
  if (!model || !workspace || !is_aligned(workspace){outside}{nulls}) return MODEL_INVALID;
  if (bytes < model_{function_name(name)}_workspace_bytes(model{dims})) return MODEL_SIZE;
  const visit entered = visit_begin(model, NULL, 0);
  model->program->{name}(&entered.run, {passed}, workspace);
  visit_end(model, &entered);
  return MODEL_OK;
}}
"""
