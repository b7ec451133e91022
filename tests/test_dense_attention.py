"""Attention over arrays in C: the interpreter's bits, whatever is masked, shared or of odd size."""

from __future__ import annotations

import numpy as np
import pytest

from inferc.backends.c import target
from inferc.compiler.passes import group
from inferc.ir.graph import Graph, Module, make, make_input
from inferc.ir.interpret import interpret
from inferc.ir.ops import OPS
from inferc.ir.types import Type, boolean, f32

from .c_harness import same_bits
from .c_programs import OK, compile_library, run_function

CASES = {
    "plain": ((1, 3, 30, 16), (1, 3, 50, 16), None, {}),
    "blocks": ((1, 1, 7, 8), (1, 1, 530, 8), None, {}),
    "causal": ((2, 2, 27, 32), (2, 1, 40, 32), None, dict(causal=True)),
    "softcap": ((1, 2, 9, 20), (1, 2, 17, 20), None, dict(softcap=5.0)),
    "visible": ((2, 1, 9, 16), (2, 1, 300, 16), (boolean, (2, 1, 9, 300)), {}),
    "bias": ((1, 2, 26, 16), (1, 2, 33, 16), (f32, (1, 2, 1, 33)), {}),
}


def entry(name: str) -> Graph:
    q, k, mask, attrs = CASES[name]
    types = [Type(q, f32), Type(k, f32), Type((*k[:3], 24 if name == "plain" else k[3]), f32)]
    types += [Type(mask[1], mask[0])] if mask else []
    inputs = tuple(make_input(f"x{i}", "arg", t) for i, t in enumerate(types))
    y = make(OPS["attention"], *(n[0] for n in inputs), scale=0.3, **attrs)
    return Graph(name, inputs, y.values, ("y",))


MODULE = Module({name: entry(name) for name in CASES}, {})


@pytest.mark.parametrize("name", [t.name for t in target.supported()])
def test_attention(name):
    library = compile_library(MODULE, name, threads=2)
    rng = np.random.default_rng(3)
    for case, graph in MODULE.entries.items():
        data = {n.attr("name"): (rng.random(n.types[0].sizes) < 0.3) if n.types[0].dtype == boolean else
                rng.standard_normal(n.types[0].sizes).astype(np.float32) for n in graph.inputs}  # fmt: skip
        if case == "visible":  # a query that sees nothing, and one that sees nothing of the first block
            data["x3"][0, 0, 0] = False
            data["x3"][0, 0, 1, :256] = False
        want = interpret(MODULE, data, entry=case)["y"]
        got = np.full(want.shape, 0x5A, np.float32)
        assert run_function(library, case, {}, list(data.values()), [got]) == OK
        assert same_bits(got, want), case
    library.close()


def test_a_mask_of_one_number_is_read_where_it_lies():
    """Grouped with the transposes of its operands, attention keeps its mask as an operand, spread from a number too."""
    types = [Type((2, n, 3, 8), f32) for n in (4, 6, 6)]
    inputs = tuple(make_input(f"x{i}", "arg", t) for i, t in enumerate(types))
    turned = [make(OPS["transpose"], n[0], permutation=(0, 2, 1, 3))[0] for n in inputs]
    one = make(OPS["constant"], value=b"\1", type=Type((), boolean))[0]
    mask = make(OPS["broadcast"], one, shape=(2, 1, 4, 6), dims=())[0]
    y = make(OPS["attention"], *turned, mask, scale=0.3)[0]
    y = make(OPS["transpose"], y, permutation=(0, 2, 1, 3))
    module = group.run(Module({"turned": Graph("turned", inputs, y.values, ("y",))}, {}), target.choose("native")[0].ir)
    assert [n.op.name for n in module.entries["turned"].nodes()].count("fused") == 1
    rng = np.random.default_rng(4)
    data = {n.attr("name"): rng.standard_normal(n.types[0].sizes).astype(np.float32) for n in inputs}
    want = interpret(module, data, entry="turned")["y"]
    got = np.full(want.shape, 0x5A, np.float32)
    library = compile_library(module, "native", threads=2)
    assert run_function(library, "turned", {}, list(data.values()), [got]) == OK and same_bits(got, want)
    library.close()
