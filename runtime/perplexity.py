"""Perplexity by llama.cpp's definition, so that figures compare: windows of the context, the second half scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import exp, sqrt

import numpy as np

from ..errors import InfercError
from .log_probabilities import Reader

# Told (window, first scored position, logits f32 [rows, V], the text's tokens after them) of each piece.
Watch = Callable[[int, int, np.ndarray, Sequence[int]], None]


@dataclass(frozen=True)
class Estimate:
    """After `windows` windows: perplexity and its standard error."""

    windows: int
    perplexity: float
    error: float


def perplexity(model, ids: Sequence[int], window: int, watch: Watch | None = None) -> Iterator[Estimate]:
    """Yields the running estimate after each of `windows(model, ids, window)`.

    The negative log-likelihood of tokens window/2 + 1 … window - 1 is averaged. The standard error is that of the mean,
    carried through the exponential. Raises InfercError as `windows` does.
    """
    total = squares = 0.0
    count = 0
    for index, tokens in enumerate(windows(model, ids, window)):
        first = window // 2
        # The last token's logits predict what lies beyond the window.
        for start, logits in model.logits_from(tokens[:-1], first):
            targets = tokens[start + 1 : start + 1 + len(logits)]
            losses = np.array([-log_softmax(row)[target] for row, target in zip(logits, targets)])
            total, squares, count = total + losses.sum(), squares + (losses**2).sum(), count + len(losses)
            if watch:
                watch(index, start - first, logits, targets)
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


@dataclass
class Against:
    """A model's distributions beside a file's, position by position: KL(file ‖ model) in nats, whether both find the
    same token likeliest, and the losses of the text's tokens in both."""

    reference: Reader
    divergences: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)
    losses: list[tuple[float, float]] = field(default_factory=list)

    def watch(self, window: int, first: int, logits: np.ndarray, targets: Sequence[int]) -> None:
        """Sees a piece of `perplexity`."""
        for expected, row, target in zip(self.reference.rows(window, first, len(logits)), logits, targets):
            found = log_softmax(row)
            kept = expected > -16  # what llama-perplexity sums; the rest was cut off when it was written
            p = expected[kept].astype(np.float64)
            self.divergences.append(float(np.dot(np.exp(p), p - found[kept])))
            self.agreements.append(bool(expected.argmax() == row.argmax()))
            self.losses.append((-float(expected[target]), -float(found[target])))

    def summary(self) -> dict[str, float]:
        """Means with their standard errors, quantiles of the divergence, and the ratio of perplexities."""
        kl, same, losses = np.array(self.divergences), np.array(self.agreements, float), np.array(self.losses)
        ratio = losses[:, 1] - losses[:, 0]
        return {
            "positions": len(kl), "kl": float(kl.mean()), "kl_error": _error(kl), "kl_median": float(np.median(kl)),
            "kl_99": float(np.quantile(kl, 0.99)), "kl_max": float(kl.max()), "top_1": float(same.mean()),
            "top_1_error": _error(same), "reference_perplexity": float(np.exp(losses[:, 0].mean())),
            "perplexity_ratio": float(np.exp(ratio.mean())),
            "perplexity_ratio_error": float(np.exp(ratio.mean())) * _error(ratio),
        }  # fmt: skip


def _error(values: np.ndarray) -> float:
    """The standard error of the mean."""
    return float(values.std() / sqrt(max(len(values) - 1, 1)))
