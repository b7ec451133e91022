"""Files of next-token distributions, as llama.cpp's `llama-perplexity --kl-divergence-base` writes and reads them.

"_logits_", then i32 window, vocabulary and windows, the tokens i32 [windows, window], and for each scored position
(window // 2 … window - 2 of each window) f32 step and least logarithm, then u16 [vocabulary] steps above the least,
padded to an even number. Logarithms further than 16 below the greatest are as if they were at 16.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ..errors import InfercError

MAGIC = b"_logits_"
REACH = 16.0  # nats below the greatest that are kept
LEVELS = 65535


def scored(window: int) -> int:
    """Positions of a window whose distributions are kept: the second half, but for the last."""
    return window - 1 - window // 2


def row_words(vocabulary: int) -> int:
    """Words of 16 bits that one distribution takes."""
    return 2 * ((vocabulary + 1) // 2) + 4


def encode(logits: np.ndarray) -> np.ndarray:
    """u16 [rows, row_words(V)] of logits f32 [rows, V]."""
    x = logits.astype(np.float32)
    most = x.max(axis=1, keepdims=True)
    least = np.maximum(x.min(axis=1, keepdims=True), most - np.float32(REACH))
    total = np.log(np.exp((x - most).astype(np.float64)).sum(axis=1, keepdims=True)).astype(np.float32)
    step = (most - least) / np.float32(LEVELS)
    words = np.zeros((len(x), row_words(x.shape[1])), np.uint16)
    words[:, :2], words[:, 2:4] = step.view(np.uint16), (least - most - total).view(np.uint16)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
    words[:, 4 : 4 + x.shape[1]] = np.rint(np.maximum(x - least, 0) * inverse)
    return words


def decode(words: np.ndarray, vocabulary: int) -> np.ndarray:
    """Logarithms of probabilities, f32 [rows, V]."""
    words = np.ascontiguousarray(words)
    scales = np.ascontiguousarray(words[:, :4]).view(np.float32)
    return scales[:, :1] * words[:, 4 : 4 + vocabulary].astype(np.float32) + scales[:, 1:]


class Writer:
    """Writes a file as windows are scored; it appears whole or not at all."""

    def __init__(self, path: Path, window: int, vocabulary: int, tokens: np.ndarray) -> None:
        """`tokens` i32 [windows, window]. Raises InfercError."""
        self.path, self._partial = path, path.with_name(path.name + ".part")
        try:
            self._file = self._partial.open("wb")
        except OSError as error:
            raise InfercError(f"cannot write {path}: {error.strerror}") from error
        self._file.write(MAGIC + np.array([window, vocabulary, len(tokens)], np.int32).tobytes())
        self._file.write(tokens.astype(np.int32).tobytes())

    def add(self, logits: np.ndarray) -> None:
        """The next rows f32 [rows, V]. Raises InfercError where the disk is full."""
        try:
            self._file.write(encode(logits).tobytes())
        except OSError as error:
            raise InfercError(f"cannot write {self.path}: {error.strerror}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)


class Reader:
    """A file of distributions: `window`, `vocabulary`, and `tokens` i32 [windows, window]."""

    def __init__(self, path: Path) -> None:
        """Raises InfercError for a file that is missing, another kind, or truncated."""
        try:
            data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        except OSError as error:
            raise InfercError(f"cannot read {path}: {error.strerror}") from error
        if data[:8].tobytes() != MAGIC or len(data) < 20:
            raise InfercError(f"{path} has no distributions: make it with --save-logits, or with llama-perplexity "
                              "--kl-divergence-base")  # fmt: skip
        self.window, self.vocabulary, windows = (int(n) for n in data[8:20].view(np.int32))
        if min(self.window, self.vocabulary, windows) < 1:
            raise InfercError(f"{path} is damaged: make it again")
        end = 20 + 4 * windows * self.window
        size = 2 * windows * scored(self.window) * row_words(self.vocabulary)
        if len(data) < end + size:
            raise InfercError(f"{path} is truncated: make it again")
        self.tokens = np.array(data[20:end]).view(np.int32).reshape(windows, self.window)
        self._words = data[end : end + size]

    def rows(self, window: int, first: int, count: int) -> np.ndarray:
        """Logarithms f32 [count, V] of the scored positions `first` … of a window."""
        width = 2 * row_words(self.vocabulary)
        start = (window * scored(self.window) + first) * width
        words = np.array(self._words[start : start + count * width]).view(np.uint16)
        return decode(words.reshape(count, -1), self.vocabulary)
