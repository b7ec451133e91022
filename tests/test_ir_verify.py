"""What is not valid IR is refused, by name and place."""

from dataclasses import replace

import pytest

from inferc.ir.graph import Graph, IRError, Module, Weight, make_input
from inferc.ir.types import Type, f32, symbol
from inferc.ir.verify import verify

from .ir_build import graph, inputs, node, op, typed


def refused(program, message: str) -> None:
    with pytest.raises(IRError) as error:
        verify(program)
    assert message in str(error.value)


def test_types_are_those_inferred():
    (x,) = inputs(x="f32[T]")
    y = op("exp", x, at="a.b")
    refused(graph(replace(y.node, types=(typed("f32[4]"),))[0]), "g: exp at a.b: typed f32[4], its op infers f32[T]")
    other = replace(y.node, inputs=inputs(z="i32[T]"))
    refused(graph(op("neg", other[0])), "exp at a.b(i32[T]): takes float")
    refused(graph(replace(op("neg", x).node, inputs=(replace(y, index=1),))[0]), "neg: exp at a.b has no result 1")


def test_graphs_are_closed():
    x, y = inputs(x="f32[T]", y="f32[T]")
    refused(Graph("g", (x.node,), (op("add", x, y),)), "g: input y: the graph is not closed")
    refused(Graph("g", (x.node, make_input("x", "arg", x.type)), (x,)), "two inputs are called x")
    refused(Graph("g", (x.node,), (x,), ("a", "b")), "1 outputs need as many distinct names")
    refused(graph(op("call", x, graph=Graph("inner", (x.node,), (op("add", x, y),)))), "inner: input y")


def test_dimensions_are_sound():
    one, other = (Type((symbol("N", 1, hi),), f32) for hi in (4, 5))
    refused(Graph("g", (make_input("x", "arg", one), make_input("y", "arg", other)), ()), "N in 1..5 contradicts")
    refused(Graph("g", (make_input("x", "arg", Type((symbol("N", 1, 4) - 9,), f32)),), ()), "N - 9 is negative")
    refused(Graph("g", (make_input("x", "arg", Type((symbol("N", 4, 1),), f32)),), ()), "contradicts")


def caches():
    cache, q, new, sequence, position = inputs(cache="state f32[S, 2, C, 4]", q="f32[T, 2, 4]", new="f32[T, 2, 4]",
                                               sequence="i32[T]", position="i32[T]")  # fmt: skip
    write = lambda c, x=new: op("cache_write", c, x, sequence, position, at="w")
    read = lambda c: op("cached_attention", q, c, c, sequence, position, scale=1.0, at="r")
    return cache, new, write, read


def test_a_state_is_written_once_and_then_not_read():
    cache, new, write, read = caches()
    after = write(cache)
    verify(graph(read(after), after))
    verify(graph(write(after)))
    refused(graph(read(cache), after), "cached_attention at r reads the state cache from before the write")
    verify(graph(write(cache, read(cache))))  # read, then written: the write needs what was read
    refused(graph(after, write(cache, op("neg", new))), "the state cache was already written by cache_write at w")
    refused(graph(after, cache), "output 1 is the state cache from before a write")
    refused(graph(after, after), "the state cache is an output twice")
    refused(graph(op("neg", cache)), "a state is not what operand 0 may be")
    refused(graph(op("neg", after)), "a state is not what operand 0 may be")


def test_states_are_followed_into_calls():
    cache, new, write, read = caches()
    after = write(cache)
    layer = graph(read(after), after, name="layer")
    peek = graph(read(cache), name="peek")
    order = [n[0] for n in layer.inputs]
    first = node("call", *order, graph=layer)
    at = layer.inputs.index(cache.node)
    again = [first[1] if i == at else v for i, v in enumerate(order)]
    second = node("call", *again, graph=layer)
    verify(graph(second[0], second[1]))
    refused(graph(first[0], node("call", *order, graph=layer)[0]), "already written by call")
    named = {v.node.attr("name"): v for v in order}
    reading = node("call", *(named[n.attr("name")] for n in peek.inputs), graph=peek)
    refused(graph(reading[0], first[1]), "reads the state cache from before the write by call")
    (plain,) = inputs(plain="f32[S, 2, C, 4]")
    refused(graph(op("call", cache, graph=graph(plain, name="taken"))), "taken takes operand 0 as no state")


def test_branches_treat_a_state_alike():
    cache, new, write, _ = caches()
    after = write(cache)
    writes = graph(after, name="writes")
    keeps = Graph("keeps", writes.inputs, (cache,))
    (p,) = inputs(p="bool[]")
    operands = [n[0] for n in writes.inputs]
    verify(graph(op("cond", p, *operands, branches=(writes, writes))))
    verify(graph(op("cond", p, *operands, branches=(writes, keeps))))
    loses = Graph("loses", writes.inputs, (new,))
    refused(graph(op("cond", p, *operands, branches=(loses, loses)), after), "cond reads the state cache from before")


def test_modules_have_their_weights_and_states():
    x, w = inputs(x="f32[T, 4]", w="weight f32[3, 4]")
    step = graph(op("linear", x, w), order=(x, w))
    weight = lambda name, t: Weight(name, typed(t), lambda: None)
    verify(Module({"step": step}, {"w": weight("w", "f32[3, 4]")}))
    refused(Module({"step": step}, {}), "g: there is no weight w")
    refused(Module({"step": step}, {"w": weight("w", "f32[4, 4]")}), "the weight w is f32[4, 4], read as f32[3, 4]")
    (source,) = inputs(source="weight f16[3, 4]")
    prepare = graph(op("dequantize", source), names=("w",), name="prepare")
    verify(Module({"step": step}, {"source": weight("source", "f16[3, 4]")}, prepare))
    refused(Module({"step": step}, {"source": weight("source", "f16[3, 4]")}, replace(prepare, output_names=())),
            "prepare: its outputs need the names")  # fmt: skip
    refused(Module({"step": step}, {"w": weight("w", "f32[3, 4]")}, prepare), "prepare: there is no weight source")

    cache, _, write, _ = caches()
    after = write(cache)
    verify(Module({"step": graph(after, names=("cache",))}, {}))
    for names in ((), ("other",)):
        refused(Module({"step": graph(after, names=names)}, {}), "the state cache is no output of that name")
