"""The pipeline: order, verification, dumps; the stages of a small decoder, and how few ops a layer has in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inferc.compiler.frontends import gguf, language
from inferc.compiler.pipeline import PASSES, Pass, check_order, run_passes
from inferc.ir.graph import IRError, Module, Node, subgraphs
from inferc.ir.interpret import interpret
from inferc.ir.text import print_module

from .small_llama import PACKED, PLAIN, arguments, module
from .tiny_models import MODELS, write_model

SILENT = {"input", "constant", "reshape"}  # nothing runs for these
MIXED = {"v": "q6_k", "down": "q6_k", "": "q4_k"}


def layer_ops(module: Module) -> dict[str, list[str]]:
    """The ops that run in each called graph, by its name."""
    called = {g: None for n in module.entries["step"].nodes() for g in subgraphs(n)}
    return {g.name: [n.op.name for n in g.nodes() if n.op.name not in SILENT] for g in called}


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k].view(np.uint8), b[k].view(np.uint8)) for k in a)


# --- The list of passes ---


def test_a_pass_before_what_it_must_follow_is_refused() -> None:
    with pytest.raises(IRError, match="pass recognise must come after fold"):
        check_order([PASSES[0], PASSES[2], PASSES[1]])
    with pytest.raises(IRError, match="pass fold is in the list twice"):
        check_order([PASSES[1], PASSES[1]])


def test_only_quantize_is_lossy() -> None:
    assert [p.name for p in PASSES if p.lossy] == ["quantize"]


def test_the_result_of_a_pass_is_verified() -> None:
    def forget_inputs(module: Module, target: object) -> Module:
        return module.with_entries({n: replace(g, inputs=g.inputs[1:]) for n, g in module.entries.items()})

    with pytest.raises(IRError, match="pass forget: step: .*tokens.*not closed"):
        run_passes(module(), PLAIN, passes=[Pass("forget", forget_inputs)])


def test_every_stage_is_dumped(tmp_path: Path) -> None:
    final = run_passes(module(), PACKED, tmp_path / "ir")
    names = [f"{i:02d}-{name}.txt" for i, name in enumerate(("traced", *(p.name for p in PASSES)))]
    assert sorted(p.name for p in (tmp_path / "ir").iterdir()) == names
    assert (tmp_path / "ir" / names[-1]).read_text() == print_module(final)


# --- Stages of a small decoder ---


def test_golden_stages(tmp_path: Path, golden) -> None:
    run_passes(module({"v": "q6_k", "gate": "iq2_xs", "": "q4_k"}, biases=True), PACKED, tmp_path)
    for path in sorted(tmp_path.iterdir()):
        golden(f"stages/{path.name}", path.read_text())


@pytest.mark.parametrize("types", ["f32", "f16", "bf16", "q4_0", "q8_0", "q4_k", MIXED])
@pytest.mark.parametrize("biases", [False, True])
def test_a_layer_is_at_most_eleven_ops(types, biases: bool) -> None:
    layers = layer_ops(run_passes(module(types, biases=biases), PACKED))
    assert list(layers) == ["layer"], "both calls share one graph"
    expected = ["rms_norm", "linear_group", "rope", "rope_cache_write", "cache_write", "cached_attention", "linear_add",
                "rms_norm", "gated_linear", "linear_add"]  # fmt: skip
    assert [op for op in layers["layer"] if op != "quantize"] == expected
    assert layers["layer"].count("quantize") == (0 if types in ("f32", "f16") else 1)


@pytest.mark.parametrize("types", ["bf16", "q4_0", MIXED])
def test_lossless_passes_keep_every_bit(types) -> None:
    """All passes in turn; what quantize does is measured instead."""
    stage = run_passes(module(types, biases=True), PACKED, passes=PASSES[:0])
    results = [interpret(stage, arguments(stage))]
    for p in PASSES:
        stage = run_passes(stage, PACKED, passes=[replace(p, after=())])
        results.append(interpret(stage, arguments(stage)))
        if p.lossy:
            before, after = results[-2]["logits"], results[-1]["logits"]
            assert 0 < np.abs(before - after).max() < 0.25 * before.std()
        else:
            assert same_bits(*results[-2:]), p.name


def test_without_quantisation_nothing_changes_at_all() -> None:
    stage = module("q4_0")
    final = run_passes(stage, replace(PLAIN, weight_layout="panel16", fusions=PACKED.fusions))
    assert same_bits(interpret(stage, arguments(stage)), interpret(final, arguments(final)))


def test_dead_inputs_go() -> None:
    step = run_passes(module(), PLAIN).entries["step"]
    (callee,) = {g for n in step.nodes() for g in subgraphs(n)}
    assert "unused" not in [n.attr("name") for n in callee.inputs]
    assert "convert" not in [n.op.name for n in step.nodes()]


# --- Weights ---


def prepared(module: Module) -> dict[str, Node]:
    assert module.prepare
    return {name: v.node for name, v in zip(module.prepare.output_names, module.prepare.outputs)}


def test_prepared_weights_keep_their_names_and_a_tied_one_is_packed_once() -> None:
    before = module("q4_k")
    after = run_passes(before, PACKED)
    outputs = prepared(after)
    assert set(outputs) == set(before.weights)
    assert outputs["0.q"].op.name == "pack" and outputs["0.attention.norm"].op.name == "input"
    assert sum(n.op.name == "pack" for n in after.prepare.nodes()) == 1 + 2 * 7
    readers = [n.op.name for n in after.entries["step"].nodes() for v in n.inputs
               if v.node.op.name == "input" and v.node.attr("name") == "embd"]  # fmt: skip
    assert readers == ["embedding", "linear"]


def test_types_without_packed_forms_are_recoded_once() -> None:
    after = run_passes(module("iq2_xs"), PACKED)
    chain = prepared(after)["1.down"]
    assert (chain.op.name, chain.inputs[0].node.op.name) == ("pack", "recode")
    assert chain.types[0].dtype.name == "iq2_g16"
    assert "recode" not in {n.op.name for g in after.entries.values() for n in g.nodes()}


def test_a_target_with_row_major_weights_prepares_nothing() -> None:
    after = run_passes(module("q4_k"), PLAIN)
    assert after.prepare is None and set(layer_ops(after)["layer"]) >= {"linear", "gated", "rope", "cache_write"}


# --- Every architecture ---

OPS_PER_LAYER = {"llama": 12, "qwen2": 12, "qwen3": 14, "gemma2": 16, "gemma3": 18}


@pytest.mark.parametrize("model", MODELS)
def test_layers_of_every_architecture(model: str, tmp_path: Path) -> None:
    source = gguf.load(write_model(tmp_path / "model.gguf", model, "q8_0"))
    stages = [run_passes(language.build_module(source, 32, 16), PACKED, passes=PASSES[:n]) for n in (5, 7)]
    most = OPS_PER_LAYER[MODELS[model][0]]
    assert all(len(ops) <= most for ops in layer_ops(stages[-1]).values()), layer_ops(stages[-1])
    assert same_bits(*(interpret(s, arguments(s)) for s in stages))
