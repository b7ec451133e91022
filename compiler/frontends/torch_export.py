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
from ...ir.graph import Graph, IRError, Module
from ...ir.types import Dim, symbol, unsized
from ..signature import described
from ..source import Kind, weight_facts
from .arrays import Array
from .torch_complex import COMPLEX, PLAIN
from .torch_control import HIGHER
from .torch_import import LARGEST_DIM, Complex, Importer, Rule
from .torch_linalg import LINALG
from .torch_random import RANDOM
from .torch_series import SERIES
from .torch_special import SPECIAL

TABLE: Mapping[str, Rule] = {**PLAIN, **SPECIAL, **LINALG, **RANDOM, **SERIES}
FIXED = object()  # stands for an input that is no tensor: the export has fixed its value
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
    "elu.default", "take.default", "leaky_relu.default", "unfold.default",
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
        return self._imported[0]

    def tokenizer(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        module, signature = self._imported
        return weight_facts(module.weights.values()) | {"signature": signature}

    @cached_property
    def _imported(self) -> tuple[Module, dict[str, Any]]:
        """The module, and its signature."""
        where = str(self.path or self.name)
        try:
            program = self.program.run_decompositions(dict(decompositions()))
        except (RuntimeError, AssertionError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise InfercError(f"{where}: torch cannot decompose the program ({first})") from error
        importer = Importer(where, TABLE, self._symbols(program), COMPLEX, HIGHER)
        values: dict[Any, Any] = {}
        taken: list[Any] = []  # by the user's inputs: the place among the arguments, or FIXED
        specs = {s.arg.name: s for s in program.graph_signature.input_specs}
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            spec = specs[node.name]
            example = node.meta["val"]
            if spec.kind == InputKind.TOKEN:
                values[node] = None  # the order of checks, of which nothing is left
            elif spec.kind != InputKind.USER_INPUT:
                values[node] = importer.weight(spec.target or node.name, _stored(program, spec))
            elif isinstance(example, torch.Tensor):
                taken.append(len(importer.arguments))
                values[node] = importer.argument(node.name, example)
            else:
                taken.append(FIXED)
                values[node] = example
        if missing := unsized([d for n in importer.arguments for d in n.types[0].shape]):
            raise InfercError(f"{where}: no input has an axis that is {missing[0]} alone or a multiple of it; give one")
        try:
            results = importer.run(list(program.graph.nodes), values)
        except IRError as error:
            raise InfercError(f"{where}: {error}") from error
        outputs: list[Array] = []
        given: list[Any] = []  # by the user's results: the place among the outputs, or None
        pairs = set()
        for spec, value in zip(program.graph_signature.output_specs, results):
            if spec.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
                raise InfercError(f"{where}: {_changed(spec)}")
            if spec.kind == OutputKind.USER_OUTPUT:
                given.append(None if value is None else len(outputs))
                outputs += [] if value is None else [importer.result(value)]
                pairs |= {len(outputs) - 1} if isinstance(value, Complex) else set()
        arguments, weights = tuple(importer.arguments), tuple(importer.body.inputs.values())
        reached = set(Graph("run", (), tuple(o.value for o in outputs)).nodes())
        kept = (*arguments, *(n for n in weights if n in reached))
        graph = Graph("run", kept, tuple(o.value for o in outputs), tuple(f"out{i}" for i in range(len(outputs))))
        used = {n.attr("name") for n in kept}
        module = Module({"run": graph}, {k: w for k, w in importer.body.weights.items() if k in used})
        own = described(graph, (), importer.of_pairs, pairs)
        seed = [n.attr("name") for n in arguments[sum(t is not FIXED for t in taken) :]]
        return module, own | _arrangement(self.program, taken, given, seed)

    def _symbols(self, program: ExportedProgram) -> dict[str, Dim]:
        """torch's symbols of the inputs' sizes, with their bounds."""
        known: dict[str, Dim] = {}
        sizes = {str(d) for node in program.graph.nodes if node.op == "placeholder"
                 for size in getattr(node.meta["val"], "shape", ()) if isinstance(size, torch.SymInt)
                 for d in size.node.expr.free_symbols}  # fmt: skip
        if unknown := sorted(self.bounds.keys() - sizes):
            raise InfercError(f"{self.path or self.name}: no input has a size {unknown[0]!r:.40}; these have names: "
                              f"{', '.join(sorted(sizes)) or 'none'}")  # fmt: skip
        for s, r in program.range_constraints.items():
            if str(s) not in sizes:
                continue
            low = int(r.lower) if r.lower.is_Integer else 0
            high = int(r.upper) if r.upper.is_Integer else LARGEST_DIM
            low, high = self.bounds.get(str(s), (low, high))
            known[str(s)] = symbol(str(s), max(low, 1), min(high, LARGEST_DIM))
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


def _changed(spec: Any) -> str:
    """What is wrong with a program that changes a tensor, and what to do."""
    target = str(spec.target)
    if spec.kind == OutputKind.USER_INPUT_MUTATION:
        return f"the program changes its argument {target}; return the new value instead"
    if target.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked"):
        return f"batch norm in training mode changes {target}; call model.eval() before exporting"
    return (f"the program changes the buffer {target}, and what is compiled keeps nothing between calls; take it as an "
            "argument and return the new value")  # fmt: skip


def _arrangement(program: ExportedProgram, taken: Sequence[Any], given: Sequence[Any],
                 more: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """How callers arrange inputs and outputs, as `runtime.function` reads it; `more` are arguments after the user's.

    Arguments that the export has fixed are left out; where something inside of one is fixed, arguments are flat.
    """
    ins, outs = program.call_spec.in_spec, program.call_spec.out_spec
    found: dict[str, Any] = {}
    if ins is not None and ins.num_leaves == len(taken):
        arguments, named = pytree.tree_unflatten(taken, ins)
        signature = program.module_call_graph[0].signature
        names = list(getattr(signature, "forward_arg_names", None) or ())
        names += [f"arg{i}" for i in range(len(names), len(arguments))]
        both = dict(zip(names, arguments)) | named
        both = {k: v for k, v in both.items() if any(leaf is not FIXED for leaf in pytree.tree_leaves(v))}
        if not any(leaf is FIXED for v in both.values() for leaf in pytree.tree_leaves(v)):
            last = sum(t is not FIXED for t in taken)
            found["arguments"] = {name: _numbered(tree) for name, tree in both.items()}
            found["arguments"] |= {name: last + i for i, name in enumerate(more)}
    if outs is not None and outs.num_leaves == len(given):
        found["result"] = _numbered(pytree.tree_unflatten(given, outs))
    return found


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
