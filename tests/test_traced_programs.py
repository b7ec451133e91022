"""JAX functions as C: traced, passed, compiled, and then the interpreter's bits, also in control flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from inferc.backends.c import target
from inferc.backends.c.control import uses_of
from inferc.compiler import named_ops
from inferc.compiler.pipeline import run_passes
from inferc.compiler.tracing import Input, trace
from inferc.ir.graph import Graph, IRError, Module, Weight, make, make_input, subgraphs
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.types import Dim, DType, Type, array_dtype, array_shape, f32, i32, symbol, symbols
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


def check(function: Callable[..., Any], *inputs: Input, cases: Sequence[dict[str, Any]] = ({},)) -> Module:
    """C has the interpreter's bits, and they are near JAX's results; the module that was compiled. A case gives symbols
    their values, and inputs theirs where they are not to be random."""
    module = final_module(function, inputs)
    library = compile_library(module, "native", threads=2)
    graph = module.entries["compute"]
    source = {i.name: module.weights[i.name].load() for i in inputs if i.role == "weight"}
    given = [n for n in graph.inputs_of("arg")]
    names = sorted({s.name for i in inputs for d in i.type.shape for s in symbols(d)}, key=lambda n: (n != "T", n))
    for case in cases:
        values = {n: case[n] for n in names}
        data = {n.attr("name"): random(concrete(n.types[0], values)) for n in given}
        data |= {k: np.asarray(v, data[k].dtype) for k, v in case.items() if k in data}
        want = interpret(module, data, values, entry="compute")
        got = [np.full(w.shape, 0x5A, w.dtype) for w in want]
        status = run_function(library, "compute", values, list(data.values()), got)
        assert status == OK, library.c.model_message(status)
        assert all(same_bits(g, w) for g, w in zip(got, want, strict=True)), (values, got, want)
        expected = jax.jit(function)(*({**source, **data}[i.name] for i in inputs))
        for g, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(g, np.asarray(e), 1e-5, 1e-5)
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
                   cases=[{"T": 1}, {"T": 9}, {"T": 24}])  # fmt: skip
    assert "attention" in ops_of(module)


def test_products_of_computed_weights() -> None:
    """A weight that is known at run time only has no packed form."""

    def function(x: Any, w: Any, fixed: Any) -> list[Any]:
        return [named_ops.linear(x, w) + named_ops.linear(x, fixed), named_ops.linear(x, w * 2)]

    module = check(function, arg("x", (T, 20)), arg("w", (7, 20)), weight("fixed", (7, 20)), cases=[{"T": 5}])
    assert {"dot_general", "linear_add"} <= ops_of(module)


# ---- control flow ---------------------------------------------------------------------------------------------------


def test_while() -> None:
    def function(x: Any, n: Any) -> Any:
        return jax.lax.while_loop(lambda c: c[0] < c[2], lambda c: (c[0] + 1, jnp.sin(c[1]) + c[0], c[2]), (0, x, n))

    check(function, arg("x", (T, 3)), arg("n", (), i32), cases=[{"T": 4, "n": n} for n in (0, 1, 7)])


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse: bool) -> None:
    def function(x: Any, rows: Any, w: Any) -> Any:
        def body(carry: Any, row: Any) -> Any:
            total, count = carry
            total = jnp.tanh(total @ w + row)
            return (total, count + 1), (total[0], count)

        (total, count), (firsts, counts) = jax.lax.scan(body, (x, 0), rows, reverse=reverse)
        return total, count, firsts, counts

    check(function, arg("x", (8, 5)), arg("rows", (T, 8, 5)), weight("w", (5, 5)), cases=[{"T": 1}, {"T": 13}])


def test_cond() -> None:
    def function(x: Any, n: Any) -> Any:
        branches = [lambda x: (x + 1, x), lambda x: (x * 2, jnp.exp(x)), lambda x: (x, x)]
        return (*jax.lax.switch(n, branches, x), *jax.lax.cond(n > 2, branches[0], branches[1], x + 1))

    check(function, arg("x", (T, 3)), arg("n", (), i32), cases=[{"T": 4, "n": n} for n in (-3, 0, 1, 2, 9)])


def test_layers_in_a_loop() -> None:
    """A jitted layer, a captured table and a product of a weight, all inside loops inside loops."""
    table = RNG.standard_normal((40, 12)).astype(np.float32)

    @jax.jit
    def layer(x: Any, w: Any) -> Any:
        return named_ops.rms_norm(x + named_ops.linear(jnp.tanh(x), w), table[0], eps=1e-5)

    def function(x: Any, stack: Any, w: Any, ids: Any) -> Any:
        def inner(i: Any, x: Any) -> Any:
            return jax.lax.cond(i % 2 == 0, lambda x: layer(x, w), lambda x: x + jnp.asarray(table)[i], x)

        def outer(x: Any, row: Any) -> Any:
            y = jax.lax.fori_loop(0, ids[0] + 2, inner, layer(x, row))
            return y, (y.sum(), named_ops.embedding(table, ids))

        return jax.tree.leaves(jax.lax.scan(outer, layer(x, w), stack))

    module = check(function, arg("x", (T, 12)), arg("stack", (3, 12, 12)), weight("w", (12, 12)), arg("ids", (2,), i32),
                   cases=[{"T": 1}, {"T": 6}])  # fmt: skip
    assert {"while", "scan", "cond", "dot_general", "linear_add"} <= ops_of(module)


def test_what_a_branch_or_loop_cannot_take() -> None:
    cache = make_input("layers.0.k", "state", Type((2, 1, 8, 4), f32))
    x = make_input("x", "arg", Type((3,), f32))
    index = make_input("index", "arg", Type((), i32))
    inner = make_input("k", "state", cache.types[0])
    branch = Graph("branch", (inner,), (inner[0],))
    with pytest.raises(IRError, match="C does not give state k to branch"):
        uses_of(make(OPS["cond"], index[0], cache[0], branches=(branch,)))
    row = make_input("row", "weight", Type((), f32))
    with pytest.raises(IRError, match="C does not give weight row to body"):
        uses_of(make(OPS["scan"], x[0], body=Graph("body", (row,), (row[0],)), length=3))


Block = list[Any]  # of statements: (name, *what it needs), which change x: f32[T, 4] or f32[4], and n: i32[]


def blocks(depth: int) -> st.SearchStrategy[Block]:
    simple = st.sampled_from([("sin",), ("grow",), ("count",), ("swap",)])
    if depth == 0:
        return st.lists(simple, min_size=1, max_size=2)
    inner = blocks(depth - 1)
    nested = st.one_of(
        st.tuples(st.just("switch"), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("while"), inner),
        st.tuples(st.just("scan"), inner, st.booleans()),
        st.tuples(st.just("repeat"), inner),
    )
    return st.lists(st.one_of(nested, nested, simple), min_size=1, max_size=2)


def run_block(block: Block, x: Any, n: Any) -> Any:
    """What a block means, in JAX."""
    for name, *rest in block:
        if name == "sin":
            x = jnp.sin(x) + n
        elif name == "grow":
            x = x * 1.5 - x[..., ::-1]
        elif name == "count":
            n = n + 3
        elif name == "swap":
            n = jnp.where(x.sum() > 0, 7 - n, n)
        elif name == "switch":
            x, n = jax.lax.switch(n % 4, [lambda x, n, b=b: run_block(b, x, n) for b in rest[0]], x, n)
        elif name == "while":

            def body(c: Any, inner: Block = rest[0]) -> Any:
                return (*run_block(inner, *c[:2]), c[2] + 1)

            x, n, _ = jax.lax.while_loop(lambda c, bound=n + 2: c[2] < bound, body, (x, n, n))
        elif name == "scan" and x.ndim == 2:

            def step(carry: Any, row: Any, inner: Block = rest[0]) -> Any:
                row, count = run_block(inner, row, carry[1])
                return (carry[0] + row, count), (row, count)

            (total, n), (rows, counts) = jax.lax.scan(step, (x[0], n), x, reverse=rest[1])
            x = rows + total * counts.max()
        else:

            def again(carry: Any, _: None, inner: Block = rest[0]) -> Any:
                carry = run_block(inner, *carry)
                return carry, carry[0]

            (x, n), every = jax.lax.scan(again, (x, n), None, length=2)
            x = x + every[0]
    return x, n


def test_nested_control_flow() -> None:
    """Hypothesis makes the programs; all of them are one library: a failure shows its program instead of shrinking."""
    made: list[Block] = []

    @seed(2)
    @settings(max_examples=30, database=None, deadline=None, phases=[Phase.generate])
    @given(blocks(2))
    def collect(block: Block) -> None:
        made.append(block)

    collect()
    inputs = [arg("x", (T, 4)), arg("n", (), i32)]
    entries = {f"program{i}": trace(lambda x, n, b=b: run_block(b, x, n), inputs, name=f"program{i}")[0]
               for i, b in enumerate(made)}  # fmt: skip
    module = run_passes(Module(entries, {}), target.get("native").ir)
    library = compile_library(module, "native", threads=2)
    for name, block in zip(module.entries, made):
        for tokens, n in ((1, 0), (5, 2)):
            data = {"x": random(Type((tokens, 4), f32)), "n": np.array(n, np.int32)}
            want = interpret(module, data, {"T": tokens}, entry=name)
            got = [np.full(w.shape, 0x5A, w.dtype) for w in want]
            assert run_function(library, name, {"T": tokens}, list(data.values()), got) == OK
            assert all(same_bits(g, w) for g, w in zip(got, want, strict=True)), block
    library.close()
