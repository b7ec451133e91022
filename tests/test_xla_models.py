"""Whole tiny models through XLA: the interpreter's logits, for every architecture and in every form of a step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from inferc import load
from inferc.backends.xla import backend as xla_backend
from inferc.backends.xla.backend import Lowered
from inferc.backends.xla.target import target
from inferc.compiler.cli import app
from inferc.compiler.driver import Plan, compile_model, open_model, plan_model
from inferc.compiler.frontends import language
from inferc.errors import InfercError
from inferc.ir.graph import Weight
from inferc.ir.types import Type, i32
from inferc.runtime import xla_call, xla_devices

from .test_end_to_end import MIXED, RECODED, expected_logits
from .tiny_models import CONTEXT, MODELS, VOCABULARY, WEIGHT_TYPES, write_model
from .xla_run import run_step

IDS = np.random.default_rng(7).integers(3, VOCABULARY, 27).tolist()
CASES: dict[str, tuple[str, Any]] = {name: (name, "q4_1") for name in ("llama3", "mistral", "qwen3", "gemma3")}
CASES |= {"qwen2 mixed": ("qwen2", MIXED), "llama grids": ("llama", RECODED)}
SLOW = {f"llama {dtype}": ("llama", dtype) for dtype in WEIGHT_TYPES}
SLOW |= {f"{name} mixed": (name, MIXED) for name in ("llama", "gemma3")}
SLOW |= {name: (name, "q4_1") for name in MODELS if name not in CASES}


def close(actual: np.ndarray, expected: np.ndarray, tolerance: float = 1e-4) -> None:
    """Within a tolerance of the logits' scale."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * expected.std()


def planned(folder: Path, model: str, types: Any, **options: Any) -> Plan:
    path = write_model(folder / "model.gguf", model, types)
    return plan_model(path, **{"backend": "xla", "kv": "f32", "chunk": 8, "context": 64, **options})


def check_logits(plan: Plan, tolerance: float = 1e-4) -> None:
    """Eight tokens at a time, the last of them padding, as one program gives them."""
    assert isinstance(plan.lowered, Lowered)
    spec = next(s for s in plan.lowered.program.specs if s.dims["T"] == s.dims["R"] == 8)
    close(run_step(plan, spec, IDS), expected_logits(plan, IDS), tolerance)


@pytest.mark.parametrize("name", CASES)
def test_logits_are_the_interpreters(name, tmp_path):
    check_logits(planned(tmp_path, *CASES[name]))


def test_siblings_of_one_weight_keep_every_bit(tmp_path, monkeypatch):
    """q, k and v with their biases, gate and up: one product each, and the logits of products apart."""
    joined = planned(tmp_path, "qwen2", "q4_0")
    monkeypatch.setattr(xla_backend.target, "target", lambda *_: replace(target(cache="f32"), fusions=frozenset()))
    apart = planned(tmp_path, "qwen2", "q4_0")
    names = {w.name for w in joined.lowered.program.weights}
    assert "blk.0.ffn_gate.weight+blk.0.ffn_up.weight" in names and "blk.0.attn_q.weight" not in names
    assert "blk.0.attn_q.weight" in {w.name for w in apart.lowered.program.weights}
    assert np.array_equal(expected_logits(joined, IDS[:9]), expected_logits(apart, IDS[:9]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_logits_of_every_architecture_and_weight_type(name, tmp_path):
    check_logits(planned(tmp_path, *SLOW[name]))


@pytest.mark.parametrize("types", ["f16", "f32"])
def test_floats_are_stored_as_products_multiply_them(types, tmp_path):
    """So that none is converted where it is used, nor the table that is both embedding and head stored twice."""
    program = planned(tmp_path, "llama", types, compute="bf16", chunk=48).lowered.program
    matrices = [i for i in program.weights if len(i.type.sizes) == 2]
    assert {i.type.dtype.name for i in matrices} == {"bf16"} and len({i.name for i in matrices}) == len(matrices)
    assert sum("token_embd" in i.name for i in matrices) == 1
    spec = next(s for s in program.specs if s.dims["T"] == 48)
    for i in matrices:
        rows, width = i.type.sizes
        assert not re.search(rf"convert .*<{rows}x{width}x", program.text(spec)), i.name


@pytest.mark.slow
@pytest.mark.parametrize("kv, compute, tolerance", [("q8_0", "f32", 0.05), ("bf16", "bf16", 0.2), ("f16", "f16", 0.05)])
def test_other_dtypes_stay_near(kv, compute, tolerance, tmp_path):
    """Half floats in products and caches, against f32."""
    exact = planned(tmp_path, "gemma3", "q4_k")
    rounded = planned(tmp_path, "gemma3", "q4_k", kv=kv, compute=compute)
    spec = next(s for s in rounded.lowered.program.specs if s.dims["T"] == s.dims["R"] == 8)
    close(run_step(rounded, spec, IDS), expected_logits(exact, IDS), tolerance)


# ---- artifacts ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory) -> Iterator[Path]:
    """Where compiled programs are kept, also where jax kept others elsewhere before. They are compiled without
    optimisation, in half the time."""
    known, folder = xla_call.OPTIONS, tmp_path_factory.mktemp("kept")
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("before")))
    jax.jit(lambda x: x + 1)(1.0)
    jax.config.update("jax_compilation_cache_dir", None)
    xla_call.keep_compiled(folder)
    xla_call.OPTIONS = {"cpu": {**known["cpu"], "xla_backend_optimization_level": "0"}}
    xla_call.options.cache_clear()
    yield folder
    xla_call.OPTIONS = known
    xla_call.options.cache_clear()
    jax.config.update("jax_compilation_cache_dir", None)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> tuple[Path, Plan]:
    """Mistral has rings, two slots make every form; its caches are f32, so that all forms agree closely."""
    folder = tmp_path_factory.mktemp("xla")
    options: dict[str, Any] = {"backend": "xla", "kv": "f32", "context": CONTEXT, "chunk": 16, "slots": 2}
    path = write_model(folder / "model.gguf", "mistral", "q4_1")
    compile_model(str(path), folder / "model.inferc", **options)
    return folder / "model.inferc", plan_model(path, **options)


def test_an_artifact_runs_as_any_other(artifact, kept):
    path, plan = artifact
    expected = expected_logits(plan, IDS)
    with load(path) as model:
        assert (model.context, model.vocab_size, model.target) == (CONTEXT, VOCABULARY, "cpu")
        close(model.logits(IDS), expected)
        close(model.logits(IDS[:20] + IDS[:3])[:20], expected[:20])  # taken back, beyond what the rings hold
        text = model.generate("the", max_tokens=4, ignore_eos=True)
        assert text == "".join(model.stream("the", max_tokens=4, ignore_eos=True))
        assert isinstance(model.chat("an", max_tokens=2), str)
        assert model.timings.building_seconds >= 0 and "token" in str(model.timings)
        with pytest.raises(InfercError, match="the context holds 128"):
            model.logits([1] * 129)
    with pytest.raises(InfercError, match="closed"):
        model.logits([1])
    names = {p.name for p in kept.iterdir()}
    with load(path) as again:
        close(again.logits(IDS[:16]), expected[:16])
    assert names and names == {p.name for p in kept.iterdir()}, "a program was compiled that had been before"


def test_an_artifact_is_shown_and_run_by_commands(artifact):
    runner = CliRunner()
    shown = runner.invoke(app, ["inspect", str(artifact[0])], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "xla/each-T2-R2-C128.vhlo" in shown.output and "a slot each" in shown.output
    ran = runner.invoke(app, ["run", str(artifact[0]), "-p", "the", "-n", "3", "--ids"])
    assert ran.exit_code == 0 and "first token after" in ran.output, ran.output


def test_the_text_of_a_step(tmp_path, golden):
    """One token of a tiny model, for people to read."""
    plan = planned(tmp_path, "qwen2", "q8_0", chunk=1, context=16)
    golden("xla_step.mlir", plan.lowered.program.text(plan.lowered.program.specs[0]))


def test_batches_equal_single_sessions(artifact):
    """One token of each slot, and prompts mixed with tokens, as each session alone."""
    path, plan = artifact
    from inferc.runtime.artifact import Artifact
    from inferc.runtime.xla_engine import Engine

    expected, other = expected_logits(plan, IDS), expected_logits(plan, IDS[5:])
    engine = Engine(Artifact(path))
    first, second = engine.session(), engine.session()
    with pytest.raises(InfercError, match="all 2 slots have a session"):
        engine.session()
    first.eval(IDS[:9])
    mixed = engine.mixed([(first, IDS[9:11]), (second, IDS[5:12])])
    close(mixed, np.stack([expected[10], other[6]]))
    for i in range(11, 14):
        both = engine.decode([(second, IDS[i + 1]), (first, IDS[i])])
        close(both, np.stack([other[i - 4], expected[i]]))
    assert engine.likeliest([(first, IDS[14])]) == [expected[14].argmax()]  # beside a slot that idles
    first.rewind(14)
    close(engine.decode([(first, IDS[14])]), expected[14:15])
    assert (first.position, second.position) == (15, 10)
    with pytest.raises(InfercError, match="different sessions"):
        engine.decode([(first, 1), (first, 2)])
    with pytest.raises(InfercError, match="999 is no token id"):
        engine.decode([(first, 999)])
    assert first.position == 15


def test_the_device_makes_the_likeliest_tokens(tmp_path):
    """As the host takes them one by one, also where the text ends, and at the end of the context."""
    path = tmp_path / "model.inferc"
    compile_model(str(write_model(tmp_path / "m.gguf", "qwen3", "q8_0")), path, backend="xla", context=32, chunk=8)
    with load(path) as model:
        made = list(model.generate_ids(IDS[:4], max_tokens=100, ignore_eos=True))
        assert len(made) == 32 - 4 + 1
        alone, ids = [], IDS[:4]
        for _ in range(12):
            alone.append(int(model.logits(ids)[-1].argmax()))
            ids = [*ids, alone[-1]]
        assert made[:12] == alone
        end = alone[3]
        model._session.rewind(0)
        model._session.eval(IDS[:4])
        assert end not in alone[:3]
        assert model._session.greedy(alone[0], 20, [end]) == alone[1:4]
        assert list(model.generate_ids(IDS[:4], max_tokens=3, ignore_eos=True)) == alone[:3]


# ---- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"platforms": "cpu,abacus"}, "there is no platform 'abacus'"),
        ({"compute": "f8"}, "products cannot be computed in 'f8'"),
        ({"mesh": "tp=4"}, "4 devices cannot share 2 heads of the caches evenly"),
        ({"mesh": "rows=2"}, "a mesh is written as in tp=2,dp=4"),
        ({"slots": 0}, "there must be 1 slot or more"),
        ({"kv": "q4_0"}, "a cache cannot be 'q4_0'"),
        ({"backend": "abacus"}, "there is no backend 'abacus'"),
    ],
)
def test_refused_options(options, message, tmp_path):
    with pytest.raises(InfercError, match=message):
        planned(tmp_path, "llama", "q4_0", **options)


def test_a_jax_that_is_not_known_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.14.1")
    with pytest.raises(InfercError, match="knows jax 0.10 to 0.12 and this is jax 0.14.1: install one of those"):
        compile_model(str(write_model(tmp_path / "m.gguf")), tmp_path / "out", backend="xla")


def test_what_devices_cannot_share_is_said(tmp_path):
    with pytest.raises(InfercError, match=r"2 devices cannot share 1 blocks of a row of blk\.0\.attn_output\.weight"):
        planned(tmp_path, "llama", "q4_k", mesh="tp=2")
    source = open_model(write_model(tmp_path / "m.gguf"))
    name = "blk.1.ffn_down.order"
    order = Weight(name, Type((source.config.feed_forward,), i32), lambda: None)
    with pytest.raises(InfercError, match=f"{name} takes inputs from all devices: leave tp out of --mesh"):
        language.share(replace(source, weights={**source.weights, name: order}), 2)
    import inferc

    with pytest.raises(InfercError, match="is a function, which has no mesh"):
        inferc.compile(lambda x: x + 1, "float32[3]", backend="xla", mesh="dp=2")
    with pytest.raises(InfercError, match="--emit pjrt is for one device"):
        compile_model(str(source.path), tmp_path / "out", backend="xla", mesh="tp=2", emit="pjrt", chunk=1)


def test_too_little_memory_is_said_before_anything_is_there(artifact, monkeypatch):
    """With the bytes that weights and the caches of all slots take."""
    from inferc.runtime import xla_engine
    from inferc.runtime.artifact import Artifact

    memory = Artifact(artifact[0]).manifest["memory"]
    needed = memory["weights"] + 2 * memory["session"]
    monkeypatch.setattr(xla_devices.Group, "check_memory", partialmethod(_checked, needed))
    monkeypatch.setattr(xla_engine.jax, "make_array_from_callback", lambda *_: pytest.fail("uploaded"))
    with pytest.raises(InfercError, match="checked"):
        load(artifact[0])


def _checked(group, expected, needed, path):
    assert 0.99 * expected < needed <= expected  # between tensors there are gaps in the file
    raise InfercError("checked")


def test_what_this_machine_lacks_is_said(artifact, tmp_path, monkeypatch):
    path = tmp_path / "cuda.inferc"
    compile_model(str(write_model(tmp_path / "m.gguf")), path, backend="xla", platforms="cuda", chunk=1, context=8)
    with pytest.raises(InfercError, match="needs a device of cuda and jax has only cpu here"):
        load(path)
    with pytest.raises(InfercError, match="is for cpu, cuda, tpu, not rocm"):
        load(artifact[0], target="rocm")
    monkeypatch.setattr(xla_devices, "available", lambda device: 1000)
    with pytest.raises(InfercError, match=r"needs 0\.00 GB on .* and 0\.00 GB are free"):
        load(artifact[0])
    monkeypatch.undo()
    monkeypatch.setattr(xla_call.jax, "__version_info__", (0, 14, 0))
    with pytest.raises(InfercError, match="run with jax 0.10 to 0.12"):
        load(artifact[0])


@pytest.mark.parametrize("kind", ["cuda", "rocm"])
def test_the_gpu_that_is_here_is_taken(kind, monkeypatch):
    """Rather than the CPU, though jax calls both kinds by one name."""

    def devices(platform: str) -> list[str]:
        if platform not in (kind, "cpu"):
            raise RuntimeError(f"no {platform}")
        return [platform]

    monkeypatch.setattr(xla_devices.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(xla_devices.jax, "devices", devices)
    assert xla_devices.find(("cpu", "cuda", "rocm"), None, "x") == (kind, [kind])


def test_a_function_runs(tmp_path):
    import inferc

    def classify(weights, x, gain):
        scores = jax.nn.softmax(jax.nn.gelu(x @ weights["w"]) * gain, axis=-1)
        return {"scores": scores, "best": jax.lax.top_k(scores, 2)[1]}

    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(6, 5)).astype(np.float32)}
    x = rng.normal(size=(3, 6)).astype(np.float32)
    function = inferc.compile(classify, "float32[3, 6]", "float32[]", weights=weights, backend="xla")
    with function:
        found, expected = function(x, 2.0), classify(weights, x, 2.0)
        np.testing.assert_allclose(found["scores"], expected["scores"], rtol=1e-5)
        assert np.array_equal(found["best"], expected["best"]) and function.target == "cpu"
        with pytest.raises(InfercError, match="x must be f32"):
            function(x[:2], 2.0)


def _sizes_in_all_places(weights, x, gain):
    scores = jax.nn.softmax(jax.nn.gelu(x @ weights["w"]) * gain, axis=-1)
    longer = jax.numpy.concatenate([x, x[:1]])
    final, rows = jax.lax.scan(lambda c, row: (c + row, c * 2), jax.numpy.zeros(6), longer)
    image = jax.lax.conv_general_dilated(x[:, None], jax.numpy.ones((2, 1, 3)), (1,), "SAME")
    return {"scores": scores, "best": jax.lax.top_k(scores, 2)[1], "mean": x.mean(0), "running": jax.numpy.cumsum(x, 0),
            "rows": rows, "final": final, "flat": x.reshape(-1), "sorted": jax.numpy.sort(x, 0), "image": image,
            "turned": x[jax.numpy.arange(x.shape[0])[::-1]], "odd": x[1::2], "added": longer.at[:-1].add(x),
            "argmax": jax.numpy.argmax(x, 0), "count": x.shape[0] * gain, "pairs": x @ x.T}  # fmt: skip


def test_a_function_with_sizes_known_when_called(tmp_path):
    """The mean over the batch, its order and its products are of the rows that there are, none being padding."""
    import inferc

    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(6, 5)).astype(np.float32)}
    path = tmp_path / "open.inferc"
    inferc.compile(_sizes_in_all_places, "float32[n, 6]", "float32[]", weights=weights, dynamic={"n": (2, 9)},
                   backend="xla", output=path).close()  # fmt: skip
    with inferc.load(path) as function:
        for n in (2, 5, 9, 5):
            x = rng.normal(size=(n, 6)).astype(np.float32)
            found, expected = function(x, 2.0), jax.jit(_sizes_in_all_places)(weights, x, 2.0)
            for name, theirs in expected.items():
                np.testing.assert_allclose(found[name], theirs, 1e-5, 1e-5, err_msg=name)
        assert len(function._engine._programs) == 3
        with pytest.raises(InfercError, match="x must be f32.* with n from 2 to 9, not 10"):
            function(np.zeros((10, 6), np.float32), 2.0)


def test_a_text_with_holes_is_the_program_of_the_sizes():
    """Filled, it is what the lowering of fixed sizes writes, but for running sums, which count by the largest size."""
    from inferc.backends.xla import program, target
    from inferc.backends.xla.text import filled
    from inferc.compiler.frontends import jax_function
    from inferc.compiler.pipeline import run_passes

    def function(x, w):
        rows = _sizes_in_all_places({"w": w}, x, 2.0)
        return {k: v for k, v in rows.items() if k != "running"}

    source = jax_function.function(function, "float32[n, 6]", "float32[6, 5]", dynamic={"n": (2, 64)})
    chosen = target.target()
    built = program.build(run_passes(source.build(0, 0), chosen), chosen, name="f", context=0, chunk=0)
    (spec,) = built.specs
    text = built.text(spec)
    assert "$[n]" in text and "$[n + 1]" in text
    for n in (2, 3, 64):
        fixed = program.Spec("run", "run", {"n": n})
        assert filled(text, {"n": n}) == built.text(fixed)
