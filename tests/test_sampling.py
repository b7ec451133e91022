"""Sampling: each filter alone against its definition, their order, determinism."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferc.errors import InfercError
from inferc.runtime.sampling import Sampler, Sampling

LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2], np.float32))


def drawn(logits, count=400, previous=(), **how) -> set[int]:
    """Every id that occurs in `count` draws."""
    sampler = Sampler(Sampling(seed=7, **{"temperature": 1.0, **how}))
    return {sampler(np.asarray(logits, np.float32), previous) for _ in range(count)}


def test_greedy_takes_the_first_of_the_greatest():
    assert Sampler(Sampling())(np.array([1, 3, 3, 2], np.float32)) == 1


def test_greedy_ignores_the_filters():
    assert Sampler(Sampling(top_k=2, top_p=0.1, min_p=0.9, seed=1))(LOGITS) == 1


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {1, 3}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.0}, {1}),
        ({"top_p": 0.39}, {1}),
        ({"top_p": 0.41}, {1, 3}),
        ({"top_p": 0.84}, {1, 3, 4}),
        ({"min_p": 0.49}, {1, 3, 4}),
        ({"min_p": 1.0}, {1}),
        # top-p is of what top-k left: 0.4 / 0.65 is more than 0.6.
        ({"top_k": 2, "top_p": 0.6}, {1}),
        # The filters see the model's own distribution: temperature comes after them.
        ({"min_p": 0.49, "temperature": 100.0}, {1, 3, 4}),
        ({"top_p": 0.41, "temperature": 100.0}, {1, 3}),
        ({"temperature": 0.01}, {1}),
        ({"temperature": 5e-324}, {1}),
    ],
)
def test_filters(how, kept):
    assert drawn(LOGITS, **how) == kept


def test_equal_logits_are_kept_by_id():
    assert drawn([0, 1, 1, 1], top_k=2) == {1, 2}


def test_tokens_at_minus_infinity_are_never_drawn():
    assert drawn([-np.inf, 0, -np.inf, 0]) == {1, 3}


def test_frequencies_follow_the_distribution():
    sampler = Sampler(Sampling(temperature=2.0, seed=3))
    counts = np.bincount([sampler(LOGITS) for _ in range(20000)], minlength=5) / 20000
    expected = np.exp(LOGITS / 2) / np.exp(LOGITS / 2).sum()
    assert np.abs(counts - expected).max() < 0.012


def test_repetition_penalty():
    how = Sampling(repetition_penalty=2.0, repetition_window=2)
    assert Sampler(how)(np.array([3.0, 2.0, -1.0], np.float32), [0]) == 1
    assert Sampler(how)(np.array([-1.0, -1.5, -9.0], np.float32), [0]) == 1
    assert Sampler(how)(np.array([3.0, 2.0, -1.0], np.float32), [0, 2, 2]) == 0, "outside the window"
    assert Sampler(how)(np.array([3.0, 2.0], np.float32), [0, 0]) == 1, "once, however often it occurred"


def test_logits_are_left_as_they_are():
    logits = LOGITS.copy()
    Sampler(Sampling(temperature=0.5, repetition_penalty=1.5, seed=0))(logits, [1, 2])
    assert np.array_equal(logits, LOGITS)


def test_same_seed_same_draws():
    def sequence(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(LOGITS) for _ in range(50)]

    assert sequence(5) == sequence(5) != sequence(6)
    assert sequence(5)[:10] == [1, 3, 1, 1, 1, 1, 4, 2, 1, 3], "draws must not change between versions"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers(bad):
    with pytest.raises(InfercError, match="logit"):
        Sampler(Sampling())(np.array([0, bad], np.float32))
    with pytest.raises(InfercError, match="logit"):
        Sampler(Sampling())(np.full(3, -np.inf, np.float32))


@pytest.mark.parametrize(
    "how",
    [{"temperature": -1}, {"top_k": -1}, {"top_p": 1.1}, {"min_p": -0.1}, {"repetition_penalty": 0}, {"seed": -1},
     {"temperature": float("nan")},
        {"temperature": float("inf")}],
)  # fmt: skip
def test_settings_out_of_range(how):
    with pytest.raises(InfercError, match=f"{next(iter(how))} must be"):
        Sampling(**how)


@settings(max_examples=200, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40),
    top_k=st.integers(0, 50), top_p=st.floats(0, 1), min_p=st.floats(0, 1), temperature=st.floats(0, 5),
)  # fmt: skip
def test_some_token_of_the_vocabulary_is_always_drawn(logits, top_k, top_p, min_p, temperature):
    how = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=1)
    id = Sampler(how)(np.asarray(logits, np.float32))
    assert 0 <= id < len(logits)
    if top_k:
        assert sum(x > logits[id] for x in logits) < top_k
