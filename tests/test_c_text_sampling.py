"""`model_sample` in C against runtime/sampling.py: the same ids, bit for bit."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferc.errors import InfercError
from inferc.runtime.sampling import Sampler, Sampling

from .text_library import INVALID, LOGITS, OK, SIZE, SamplingC, aligned, library

SIZES = (1, 7, 300)


def options(how: Sampling) -> SamplingC:
    """The same choices for C, whose zero means none where Python's is a bound."""
    top_p, size = how.top_p or 5e-324, ctypes.sizeof(SamplingC)
    return SamplingC(size, how.repetition_penalty, how.repetition_window, how.top_k, top_p, how.min_p, how.temperature,
                     how.seed or 0, 0)  # fmt: skip


def draw(logits: np.ndarray, how: SamplingC, previous: list[int],
         workspace: np.ndarray | None = None) -> tuple[int, int]:  # fmt: skip
    """(status, id)."""
    c = library(len(logits))
    workspace = aligned(16 * len(logits)) if workspace is None else workspace
    ids, id = np.array(previous, np.int32), c_int32(-1)
    status = c.model_sample(logits.ctypes.data_as(POINTER(c_float)), byref(how), ids.ctypes.data, ids.size,
                            workspace.ctypes.data, workspace.size, byref(id))  # fmt: skip
    return status, id.value


def same_draws(logits: np.ndarray, how: Sampling, previous: list[int], count: int) -> None:
    sampler, chosen = Sampler(how), options(how)
    for _ in range(count):
        status, id = draw(logits, chosen, previous)
        assert status == OK and id == sampler(logits, previous)


@settings(max_examples=300, deadline=None)
@given(
    size=st.sampled_from(SIZES), spread=st.sampled_from([0.0, 0.01, 1.0, 30.0, 3000.0]), seed=st.integers(0, 2**64 - 1),
    coarse=st.booleans(), top_k=st.sampled_from([0, 1, 2, 5, 40, 299, 300, 1000]), top_p=st.floats(0, 1),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1)), temperature=st.one_of(st.just(1.0), st.floats(0, 5)),
    penalty=st.sampled_from([1.0, 1.1, 0.5, 2.0]), window=st.sampled_from([0, 1, 64]),
    previous=st.lists(st.integers(-2, 310), max_size=80),
)  # fmt: skip
def test_ids_equal_pythons(size, spread, seed, coarse, top_k, top_p, min_p, temperature, penalty, window, previous):
    logits = (np.random.default_rng(seed % 997).standard_normal(size) * spread).astype(np.float32)
    if coarse:
        logits = np.round(logits)  # with ties
        logits[::3] = -np.inf if size > 1 and np.isfinite(logits[1::3]).any() else logits[::3]
    same_draws(logits, Sampling(temperature, top_k, top_p, min_p, penalty, window, seed), previous, 3)


@pytest.mark.parametrize(
    "how",
    [{}, {"top_k": 40}, {"top_p": 0.95}, {"min_p": 0.05}, {"top_k": 40, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7},
     {"temperature": 5e-324}, {"temperature": 1e300}, {"top_p": 0.999999}],
)  # fmt: skip
def test_long_runs_of_draws_are_equal(how):
    logits = np.random.default_rng(3).standard_normal(300).astype(np.float32) * 3
    same_draws(logits, Sampling(**{"temperature": 1.0, "seed": 11, **how}), [1, 2, 3], 200)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers(bad):
    logits = np.full(7, bad, np.float32)
    logits[3] = bad if bad == -np.inf else 0
    assert draw(logits, options(Sampling()), [])[0] == LOGITS
    with pytest.raises(InfercError, match="logit"):
        Sampler(Sampling())(logits)


def test_a_state_of_zeros_is_greedy():
    zero = SamplingC(size=ctypes.sizeof(SamplingC))
    assert draw(np.array([1, 3, 3, 2, 0, 0, 0], np.float32), zero, []) == (OK, 1)


@pytest.mark.parametrize(
    "change",
    [{"size": 8}, {"top_k": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"temperature": float("nan")},
     {"temperature": float("inf")}, {"repetition_penalty": -1.0}, {"repetition_window": -1}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(change):
    how = options(Sampling(temperature=1.0, seed=1))
    for name, value in change.items():
        setattr(how, name, value)
    assert draw(np.zeros(7, np.float32), how, [])[0] == INVALID


def test_a_small_workspace_is_refused():
    assert draw(np.zeros(7, np.float32), options(Sampling()), [], aligned(111))[0] == SIZE
