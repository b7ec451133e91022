"""Models of Flax, Equinox and plain jnp compute in C, and in XLA, what `jax.jit` computes."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import numpy as np
import pytest

import inferc

from .jax_models import MODELS, Model

pytestmark = pytest.mark.usefixtures("quick_compiler")

BOUND = {"convolutional_text": 2e-2}  # of the largest value: bf16 inside; others are f32's last bits after some layers


def compare(name: str, model: Model, compiled: Any) -> None:
    expected = eqx.filter_jit(model.function)(model.weights, *model.arrays)
    got = compiled(*model.arrays)
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(expected)), strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        if theirs.dtype.kind == "f":
            assert np.abs(ours - theirs).max() <= BOUND.get(name, 2e-6) * max(1, np.abs(theirs).max())
        else:
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    model = MODELS[name]()
    with inferc.compile(model.function, *model.examples, weights=model.weights, dynamic=model.dynamic) as compiled:
        compare(name, model, compiled)


@pytest.mark.parametrize("name", [n if n == "lstm" else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_model_in_xla(name: str) -> None:
    """XLA's programs have fixed sizes: those of the arrays."""
    model = MODELS[name]()
    options: dict[str, Any] = {"weights": model.weights, "backend": "xla", "platforms": "cpu"}
    with inferc.compile(model.function, *model.arrays, **options) as compiled:
        compare(name, model, compiled)
