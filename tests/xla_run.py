"""Graphs through StableHLO: lowered to text, then evaluated by XLA, by the reference interpreter, or by IREE."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes
import numpy as np

from inferc.backends.xla import greedy
from inferc.backends.xla.context import Context, Facts
from inferc.backends.xla.lower import LOWERINGS, lower
from inferc.backends.xla.parts import join, part_types, split
from inferc.backends.xla.portable import serialize
from inferc.backends.xla.text import Tensor, Writer, module_text
from inferc.ir.graph import Graph
from inferc.ir.interpret import interpret, prepare_weights, to_array
from inferc.ir.rewrite import expand
from inferc.ir.types import DTYPES, DType, Expr, Sym, Type, f32
from inferc.runtime import xla_call


@dataclass(frozen=True)
class Case:
    """A graph with values for its inputs, lowered for their sizes."""

    graph: Graph
    arrays: Mapping[str, np.ndarray]  # as the interpreter holds them
    context: Context
    text: str

    @property
    def dims(self) -> Mapping[str, int]:
        return self.context.dims

    @property
    def inputs(self) -> list[tuple[tuple[int, ...], str]]:
        return [h for n in self.graph.inputs for h in self.context.held(n.types[0])]

    @property
    def outputs(self) -> list[tuple[tuple[int, ...], str]]:
        return [h for v in self.graph.outputs for h in self.context.held(v.type)]

    def flat(self) -> list[np.ndarray]:
        """The tensors of the inputs, bf16 as ml_dtypes has it."""
        found = []
        for n in self.graph.inputs:
            t = self.context.type(n.types[0])
            parts = split(Type(t.shape, t.dtype, n.types[0].layout), self.arrays[n.attr("name")])
            found += [p.view(ml_dtypes.bfloat16) if t.dtype.name == "bf16" else p for p in parts]
        return found

    def joined(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs as the interpreter holds them."""
        rest = iter(t.view(np.uint16) if t.dtype == ml_dtypes.bfloat16 else t for t in tensors)
        types = [self.context.type(v.type) for v in self.graph.outputs]
        return [join(t, [next(rest) for _ in part_types(t)]) for t in types]

    def expected(self) -> list[np.ndarray]:
        """The outputs by the interpreter of the IR."""
        found = interpret(self.graph, self.arrays, self.dims)
        return list(found.values()) if isinstance(found, dict) else list(found)


def case(graph: Graph, arrays: Mapping[str, Any], dims: Mapping[str, int] | None = None, facts: Facts = Facts(),
         compute: DType = f32, platform: str = "") -> Case:  # fmt: skip
    """Lowers a graph for the sizes of `arrays`; ops without a row are decomposed."""
    held = {n.attr("name"): to_array(n.types[0], arrays[n.attr("name")]) for n in graph.inputs}
    sizes = dict(dims or {})
    for n in graph.inputs:
        for dim, size in zip(n.types[0].shape, held[n.attr("name")].shape):
            match dim:
                case Expr(terms=((((Sym(name=name), 1),), 1),)):
                    sizes.setdefault(name, size)
    context = Context(sizes, facts, compute, platform)
    return Case(graph, held, context, lower(context, expand(graph, lambda n: n.op.name not in LOWERINGS)))


def by_xla(cases: Sequence[Case]) -> list[list[np.ndarray]]:
    """The outputs of all cases, compiled as one program for the CPU."""
    w, functions, results = Writer(), [], []
    given: list[tuple[Tensor, str]] = []
    for i, c in enumerate(cases):
        inside = c.text[c.text.index("{") + 1 : c.text.rindex("}")].replace("func.func public", "func.func private")
        functions.append(re.sub(r"@(\w+)", rf"@c{i}_\1", inside))
        operands = [w.fresh(*t) for t in c.inputs]
        given += [(t, "") for t in operands]
        results += w.call(f"c{i}_main", operands, c.outputs)
    text = module_text("cases", [*functions, w.function("main", given, results, True)])
    inputs, outputs = [t for c in cases for t in c.inputs], [t for c in cases for t in c.outputs]
    call = xla_call.exported(serialize(text), inputs, outputs, "cpu").call
    options = xla_call.options("cpu") | {"xla_backend_optimization_level": "0"}  # compiles in half the time
    compiled = jax.jit(call).lower(*xla_call.structs(inputs)).compile(compiler_options=options)
    made = iter([np.asarray(r) for r in compiled(*(a for c in cases for a in c.flat()))])
    return [c.joined([next(made) for _ in c.outputs]) for c in cases]


def by_reference(c: Case) -> list[np.ndarray]:
    """The outputs by StableHLO's reference interpreter, which is slow: for small cases."""
    import jaxlib.mlir.ir as ir
    from jax.interpreters import mlir
    from jaxlib.mlir.dialects import stablehlo

    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(closed(c))
        module.operation.verify()
        found = [np.array(r) for r in stablehlo.eval_module(module, [])]
    return c.joined([narrowed(a, *t) for a, t in zip(found, c.outputs)])


def closed(c: Case) -> str:
    """The module as one that takes nothing: inputs are constants, results f32, f64 or i32."""
    w = Writer()
    dtypes = {e: DTYPES[n] for n, e in ELEMENTS.items()}
    operands = []
    for array, (shape, element) in zip(c.flat(), c.inputs):
        bits = array.view(np.uint16) if element == "bf16" else array
        operands.append(w.array(bits.reshape(shape), dtypes[element]))
    made = w.call("c_main", operands, c.outputs)
    wide = [w.convert(t, WIDE.get(t.element, "i32")) for t in made]
    inside = c.text[c.text.index("{") + 1 : c.text.rindex("}")].replace("func.func public", "func.func private")
    return module_text("closed", [re.sub(r"@(\w+)", r"@c_\1", inside), w.function("main", [], wide, True)])


ELEMENTS = {"f32": "f32", "f16": "f16", "bf16": "bf16", "f64": "f64", "bool": "i1", "i8": "i8", "i16": "i16",
            "i32": "i32", "i64": "i64", "u8": "ui8", "u16": "ui16", "u32": "ui32", "u64": "ui64"}  # fmt: skip
WIDE = {"f16": "f32", "bf16": "f32", "f32": "f32", "f64": "f64", "i64": "i64", "ui32": "i64", "ui64": "i64"}


def narrowed(array: np.ndarray, shape: tuple[int, ...], element: str) -> np.ndarray:
    """A widened result in its own element type."""
    return array.reshape(shape).astype(xla_call.dtype_of(element))


def near(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Within `tolerance` of the values' scale; bytes of quantised values may differ where roundings meet."""
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    if expected.dtype == np.uint8 and expected.size > 1:
        assert (actual == expected).mean() > 0.97
        return
    if expected.dtype.kind != "f":
        assert np.array_equal(actual, expected)
        return
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max()) if finite.size else 1.0
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * max(scale, 1e-6))


def run_step(plan: Any, spec: Any, ids: Sequence[int]) -> np.ndarray:
    """Logits f32[len(ids), V] of a language model's plan for XLA, by one program of T = R tokens of one sequence."""
    program = plan.lowered.program
    tokens, slots = spec.dims["T"], spec.dims["S"]
    weights = [p for i in program.weights for p in _prepared(plan.module, i)]
    weights = [w.view(xla_call.dtype_of(e)) if e == "bf16" else w for w, e in zip(weights, _elements(program.weights))]
    state = [np.zeros(p.shape, xla_call.dtype_of(p.element)) for i in program.states for p in i.parts]
    compiled = compiled_step(program, spec, {"xla_backend_optimization_level": "0"})
    found = []
    for start in range(0, len(ids), tokens):
        piece = list(ids[start : start + tokens])
        padding = tokens - len(piece)
        arguments = [
            np.array(piece + [0] * padding, np.int32),
            np.array([0] * len(piece) + [slots] * padding, np.int32),
            np.arange(start, start + tokens, dtype=np.int32),
            np.arange(tokens, dtype=np.int32),
        ]
        logits, *state = compiled(*arguments, *weights, *state)
        found.append(np.asarray(logits)[: len(piece)])
    return np.concatenate(found)


def compiled_step(program: Any, spec: Any, options: Mapping[str, str]) -> Any:
    """A program of a step as the runtime compiles it, its states donated, with more compiler options."""
    inputs, outputs, states = tensors(program, spec)
    call = xla_call.exported(serialize(program.text(spec)), inputs, outputs, "cpu").call
    donated = tuple(range(len(inputs) - states, len(inputs)))
    lowered = jax.jit(call, donate_argnums=donated).lower(*xla_call.structs(inputs))
    return lowered.compile(compiler_options=xla_call.options("cpu") | dict(options))


def tensors(program: Any, spec: Any) -> tuple[list, list, int]:
    """What a program of a step, or of its loop, takes and gives, and how many of the last are states."""
    graph, context = program.graph, Context(spec.dims)
    inputs = [h for n in graph.inputs for h in context.held(n.types[0])]
    outputs = [h for v in graph.outputs for h in context.held(v.type)]
    states = sum(len(i.parts) for i in program.states)
    if spec.kind == "greedy":
        arguments = len(inputs) - states - sum(len(i.parts) for i in program.weights)
        inputs = [((1,), "i32"), ((1,), "i32"), ((), "i32"), ((greedy.ENDS,), "i32"), *inputs[arguments:]]
        outputs = [((), "i32"), ((greedy.MOST,), "i32"), *outputs[-states:]]
    return inputs, outputs, states


def _prepared(module: Any, i: Any) -> list[np.ndarray]:
    ((_, t, array),) = prepare_weights(module, {i.name})
    return split(t, array)


def _elements(inputs: Sequence[Any]) -> list[str]:
    return [p.element for i in inputs for p in i.parts]


def by_iree(c: Case) -> list[np.ndarray]:
    """The outputs by IREE, a compiler of its own that reads the same text."""
    import iree.compiler
    import iree.runtime

    text, options = closed(c).replace("@main", "@run"), ["--iree-llvmcpu-target-cpu=generic"]
    code = iree.compiler.compile_str(text, target_backends=["llvm-cpu"], input_type="stablehlo", extra_args=options)
    config = iree.runtime.Config("local-task")
    module = iree.runtime.load_vm_module(iree.runtime.VmModule.copy_buffer(config.vm_instance, code), config)
    found = module["run"]()
    arrays = [np.asarray(a) for a in (found if isinstance(found, (tuple, list)) else (found,))]
    return c.joined([narrowed(a, *t) for a, t in zip(arrays, c.outputs)])
