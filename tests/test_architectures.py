"""Every architecture: the imported graph computes what plain JAX computes, in whatever pieces a sequence is fed."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest

from inferc.backends.c import target as c_target
from inferc.compiler.frontends import gguf, language
from inferc.compiler.pipeline import run_passes
from inferc.ir.graph import Module
from inferc.ir.interpret import Observer, interpret
from inferc.ir.types import DTYPES
from inferc.ir.verify import verify
from tests.tiny_models import MODELS, WEIGHT_TYPES, WINDOW, write_model

IDS = np.random.default_rng(7).integers(3, 300, 40).astype(np.int32)
CHUNK = 40


class Session:
    """Runs the step of a module by the interpreter, keeping its caches."""

    def __init__(self, module: Module, slots: int = 1, observer: Observer | None = None) -> None:
        self.module, self.observer = module, observer
        self.state = {
            n.attr("name"): np.zeros((slots, *n.types[0].shape[1:]), np.float32)
            for n in module.entries["step"].inputs_of("state")
        }

    def eval(self, ids, sequence, position, rows) -> np.ndarray:
        arrays = {"tokens": ids, "sequence": sequence, "position": position, "rows": rows}
        arrays = {name: np.asarray(values, np.int32) for name, values in arrays.items()}
        results = interpret(self.module, {**arrays, **self.state}, observer=self.observer)
        logits = results.pop("logits")
        self.state = results
        return logits

    def feed(self, ids, start: int, slot: int = 0) -> np.ndarray:
        count = len(ids)
        return self.eval(ids, [slot] * count, range(start, start + count), range(count))


def close(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 of the values' scale."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= 1e-4 * expected.std()


@pytest.fixture(params=MODELS)
def source(request, tmp_path) -> language.Source:
    return gguf.load(write_model(tmp_path / "model.gguf", request.param))


def test_graph_equals_jax_after_every_layer(source):
    """The head applied to what leaves each layer: the first n layers alone, for every n."""
    for layers in range(1, source.config.layers + 1):
        config = replace(source.config, layers=layers)
        first = replace(source, config=config)
        module = language.build_module(first, 128, CHUNK)
        verify(module)
        close(Session(module).feed(IDS, 0), language.reference_logits(first, IDS))


@pytest.mark.parametrize("lowered", [False, True])
def test_every_layer_gives_what_jax_gives(source, lowered, monkeypatch):
    """What leaves each layer, its caches included, in one run of the whole model: within 1e-4 of its own scale.

    So as it is traced, and after the passes for C where they keep activations and caches in f32.
    """
    expected, found = [], {}
    architecture = language.ARCHITECTURES[source.architecture]
    (layer,) = architecture.step.args

    def recorded_layer(*arguments):
        expected.append(layer(*arguments))
        return expected[-1]

    step = partial(architecture.step.func, recorded_layer)
    monkeypatch.setitem(language.ARCHITECTURES, source.architecture, replace(architecture, step=step))
    with jax.disable_jit():
        language.reference_logits(source, IDS)
    monkeypatch.undo()

    def observe(node, operands, results):
        if node.op.name == "call":
            found[node.origin.path] = results

    module = language.build_module(source, len(IDS), len(IDS))
    exact = replace(c_target.get("generic").ir, activations={}, cache=DTYPES["f32"])
    Session(run_passes(module, exact) if lowered else module, observer=observe).feed(IDS, 0)
    assert list(found) == [f"layers.{i}" for i in range(source.config.layers)] and len(expected) == len(found)
    for results, references in zip(found.values(), expected):
        for actual, reference in zip(results, references, strict=True):
            close(actual, np.asarray(reference))


def test_chunks_and_single_tokens_equal_one_prefill_to_the_bit(source):
    module = language.build_module(source, 128, CHUNK)
    whole = Session(module).feed(IDS, 0)
    chunked, single = Session(module), Session(module)
    assert np.array_equal(whole, np.concatenate([chunked.feed(IDS[i : i + 7], i) for i in range(0, 40, 7)]))
    assert np.array_equal(whole, np.concatenate([single.feed(IDS[i : i + 1], i) for i in range(40)]))


def test_sequences_share_a_step_and_padding_is_dropped(source):
    """Two sequences, interleaved and at different positions, beside padding tokens, equal each alone."""
    module = language.build_module(source, 128, CHUNK)
    first, second = IDS[:12], IDS[20:29]
    alone = Session(module).feed(first, 0)[8:], Session(module).feed(second, 0)
    both = Session(module, slots=2)
    both.feed(first[:8], 0, slot=1)
    ids = [*first[8:], 5, *second, 6]
    sequence = [1] * 4 + [2] + [0] * 9 + [2]
    position = [*range(8, 12), 0, *range(9), 3]
    logits = both.eval(ids, sequence, position, [0, 1, 2, 3, *range(5, 14)])
    assert np.array_equal(logits, np.concatenate(alone))


@pytest.mark.parametrize("model", [name for name, (_, keys) in MODELS.items() if "attention.sliding_window" in keys])
def test_a_window_is_a_ring_of_as_many_rows_as_a_chunk_needs(model, tmp_path):
    source = gguf.load(write_model(tmp_path / "model.gguf", model))
    module = language.build_module(source, 128, 4)
    rows = {n.types[0].shape[2] for n in module.entries["step"].inputs_of("state")}
    assert min(rows) == WINDOW + 4 - 1
    session = Session(module)
    pieces = np.concatenate([session.feed(IDS[i : i + 4], i) for i in range(0, 40, 4)])
    close(pieces, language.reference_logits(source, IDS))


def test_a_window_as_wide_as_the_context_is_none(tmp_path):
    source = gguf.load(write_model(tmp_path / "model.gguf", "mistral"))
    step = language.build_module(source, WINDOW, WINDOW).entries["step"]
    assert {n.types[0].shape[2] for n in step.inputs_of("state")} == {WINDOW}
    (graph,) = {n.attr("graph") for n in step.nodes() if n.op.name == "call"}
    assert {n.attr("window") for n in graph.nodes() if n.op.name == "cached_attention"} == {0}


@pytest.mark.parametrize("weight_type", WEIGHT_TYPES)
def test_every_weight_type(weight_type, tmp_path):
    source = gguf.load(write_model(tmp_path / "model.gguf", "llama", weight_type))
    assert source.weights["blk.0.attn_q.weight"].type.dtype.name == weight_type
    close(Session(language.build_module(source, 128, 8)).feed(IDS[:8], 0), language.reference_logits(source, IDS[:8]))


def test_half_precision_vectors_are_dequantised(tmp_path):
    """A norm weight in f16 is f32 to the norm."""
    source = gguf.load(write_model(tmp_path / "model.gguf", "qwen2"))
    name = "blk.1.attn_norm.weight"
    weight = source.weights[name]
    half = replace(
        weight, type=replace(weight.type, dtype=gguf.DTYPES["f16"]), load=lambda: weight.load().astype(np.float16)
    )
    source = replace(source, weights={**source.weights, name: half})
    module = language.build_module(source, 128, 8)
    graphs = [n.attr("graph") for n in module.entries["step"].nodes() if n.op.name == "call"]
    assert ["dequantize" in {n.op.name for n in g.nodes()} for g in graphs] == [False, True]
    close(Session(module).feed(IDS[:8], 0), language.reference_logits(source, IDS[:8]))


def calls(module: Module):
    return [n for n in module.entries["step"].nodes() if n.op.name == "call"]


def test_equal_layers_are_one_graph(tmp_path):
    source = gguf.load(write_model(tmp_path / "model.gguf", "llama", "q4_0", layers=5))
    layers = calls(language.build_module(source, 128, 16))
    assert len(layers) == 5 and len({n.attr("graph") for n in layers}) == 1
    assert [n.origin.path for n in layers] == [f"layers.{i}" for i in range(5)]
    (graph,) = {n.attr("graph") for n in layers}
    roles = {n.attr("name"): n.attr("role") for n in graph.inputs}
    assert roles["attn_q.weight"] == "weight" and roles["k"] == "state" and roles["x"] == roles["cos"] == "arg"
    paths = {n.origin.path for n in graph.nodes() if n.op.name == "linear"}
    assert paths >= {"attention.q", "attention.output", "feed_forward.down"}


def test_layers_of_other_weight_types_are_another_graph(tmp_path):
    types = {"blk.1.attn_v": "q6_k", "": "q4_k"}
    source = gguf.load(write_model(tmp_path / "model.gguf", "llama", types, layers=3))
    graphs = [n.attr("graph") for n in calls(language.build_module(source, 128, 16))]
    assert graphs[0] is graphs[2] and graphs[0] is not graphs[1]
    assert graphs[0].name != graphs[1].name


def test_angles_are_made_once_for_each_rope_base(tmp_path):
    for model, bases in (("gemma2", 1), ("gemma3", 2)):
        source = gguf.load(write_model(tmp_path / f"{model}.gguf", model, layers=4))
        step = language.build_module(source, 128, 16).entries["step"]
        assert sum(n.op.name == "rope_angles" for n in step.nodes()) == bases


@pytest.mark.parametrize("model", ["llama", "qwen2", "gemma3"])
def test_tied_and_untied_heads(model, tmp_path):
    for tied in (True, False):
        source = gguf.load(write_model(tmp_path / f"{tied}.gguf", model, tied=tied))
        assert ("output.weight" in source.weights) is not tied
        logits = Session(language.build_module(source, 128, 8)).feed(IDS[:8], 0)
        close(logits, language.reference_logits(source, IDS[:8]))
