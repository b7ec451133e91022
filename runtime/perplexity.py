"""Perplexity by llama.cpp's definition, so that figures compare: windows of the context, the second half scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

from ..errors import InfercError


@dataclass(frozen=True)
class Estimate:
    """After `windows` windows: perplexity and its standard error."""

    windows: int
    perplexity: float
    error: float


def perplexity(model, ids: Sequence[int], window: int) -> Iterator[Estimate]:
    """Yields the running estimate after each of `windows(model, ids, window)`.

    The negative log-likelihood of tokens window/2 + 1 … window - 1 is averaged. The standard error is that of the mean,
    carried through the exponential. Raises InfercError as `windows` does.
    """
    total = squares = 0.0
    count = 0
    for index, tokens in enumerate(windows(model, ids, window)):
        # The last token's logits predict what lies beyond the window.
        losses = np.array([
            -log_softmax(row)[tokens[start + i + 1]]
            for start, logits in model.logits_from(tokens[:-1], window // 2)
            for i, row in enumerate(logits)
        ])  # fmt: skip
        total, squares, count = total + losses.sum(), squares + (losses**2).sum(), count + len(losses)
        mean = total / count
        deviation = sqrt(max(squares / count - mean**2, 0.0) / max(count - 1, 1))
        yield Estimate(index + 1, exp(mean), exp(mean) * deviation)


def windows(model, ids: Sequence[int], window: int) -> Iterator[list[int]]:
    """The pieces of `window` tokens that `ids` are scored in, each from an empty context; a last, partial one is left
    out.

    Where the model adds a beginning-of-text token, it replaces the first of each. Raises InfercError for a window that
    the model's context cannot hold, and when `ids` is shorter than two.
    """
    if window < 4 or window > model.context:
        raise InfercError(f"the window must have 4 to {model.context} tokens (the model's context), not {window}")
    if len(ids) < 2 * window:
        raise InfercError(f"the text has {len(ids)} tokens; two windows of {window} are needed: give a longer text")
    begin = [model.tokenizer.bos_id] if model.tokenizer.add_bos and model.tokenizer.bos_id is not None else []
    for start in range(0, len(ids) - window + 1, window):
        yield [*begin, *ids[start + len(begin) : start + window]]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural logarithms of the probabilities, f64[V], that logits f32[V] stand for."""
    below = logits.astype(np.float64)
    below -= below.max()
    return below - np.log(np.exp(below).sum())
