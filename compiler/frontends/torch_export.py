"""Programs of `torch.export`: in memory or as .pt2 files, imported into a module with the entry `run`."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from ...errors import InfercError
from ...ir.graph import Graph, IRError, Module, make_input
from ...ir.types import Sym, symbols
from ..signature import described
from ..source import Kind, weight_facts
from .arrays import Array
from .torch_complex import COMPLEX, PLAIN
from .torch_control import HIGHER
from .torch_import import LARGEST_DIM, Importer, Rule
from .torch_linalg import LINALG
from .torch_special import SPECIAL

TABLE: Mapping[str, Rule] = {**PLAIN, **SPECIAL, **LINALG}
# Kept whole where torch would decompose them: what the IR has an op for, or is said better than in core ATen.
KEPT = (
    "linear.default", "layer_norm.default", "rms_norm.default", "scaled_dot_product_attention.default", "gelu.default",
    "silu.default", "batch_norm.default", "instance_norm.default", "group_norm.default", "matmul.default",
    "hardswish.default", "hardsigmoid.default", "mish.default", "celu.default", "selu.default", "relu6.default",
    "softplus.default", "log_softmax.int", "softmax.int", "upsample_bilinear2d.vec", "upsample_nearest2d.vec",
    "upsample_bicubic2d.vec", "upsample_linear1d.vec", "upsample_nearest1d.vec", "upsample_trilinear3d.vec",
    "upsample_nearest3d.vec",
    "_upsample_bilinear2d_aa.vec", "_upsample_bicubic2d_aa.vec", "adaptive_avg_pool2d.default",
    "pixel_shuffle.default", "dropout.default", "glu.default", "repeat_interleave.self_int", "max_pool2d.default",
    "elu.default", "leaky_relu.default", "unfold.default",
)  # fmt: skip


@dataclass(frozen=True)
class Program:
    """An exported program: a source of the driver. Its parameters are weights that share torch's memory.

    `bounds` are those of symbolic dimensions by torch's names (s0, s77, …), else what the export says, at most 65536.
    """

    program: ExportedProgram
    path: Path | None = None
    bounds: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    kind: Kind = "function"
    architecture: str = "torch"
    trained: int = 0

    @property
    def name(self) -> str:
        if self.path:
            return self.path.stem
        return getattr(self.program.graph_module, "meta", {}).get("name") or "program"

    def build(self, context: int = 0, chunk: int = 0) -> Module:
        """Entry "run": the program's tensors by name -> its outputs. Raises InfercError for what is not supported."""
        return self._imported

    def tokenizer(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        module = self._imported
        entry = module.entries["run"]
        arranged = _arrangement(self.program, [n.attr("name") for n in entry.inputs_of("arg")])
        found = described(entry, (), *_complex_places(self.program))
        return weight_facts(module.weights.values()) | {"signature": found | arranged}

    @cached_property
    def _imported(self) -> Module:
        where = str(self.path or self.name)
        try:
            program = self.program.run_decompositions(dict(decompositions()))
        except (RuntimeError, AssertionError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InfercError(f"{where}: torch cannot decompose the program ({first})") from error
        known = self._symbols(program)
        importer = Importer(where, TABLE, known, COMPLEX, HIGHER)
        values: dict[Any, Any] = {}
        inputs = []
        specs = {s.arg.name: s for s in program.graph_signature.input_specs}
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            example = node.meta["val"]
            if spec.kind == InputKind.TOKEN:
                values[node] = None  # the order of checks, of which nothing is left
            elif spec.kind == InputKind.USER_INPUT:
                if not isinstance(example, torch.Tensor):
                    values[node] = example  # a number that the export has fixed
                    continue
                made = make_input(node.name, "arg", importer.type(example, f"{where}: the input {node.name}"))
                values[node] = Array(made[0], importer.body)
                inputs.append(made)
            else:
                values[node] = importer.weight(spec.target or node.name, _stored(program, spec))
        plain = {str(d) for n in inputs for d in n.types[0].shape}
        for n in inputs:
            for d in n.types[0].shape:
                if missing := [s.name for s in symbols(d) if s.name not in plain]:
                    raise InfercError(f"{where}: no input has an axis of exactly {missing[0]}; give one such an axis")
        try:
            results = importer.run(list(program.graph.nodes), values)
        except IRError as error:
            raise InfercError(f"{where}: {error}") from error
        outputs = []
        for spec, value in zip(program.graph_signature.output_specs, results):
            if spec.kind == OutputKind.USER_OUTPUT:
                if not isinstance(value, Array):
                    raise InfercError(f"{where}: the output {spec.arg} is no tensor; return tensors only")
                outputs.append(value)
            elif spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                raise InfercError(
                    f"{where}: the program changes {spec.target} as it runs; return the new value instead"
                )
        weights = tuple(importer.body.inputs.values())
        graph = Graph("run", (*inputs, *weights), tuple(o.value for o in outputs),
                      tuple(f"out{i}" for i in range(len(outputs))))  # fmt: skip
        reached = set(Graph("run", (), graph.outputs).nodes())
        kept = tuple(n for n in graph.inputs if n in reached or n in inputs)
        graph = Graph("run", kept, graph.outputs, graph.output_names)
        used = {n.attr("name") for n in kept}
        module = Module({"run": graph}, {k: w for k, w in importer.body.weights.items() if k in used})
        return module

    def _symbols(self, program: ExportedProgram) -> dict[str, Sym]:
        """torch's symbols with their bounds."""
        known = {}
        for s, r in program.range_constraints.items():
            low = int(r.lower) if r.lower.is_Integer else 0
            high = int(r.upper) if r.upper.is_Integer else LARGEST_DIM
            low, high = self.bounds.get(str(s), (low, high))
            known[str(s)] = Sym(str(s), max(low, 1), min(high, LARGEST_DIM))
        return known


@cache
def decompositions() -> dict[Any, Any]:
    """torch's own, but for what is kept whole."""
    table = torch.export.default_decompositions()
    for name in KEPT:
        packet, overload = name.split(".")
        table.pop(getattr(getattr(torch.ops.aten, packet), overload), None)
    return table  # type: ignore[return-value]


def _stored(program: ExportedProgram, spec: Any) -> torch.Tensor:
    for place in (program.state_dict, program.constants):
        if spec.target in place:
            found = place[spec.target]
            assert isinstance(found, torch.Tensor)
            return found
    raise InfercError(f"the program has no tensor {spec.target}; export it again")


def _arrangement(program: ExportedProgram, inputs: int) -> dict[str, Any]:
    """How callers arrange inputs and outputs, as `runtime.function` reads it; flat where some inputs are no tensors."""
    taken, given = program.call_spec.in_spec, program.call_spec.out_spec
    if taken is None or given is None or taken.num_leaves != inputs:
        return {}
    arguments, named = pytree.tree_unflatten(range(inputs), taken)
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or ())
    names += [f"arg{i}" for i in range(len(names), len(arguments))]
    both = dict(zip(names, arguments)) | named
    result = pytree.tree_unflatten(range(given.num_leaves), given)
    return {"arguments": {name: _numbered(tree) for name, tree in both.items()}, "result": _numbered(result)}


def _numbered(tree: Any) -> Any:
    """The structure as JSON; leaves are their own numbers."""
    if isinstance(tree, int):
        return tree
    if tree is None:
        return {"kind": "none", "name": "", "keys": [], "children": []}
    if isinstance(tree, Mapping):
        kind, keys, children = "dict", list(tree), list(tree.values())
    else:
        kind = "list" if isinstance(tree, list) else "namedtuple" if hasattr(tree, "_fields") else "tuple"
        keys, children = list(getattr(tree, "_fields", range(len(tree)))), list(tree)
    name = type(tree).__name__ if kind == "namedtuple" else ""
    return {"kind": kind, "name": name, "keys": keys, "children": [_numbered(child) for child in children]}


def load(path: Path | str, **options: Any) -> Program:
    """Opens a .pt2 file. Raises InfercError for one that is missing or that torch cannot read."""
    path = Path(path)
    if not path.is_file():
        raise InfercError(f"{path}: no such file; give the path of what torch.export.save wrote")
    if not zipfile.is_zipfile(path):
        raise InfercError(f"{path}: is no program of torch; save it with torch.export.save")
    try:
        return Program(torch.export.load(path), path, **options)
    except (RuntimeError, ValueError, OSError, KeyError, AttributeError, AssertionError, zipfile.BadZipFile) as error:
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InfercError(f"{path}: torch cannot read it ({first}); save it again with torch.export.save") from error


def opened(program: Any, examples: Sequence[Any] = (), weights: Any = None,
           dynamic: Mapping[str, tuple[int, int]] | None = None) -> Program:  # fmt: skip
    """A program in memory. Raises InfercError for a module that has not been exported."""
    if not isinstance(program, ExportedProgram):
        raise InfercError(
            f"a {type(program).__name__} must be exported first: inferc.compile(torch.export.export(model, (inputs,)))"
        )
    if examples or weights is not None:
        raise InfercError("an exported program has its inputs and weights inside: pass it alone, or with dynamic")
    return Program(program, None, dict(dynamic or {}))
