"""A compiled encoder: text in, its embedding out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import InfercError
from .function import CEngine, Function
from .text import MEMBER, TextTokenizer
from .tokenizer import Tokenizer, TokenizerBase


class Encoder(Function):
    """A `Function` of a text's ids that has a tokenizer. Threads may share it; their calls take turns."""

    def __init__(self, path: Path | str, threads: int | None = None, target: str | None = None) -> None:
        """Raises InfercError if the artifact cannot be used, or has no tokenizer."""
        super().__init__(path, threads, target)
        if self.artifact.manifest["tokenizer"] is None:
            raise InfercError(f"{path} has no tokenizer: call it with token ids, as an inferc.Function")

    @property
    def context(self) -> int:
        """The most tokens of a text."""
        return int(self.signature["dims"]["length"][1])

    @property
    def output_width(self) -> int:
        """Numbers of an embedding."""
        return int(self.outputs[0].shape[0])

    @cached_property
    def tokenizer(self) -> TokenizerBase:
        name = self.artifact.manifest["tokenizer"]
        if name == MEMBER and isinstance(self._engine, CEngine):
            return TextTokenizer(self._engine.opened, None)
        return Tokenizer(self.artifact.read_json(name))

    def tokenize(self, text: str, *, parse_special: bool = False) -> list[int]:
        """The ids of `text`, with those of beginning and end that the model was trained with."""
        return self.tokenizer.encode(text, parse_special=parse_special)

    def embed(self, texts: str | Sequence[str], *, normalize: bool = True, truncate: bool = False) -> np.ndarray:
        """The embedding f32[output_width] of a text, or f32[len(texts), output_width] of several, pooled as the model
        was trained to; with `normalize` each has length 1.

        A text of more than `context` tokens raises InfercError, or with `truncate` is cut to as many, its last kept.
        """
        if not isinstance(texts, str):
            found = [self.embed(text, normalize=normalize, truncate=truncate) for text in texts]
            return np.stack(found) if found else np.empty((0, self.output_width), np.float32)
        ids = self.tokenize(texts)
        if len(ids) > self.context:
            if not truncate:
                raise InfercError(
                    f"the text has {len(ids)} tokens and the model takes {self.context}: shorten it, or pass "
                    "truncate=True"
                )
            ids = [*ids[: self.context - 1], ids[-1]]
        embedding: np.ndarray = self(np.array(ids, np.int32))
        return normalized(embedding) if normalize else embedding


def normalized(embedding: np.ndarray) -> np.ndarray:
    """f32[N] scaled to length 1; zeros stay."""
    length = np.linalg.norm(embedding.astype(np.float64))
    return (embedding / length).astype(np.float32) if length else embedding
