"""JAX functions as C: traced, passed, compiled, and then the interpreter's bits, whatever ops and control flow they use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import pytest

from inferc.backends.c import target
from inferc.compiler import named_ops
from inferc.compiler.pipeline import run_passes
from inferc.compiler.tracing import Input, trace
from inferc.ir.graph import Module, Weight, subgraphs
from inferc.ir.interpret import interpret
from inferc.ir.types import Dim, DType, Type, array_dtype, array_shape, f32, symbol, symbols
from inferc.ir.types import substitute as substitute_dim

from .c_harness import same_bits
from .c_programs import OK, compile_library, run_function

T = symbol("T", 1, 40)
RNG = np.random.default_rng(11)


def arg(name: str, shape: Sequence[Dim], dtype: DType = f32) -> Input:
    return Input(name, "arg", Type(tuple(shape), dtype))


def weight(name: str, shape: Sequence[int]) -> Input:
    return Input(name, "weight", Type(tuple(shape), f32))


def random(t: Type) -> np.ndarray:
    if t.dtype.is_integer:
        return RNG.integers(0, 9, array_shape(t)).astype(array_dtype(t))
    return RNG.standard_normal(array_shape(t)).astype(array_dtype(t))


def concrete(t: Type, dims: dict[str, int]) -> Type:
    return Type(tuple(substitute_dim(d, dims) for d in t.shape), t.dtype)


def final_module(function: Callable[..., Any], inputs: Sequence[Input], name: str = "native") -> Module:
    """What a backend gets of a traced function."""
    graph, weights = trace(function, inputs, name="compute")
    made = {i.name: random(i.type) for i in inputs if i.role == "weight"}
    weights |= {i.name: Weight(i.name, i.type, lambda a=made[i.name]: a) for i in inputs if i.role == "weight"}
    return run_passes(Module({"compute": graph}, weights), target.get(name).ir)


def check(function: Callable[..., Any], *inputs: Input, dims: Sequence[dict[str, int]] = ({},),
          arrays: dict[str, Any] | None = None, close: float = 1e-5) -> Module:  # fmt: skip
    """C has the interpreter's bits, and both what JAX computes, at each of the dims; the module that was compiled."""
    module = final_module(function, inputs)
    library = compile_library(module, "native", threads=2)
    graph = module.entries["compute"]
    source = {i.name: module.weights[i.name].load() for i in inputs if i.role == "weight"}
    given = [n for n in graph.inputs_of("arg")]
    names = sorted({s.name for i in inputs for d in i.type.shape for s in symbols(d)}, key=lambda n: (n != "T", n))
    for values in dims:
        data = {n.attr("name"): random(concrete(n.types[0], values)) for n in given}
        data |= {k: np.asarray(v, data[k].dtype) for k, v in (arrays or {}).items()}
        want = interpret(module, data, values, entry="compute")
        got = [np.full(w.shape, 0x5A, w.dtype) for w in want]
        status = run_function(library, "compute", {n: values[n] for n in names}, list(data.values()), got)
        assert status == OK, library.c.model_message(status)
        assert all(same_bits(g, w) for g, w in zip(got, want, strict=True)), (values, got, want)
        expected = jax.jit(function)(*({**source, **data}[i.name] for i in inputs))
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, np.asarray(e), close, close)
    library.close()
    return module


def ops_of(module: Module) -> set[str]:
    """The ops of an entry and of all graphs that it calls."""
    found, stack = set(), list(module.entries.values())
    while stack:
        for node in stack.pop().nodes():
            found.add(node.op.name)
            stack += subgraphs(node)
    return found


# ---- ops without kernels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
def test_dense_attention(causal: bool) -> None:
    q, k, v = arg("q", (2, 4, T, 8)), arg("k", (2, 2, 24, 8)), arg("v", (2, 2, 24, 6))
    module = check(lambda q, k, v: [named_ops.attention(q, k, v, scale=0.3, causal=causal)], q, k, v,
                   dims=[{"T": 1}, {"T": 9}, {"T": 24}])  # fmt: skip
    assert "attention" not in ops_of(module) and "dot_general" in ops_of(module)


def test_products_of_computed_weights() -> None:
    """A weight that is known at run time only has no packed form."""

    def function(x: Any, w: Any, fixed: Any) -> list[Any]:
        return [named_ops.linear(x, w) + named_ops.linear(x, fixed), named_ops.linear(x, w * 2)]

    module = check(function, arg("x", (T, 20)), arg("w", (7, 20)), weight("fixed", (7, 20)), dims=[{"T": 5}])
    assert {"dot_general", "linear_add"} <= ops_of(module)
