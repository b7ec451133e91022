"""Every primitive of JAX that is supported computes what it does in JAX, in the interpreter and in C."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.extend.core.primitives
import numpy as np
import pytest
from hypothesis import Phase, given, seed, settings

from inferc.backends.c import target
from inferc.compiler.pipeline import run_passes
from inferc.compiler.primitives import PRIMITIVES
from inferc.compiler.primitives_refused import REFUSED
from inferc.compiler.tracing import INLINED
from inferc.ir.graph import Graph, Module
from inferc.ir.interpret import interpret
from inferc.ir.rewrite import expand
from inferc.ir.types import array_dtype, array_shape

from .c_harness import same_bits
from .c_programs import OK, compile_library, run_function
from .ir_build import graph, inputs, node
from .primitive_cases import FUNCTIONS
from .primitive_sweep import Case, cases
from .test_tracing import check, traced

# Rows that stand for others: another spelling by version, or made only by gradients, partitioning, symbolic dimensions,
# or that are inside of others.
SPELLINGS = {"scatter_add", "scatter_sub", "scatter_mul", "scatter_min", "scatter_max", "copy", "copy_p", "add_any",
             "sharding_constraint", "dim_as_value", "stop_gradient",
             "threefry2x32", "iota_2x32_shape", "pin", "unpin", "layout_constraint", "reshard", "random_clone", "eq_to",
             "le_to", "lt_to"}  # fmt: skip


HEAVY = {"eigh", "eigh of several", "svd", "svd of deficient", "custom_linear_solve", "qr", "householder_product",
         "regularized_incomplete_beta", "igamma", "igammac", "zeta", "polygamma", "random_gamma", "hessenberg",
         "tridiagonal"}  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "random_gamma" else n
                                  for n in FUNCTIONS])  # fmt: skip
def test_primitive(name):
    function, *operands = FUNCTIONS[name]
    check(function, *operands)


def test_every_primitive_has_a_test():
    used: set[str] = set()
    for function, *operands in FUNCTIONS.values():
        used |= set(re.findall(r"\b[a-z_0-9]+(?:-[a-z]+)?\b", str(jax.make_jaxpr(function)(*operands))))
    assert set(PRIMITIVES) - used - SPELLINGS == set()
    assert not INLINED & set(PRIMITIVES)


def test_every_primitive_that_jax_tells_of_is_decided():
    names = {p.name for p in vars(jax.extend.core.primitives).values() if isinstance(p, jax.extend.core.Primitive)}
    assert len(names) > 150 and names - set(PRIMITIVES) - INLINED - set(REFUSED) - {"call", "core_call"} == set()
    assert not set(PRIMITIVES) & set(REFUSED)


@pytest.mark.parametrize("points", [37, 64, 100, 1000, 1009])
def test_transforms_of_many_points(points):
    """Factors of at most 32, one more factor that is prime, and primes; as exact as f32 allows for the row's size."""
    rng = np.random.default_rng(points)
    operands = inputs(re=f"f32[3, {points}]", im=f"f32[3, {points}]")
    whole = graph(*node("fft", *operands).values, order=operands)
    given = {n: rng.standard_normal((3, points)).astype(np.float32) for n in ("re", "im")}
    for ours, exact in zip(interpret(expand(whole, lambda n: True), given), interpret(whole, given)):
        assert np.abs(ours - exact).max() < 2e-6 * np.abs(exact).max()


# ---- in C: many functions in one library ----------------------------------------------------------------------------


def compiled(functions: Mapping[str, tuple[Any, list[np.ndarray]]]) -> list[str]:
    """What is wrong with C's results of the functions: their bits are the interpreter's, and they are near JAX's."""
    entries: dict[str, Graph] = {}
    weights = {}
    for name, (function, operands) in functions.items():
        module = traced(function, *operands)
        entries[name] = module.entries["step"]
        weights |= module.weights
    module = run_passes(Module(entries, weights), target.get("native").ir)
    library = compile_library(module, "native", threads=2, flags=("-O0",))
    wrong = []
    for name, (function, operands) in functions.items():
        given = [np.array(x.view(np.uint16) if x.dtype.name == "bfloat16" else x, order="C") for x in operands]
        wanted = interpret(module, {f"x{n}": x for n, x in enumerate(given)}, entry=name)
        got = [np.full(array_shape(t), 0x5A, array_dtype(t)) for t in module.entries[name].output_types]
        assert run_function(library, name, {}, given, got) == OK, name
        if not all(same_bits(g, w) for g, w in zip(got, wanted, strict=True)):
            wrong.append(f"{name}: C differs from the interpreter")
        for ours, theirs in zip(got, jax.tree.leaves(jax.jit(function)(*operands)), strict=True):
            wrong += difference(name, ours, np.asarray(theirs))
    library.close()
    return wrong


def difference(name: str, ours: np.ndarray, theirs: np.ndarray) -> list[str]:
    """JAX's own functions are within a few units in the last place; sums of floats are in another order."""
    if theirs.dtype.kind != "f" and theirs.dtype.name != "bfloat16":
        return [] if np.array_equal(ours, theirs) else [f"{name}: {ours} is not {theirs}"]
    if theirs.dtype.name == "bfloat16":
        ours, theirs = (ours.astype(np.uint32) << 16).view(np.float32), theirs.astype(np.float32)
        bound = 2e-2
    else:
        bound = 2e-5 if theirs.dtype == np.float32 else 4e-3
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    scale = np.maximum(np.abs(theirs), 1)
    same = (ours == theirs) | (np.abs(ours - theirs) <= bound * scale) | (np.isnan(ours) & np.isnan(theirs))
    return [] if same.all() else [f"{name}: {ours[~same][:3]} is not {theirs[~same][:3]}"]


@pytest.mark.parametrize("heavy", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["light", "heavy"])
def test_every_function_in_c(heavy: bool) -> None:
    """The same functions, in one library; those that are of hundreds of kernels in another."""
    functions = {"f_" + re.sub(r"\W", "_", name): (f, operands) for name, (f, *operands) in FUNCTIONS.items()
                 if heavy == (name in HEAVY)}  # fmt: skip
    assert not (wrong := compiled(functions)), "\n".join(wrong)


def swept(count: int, start: int) -> None:
    made: list[Case] = []

    @seed(start)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate])
    @given(cases())
    def collect(case: Case) -> None:
        made.append(case)

    collect()
    functions = {f"{case.name}_{n}": (case.function, case.operands) for n, case in enumerate(made)}
    wrong = compiled(functions)
    assert not wrong, "\n".join(f"{text} ({made[int(text.split(':')[0].rpartition('_')[2])]})" for text in wrong[:10])


def test_dtypes_shapes_and_layouts():
    """Hypothesis makes the cases; all are one library, so a failure shows its case instead of shrinking it."""
    swept(150, 1)


@pytest.mark.slow
@pytest.mark.parametrize("start", range(2, 6))
def test_more_dtypes_shapes_and_layouts(start):
    swept(400, start)
