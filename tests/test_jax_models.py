"""Models of Flax, Equinox and plain jnp compute in C what `jax.jit` computes."""

from __future__ import annotations

import equinox as eqx
import jax
import numpy as np
import pytest

import inferc

from .jax_models import MODELS

BOUND = {"convolutional_text": 2e-2}  # of the largest value: bf16 inside; others are f32's last bits after some layers


@pytest.mark.parametrize("name", MODELS)
def test_model(name: str) -> None:
    model = MODELS[name]()
    expected = eqx.filter_jit(model.function)(model.weights, *model.arrays)
    with inferc.compile(model.function, *model.examples, weights=model.weights, dynamic=model.dynamic) as compiled:
        got = compiled(*model.arrays)
        assert jax.tree.structure(got) == jax.tree.structure(expected)
        for ours, theirs in zip(jax.tree.leaves(got), map(np.asarray, jax.tree.leaves(expected)), strict=True):
            assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
            if theirs.dtype.kind == "f":
                assert np.abs(ours - theirs).max() <= BOUND.get(name, 2e-6) * max(1, np.abs(theirs).max())
            else:
                assert np.array_equal(ours, theirs)
