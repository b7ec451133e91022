"""What XLA makes of the programs: states updated in place, weights left packed, few kernels."""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from inferc.backends.xla.linear import FEW
from inferc.backends.xla.portable import serialize
from inferc.compiler.driver import plan_model
from inferc.ir.types import BLOCK_SIZES
from inferc.runtime import xla_call

from .ir_build import graph, inputs, op
from .tiny_models import MODELS, write_model
from .xla_run import Case, case, compiled_step

# The CPU's compiler splits long reductions in two kernels; the GPU's and the TPU's have no such pass.
AS_ON_DEVICES = {"xla_disable_hlo_passes": "tree_reduction_rewriter"}
SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4}
LAYERS = 3

# Kernels of one token: of three layers, embedding and head. They may only fall; where one has, write the new number.
KERNELS = {"llama": 44, "gemma3": 61, "qwen2": 44}


def step(folder: Path, model: str, tokens: int, rows: int, **options: Any) -> tuple[Any, Any, Any]:
    wide = {"context_length": 4096} | ({"attention.sliding_window": 4096} if model == "gemma3" else {})
    path = write_model(folder / f"{model}.gguf", model, "q4_0", layers=LAYERS, metadata=wide)
    plan = plan_model(path, backend="xla", chunk=tokens, context=4096, **options)
    program = plan.lowered.program
    spec = next(s for s in program.specs if (s.dims["T"], s.dims["R"]) == (tokens, rows) and s.kind == "step")
    return plan, program, compiled_step(program, spec, AS_ON_DEVICES)


def computations(compiled: Any) -> list[str]:
    """The lines of the entry of a compiled program."""
    text = compiled.as_text()
    return text[text.index("\nENTRY") :].splitlines()


def outside_fusions(compiled: Any) -> list[str]:
    """The lines of all computations that are no fusion's: what they make is in memory."""
    found, inside = [], False
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith(" "):
            inside = "fused_computation" in line or "wrapped" in line
        elif not inside:
            found.append(line)
    return found


def kernels(compiled: Any) -> list[str]:
    return [line for line in computations(compiled) if re.search(r" (fusion|dot|custom-call|reduce|copy)\(", line)]


def check_in_place(program: Any, compiled: Any, times: int = 1, fixed: int = 0) -> None:
    """All states are aliased, temporaries are small, and nothing as large as a layer's cache is moved. Layers share
    temporaries: a model of `times` the layers would have no more. `fixed` bytes are what no cache has part in."""
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == program.state_bytes
    assert memory.temp_size_in_bytes < 0.05 * program.state_bytes * times + fixed
    cache = min(sum(p.bytes for p in i.parts) for i in program.states)
    for line in outside_fusions(compiled):
        moved = re.search(r"= (\w+)\[([\d,]*)\]\S* (copy|gather|transpose|all-gather)\(", line)
        if moved and moved[1] in SIZES:
            assert SIZES[moved[1]] * prod(int(d) for d in moved[2].split(",") if d) < cache, line


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_states_are_updated_in_place(kv, tmp_path):
    _, program, compiled = step(tmp_path, "llama" if kv == "f16" else "gemma3", 1, 1, kv=kv)
    check_in_place(program, compiled)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["one", "each", "greedy"])
@pytest.mark.parametrize("model", MODELS)
def test_every_architectures_states_are_updated_in_place(model, form, tmp_path):
    """One token, a token of each of four slots, and the loop of tokens; windows are rings of 1024 positions here."""
    own = MODELS[model][1]
    ring = {"attention.sliding_window": 1024} if "attention.sliding_window" in own else {}
    path = write_model(tmp_path / "m.gguf", model, "q4_0", metadata={"context_length": 8192} | ring)
    slots = 4 if form == "each" else 1
    program = plan_model(path, backend="xla", chunk=1, context=8192, slots=slots).lowered.program
    assert bool(ring) == any(i.type.sizes[2] < 8192 for i in program.states)
    spec = next(s for s in program.specs if form in (s.facts.form, s.kind) and s.dims["T"] == slots
                and s.facts.span == 8192 and (s.kind == "greedy") == (form == "greedy"))  # fmt: skip
    fixed = 1 << 19 if form == "greedy" else 0  # what the loop keeps of tiny weights
    check_in_place(program, compiled_step(program, spec, AS_ON_DEVICES), times=12, fixed=fixed)  # heads are narrow here


def test_prefill_keeps_scores_in_blocks(tmp_path):
    """Attention of 64 tokens over 4096 rows never has all their scores at once."""
    _, program, compiled = step(tmp_path, "llama", 64, 1)
    everything = 4 * 64 * 4096 * 4  # heads, tokens, rows, bytes
    assert compiled.memory_analysis().temp_size_in_bytes < everything / 2
    assert compiled.memory_analysis().alias_size_in_bytes == program.state_bytes


@pytest.mark.parametrize("model", KERNELS)
def test_few_kernels_in_a_layer(model, tmp_path):
    _, _, compiled = step(tmp_path, model, 1, 1)
    assert len(kernels(compiled)) <= KERNELS[model], "\n".join(kernels(compiled))


def linear(dtype: str, tokens: int, rows: int = 96, width: int = 512) -> Case:
    x, w = inputs(x=f"f32[{tokens}, {width}]", w=f"weight {dtype}[{rows}, {width}]")
    raw = np.zeros((rows, width // w.dtype.block * w.dtype.block_bytes) if w.dtype.is_block else (rows, width),
                   np.uint8 if w.dtype.is_block else np.uint16)  # fmt: skip
    raw = raw.view(np.float16) if dtype == "f16" else raw
    return case(graph(op("linear", x, w), order=(x, w)), {"x": np.zeros((tokens, width), np.float32), "w": raw})


def compiled_case(c: Case) -> Any:
    call = xla_call.exported(serialize(c.text), c.inputs, c.outputs, "cpu").call
    options = xla_call.options("cpu") | AS_ON_DEVICES
    return jax.jit(call).lower(*xla_call.structs(c.inputs)).compile(compiler_options=options)


@pytest.mark.parametrize("dtype", [*(d for d in BLOCK_SIZES if not d.startswith(("iq1", "iq2", "iq3", "tq1"))), "f16"])
def test_a_packed_weight_is_read_where_it_is_used(dtype):
    """One token: one kernel, and no memory but the result. Several: one kernel too."""
    for tokens in (1, FEW):
        compiled = compiled_case(linear(dtype, tokens))
        found = [line for line in kernels(compiled) if "f32[96" in line or f"f32[{tokens},96" in line]
        assert compiled.memory_analysis().temp_size_in_bytes < 0.05 * 96 * 512, dtype
        assert len(found) == 1 and len(kernels(compiled)) <= 2, "\n".join(kernels(compiled))


def test_many_tokens_widen_a_weight_once():
    compiled = compiled_case(linear("q4_k", 64))
    memory = compiled.memory_analysis().temp_size_in_bytes
    assert memory <= 1.1 * 4 * 96 * 512 and any(" dot(" in line or "dot" in line for line in computations(compiled))
