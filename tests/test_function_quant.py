"""`quant` of functions: matrices in bf16 or blocks, activations rounded as they run, within stated bounds of f32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf.quants import quantize
from jax import lax
from typer.testing import CliRunner

import inferc
from inferc.compiler.cli import app
from inferc.compiler.driver import FUNCTION_QUANTS, Options, plan
from inferc.compiler.frontends import jax_function
from inferc.compiler.passes import rounding
from inferc.ir.interpret import interpret
from inferc.ir.quant import round_to_blocks

from .jax_models import MODELS

pytestmark = pytest.mark.usefixtures("quick_compiler")

RNG = np.random.default_rng(0)
# The largest difference to f32 of the network below, as a part of the largest value: what docs/functions.md states.
BOUNDS = {"bf16": 0.02, "q8_0": 0.04, "q6_k": 0.06, "q5_k": 0.12, "q4_k": 0.25}


def matrix(rows: int, columns: int) -> np.ndarray:
    return (RNG.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)


WEIGHTS = {"up": matrix(160, 256), "bias": RNG.standard_normal(256).astype(np.float32), "mix": matrix(256, 256),
           "query": matrix(256, 192), "narrow": matrix(192, 7), "odd": matrix(7, 50),
           "step": matrix(256, 256)}  # fmt: skip


def network(w: Any, x: Any) -> Any:
    """Products that share an operand, a bias, a residual, one in a loop; rows of 160 and 192 are no blocks of 256."""
    h = jax.nn.gelu(x @ w["up"] + w["bias"])
    h = h + jax.nn.silu(h @ w["mix"])
    states, _ = lax.scan(lambda s, row: (jnp.tanh(s @ w["step"]) + row, None), h[:, 0], jnp.swapaxes(h, 0, 1))
    return {"first": (h @ w["query"] @ w["narrow"]) @ w["odd"], "second": h @ w["mix"], "third": states}


EXAMPLE = "float32[batch, 5, 160]"
X = RNG.standard_normal((3, 5, 160)).astype(np.float32)


def test_every_format_has_a_bound() -> None:
    assert tuple(BOUNDS) == FUNCTION_QUANTS


@pytest.mark.parametrize("name", BOUNDS)
def test_near_f32_and_the_bits_of_the_interpreter(name: str, tmp_path: Path) -> None:
    expected = jax.jit(network)(WEIGHTS, X)
    with inferc.compile(network, EXAMPLE, weights=WEIGHTS, quant=name, output=tmp_path / "f.inferc") as function:
        got = function(X)
    for key, exact in expected.items():
        distance = np.abs(got[key] - exact).max() / np.abs(exact).max()
        assert 1e-5 < distance <= BOUNDS[name], (key, distance)
    source = jax_function.function(network, EXAMPLE, weights=WEIGHTS)
    meant = interpret(plan(source, Options(quant=name)).module, {"x": X}, entry="run")
    for key, array in got.items():
        assert array.tobytes() == meant[key].tobytes()
    with inferc.load(tmp_path / "f.inferc", threads=1) as alone:
        assert all(alone(X)[key].tobytes() == array.tobytes() for key, array in got.items())


def test_matrices_are_stored_in_the_format() -> None:
    module = plan(jax_function.function(network, EXAMPLE, weights=WEIGHTS), Options(quant="q4_k")).module
    stored = {n.attr("name"): str(n.types[0].dtype) for n in module.entries["run"].inputs_of("weight")}
    kinds = {name: next(d for n, d in stored.items() if n.startswith(name)) for name in WEIGHTS}
    assert kinds == {"up": "q8_0", "bias": "f32", "mix": "q4_k", "query": "q4_k", "narrow": "q8_0", "odd": "f32",
                     "step": "q4_k"}  # fmt: skip


def test_a_transformer_of_flax(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "SHORT", 32)  # as its rows are
    model = MODELS["nnx_block"]()
    expected = jax.jit(model.function)(model.weights, *model.arrays)
    with inferc.compile(model.function, *model.examples, weights=model.weights, dynamic=model.dynamic,
                        quant="q8_0") as function:  # fmt: skip
        got = function(*model.arrays)
        assert any(k.startswith("linear") and "q8_0" in k for k in function.artifact.manifest["kernels"])
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert np.abs(ours - theirs).max() <= 0.05 * np.abs(theirs).max()


def test_convolutions_with_windows_stay() -> None:
    def convolved(w: Any, x: Any) -> Any:
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    w = RNG.standard_normal((3, 3, 32, 32)).astype(np.float32)
    source = jax_function.function(convolved, "f32[1, 6, 6, 32]", weights=w)
    plain, rounded = (plan(source, Options(quant=q)).module.entries["run"] for q in (None, "q8_0"))
    assert [n.op.name for n in plain.nodes()] == [n.op.name for n in rounded.nodes()]


def test_rounding_is_that_of_gguf() -> None:
    x = (RNG.standard_normal((40, 256)) * np.exp(RNG.standard_normal((40, 1)))).astype(np.float32)
    x[3], x[4, :32] = 0, 0
    assert np.array_equal(round_to_blocks("q8_0", x), quantize(x, gguf.GGMLQuantizationType.Q8_0))


FILE = """
import inferc
import numpy as np

model = inferc.function(lambda w, x: x @ w, "float32[n, 128]", weights=np.eye(128, 32, dtype="f4"))
"""


def test_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FILE)

    def compile_(*options: str) -> Any:
        return CliRunner().invoke(app, ["compile", f"{tmp_path}/own.py:model", "-o", f"{tmp_path}/m.inferc", *options])

    assert compile_("--quant", "q8_0").exit_code == 0
    with inferc.load(tmp_path / "m.inferc") as function:
        x = jnp.linspace(-1, 1, 128).reshape(1, 128)
        assert np.abs(function(np.asarray(x)) - x[:, :32]).max() < 0.01
        assert "linear_q8_0" in function.artifact.manifest["kernels"]
    assert "cannot be 'q4_0': choose one of bf16, q8_0" in str(compile_("--quant", "q4_0").exception)
    assert "by the backend c alone" in str(compile_("--quant", "q8_0", "--backend", "xla").exception)
