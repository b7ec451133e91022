"""A model's metadata with typed, checked access: what an architecture configures itself from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import InfercError
from ..models.architecture import MAX_SIZE
from .gguf_check import shorten


class Metadata(Mapping[str, Any]):
    """Key-value pairs of the model at `path`, by GGUF's names; `remedy` ends an error.

    The typed methods raise InfercError, naming file and key, for a missing key without default, another type, or a
    value out of range.
    """

    remedy = "convert the model again"

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self._values = path, values

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def error(self, problem: str) -> InfercError:
        return InfercError(f"{self.path}: {shorten(problem)}")

    def _scalar(self, key: str, default: Any, kinds: tuple[type, ...], what: str) -> Any:
        value = self.get(key, default)
        if isinstance(value, list) and value and all(v == value[0] for v in value):
            value = value[0]  # a number per layer, where the layers agree
        if value is None:
            raise self.error(f"the metadata key {key} is missing; {self.remedy}")
        if not isinstance(value, kinds) or isinstance(value, bool):
            shown = shorten(repr(value), 40)
            raise self.error(f"the metadata key {key} must be {what}, not {shown}; {self.remedy}")
        return value

    def integer(self, key: str, default: int | None = None, low: int = 0, high: int = MAX_SIZE) -> int:
        value = self._scalar(key, default, (int,), "one whole number")
        if not low <= value <= high:
            raise self.error(f"the metadata key {key} is {value}, it must be {low} to {high}; {self.remedy}")
        return value

    def number(self, key: str, default: float | None = None, low: float = -math.inf) -> float:
        value = float(self._scalar(key, default, (int, float), "one number"))
        if not (math.isfinite(value) and low <= value <= 1e30):
            raise self.error(
                f"the metadata key {key} is {value}, it must be finite and at least {low}; {self.remedy}"
            )
        return value

    def text(self, key: str, default: str | None = None) -> str:
        return self._scalar(key, default, (str,), "text")

    def flags(self, key: str, count: int) -> tuple[bool, ...] | None:
        """A flag per layer; None where the key is missing or holds one number."""
        value = self.get(key)
        if not isinstance(value, list):
            return None
        if len(value) != count or any(v not in (0, 1) for v in value):
            raise self.error(f"the metadata key {key} must be one number or {count} flags; {self.remedy}")
        return tuple(map(bool, value))
