"""What a front end gives the driver: a model opened and checked, whatever it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Protocol

from ..ir.graph import Module, Weight
from ..ir.types import evaluate

Kind = Literal["language", "function"]


class Source(Protocol):
    """A model before the passes. Its weights are read when they are asked for.

    `kind` is "language" for a module whose entry is `step`, with sessions and a tokenizer, and "function" for one whose
    entry is `run`, without state. `path` is the file or folder that was read, None for a function in memory. `trained`
    is the most positions of a session, 0 for a function.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...
    @property
    def architecture(self) -> str: ...
    @property
    def path(self) -> Path | None: ...
    @property
    def trained(self) -> int: ...

    def build(self, context: int, chunk: int) -> Module:
        """The module, for at most `context` positions and `chunk` tokens in one call. Raises InfercError, IRError."""
        ...

    def tokenizer(self) -> dict[str, Any] | None:
        """What `tokenizer.json` of the artifact holds; None where the model has no tokenizer."""
        ...

    def facts(self) -> dict[str, Any]:
        """The manifest's part that only the front end knows: "tensors" and "weights_by_type" as `weight_facts` makes
        them, "vocab_size" of a language model, "signature" of a function."""
        ...


def weight_facts(weights: Iterable[Weight]) -> dict[str, Any]:
    """The manifest's list of tensors and the bytes of each type."""
    tensors, by_type = [], Counter[str]()
    for weight in weights:
        dtype = str(weight.type.dtype)
        tensors.append({"name": weight.name, "type": dtype, "shape": list(weight.type.shape)})
        by_type[dtype] += evaluate(weight.type.bytes, {})
    return {"tensors": tensors, "weights_by_type": dict(by_type)}
