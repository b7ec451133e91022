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
    """Yields the running estimate after each window of `window` tokens; a last, partial window is left out.

    Each window is evaluated from an empty context, its first token replaced by the beginning-of-text token where the
    model adds one, and the negative log-likelihood of tokens window/2 + 1 … window - 1 is averaged. The standard error
    is that of the mean, carried through the exponential. Raises InfercError when `ids` is shorter than two windows.
    """
    if window < 4 or window > model.context:
        raise InfercError(f"the window must have 4 to {model.context} tokens (the model's context), not {window}")
    if len(ids) < 2 * window:
        raise InfercError(f"the text has {len(ids)} tokens; two windows of {window} are needed: give a longer text")
    total = squares = 0.0
    count = 0
    first = window // 2
    for index in range(len(ids) // window):
        tokens = list(ids[index * window : (index + 1) * window])
        if model.tokenizer.add_bos and model.tokenizer.bos_id is not None:
            tokens[0] = model.tokenizer.bos_id
        # The last token's logits predict what lies beyond the window.
        losses = np.concatenate([
            _losses(logits, tokens[start + 1 : start + 1 + len(logits)])
            for start, logits in model.logits_from(tokens[:-1], first)
        ])  # fmt: skip
        total, squares, count = total + losses.sum(), squares + (losses**2).sum(), count + len(losses)
        mean = total / count
        deviation = sqrt(max(squares / count - mean**2, 0.0) / max(count - 1, 1))
        yield Estimate(index + 1, exp(mean), exp(mean) * deviation)


def _losses(logits: np.ndarray, targets: Sequence[int]) -> np.ndarray:
    """Negative log-likelihood in nats of each target: logits f32[R, V], targets R ids; f64[R]."""
    wide = logits.astype(np.float64)
    top = wide.max(axis=1)
    normaliser = top + np.log(np.exp(wide - top[:, None]).sum(axis=1))
    return normaliser - wide[np.arange(len(targets)), list(targets)]
