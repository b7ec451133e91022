"""What a token costs by the model file alone: bytes that must be read, multiply-adds that must be done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import InfercError
from ..ir.types import DTYPES, evaluate

# The peak that bounds products of a weight dtype: block formats are multiplied as int8.
PEAK_OF = {"f32": "fp32_fma", "f16": "fp32_fma", "bf16": "bf16_dot"}
AMX_OF = {"int8_dot": "amx_int8", "bf16_dot": "amx_bf16"}


@dataclass(frozen=True)
class Costs:
    """`weight_bytes` are read for each token of a decode; `macs` and `head_macs` are multiply-adds, by peak, of one
    token through the layers and of one wanted row through the head. `cache_widths` gives, for each layer, its window
    (0: all positions) and the values that one position adds to the cache."""

    weight_bytes: int
    macs: Mapping[str, int]
    head_macs: Mapping[str, int]
    cache_widths: tuple[tuple[int, int], ...]

    def decode_bytes(self, depth: float, cache: str = "f16") -> float:
        """Bytes of weights and cache that one token reads which sees `depth` positions; `cache` is a dtype."""
        dtype = DTYPES[cache]
        values = sum(width * (min(depth, window) if window else depth) for window, width in self.cache_widths)
        return self.weight_bytes + values * dtype.block_bytes / dtype.block

    def work(self, tokens: int, rows: int) -> dict[str, int]:
        """Multiply-adds by peak of an evaluation of `tokens` that wants `rows` of logits, attention not counted."""
        work = Counter({peak: tokens * macs for peak, macs in self.macs.items()})
        work.update({peak: rows * macs for peak, macs in self.head_macs.items()})
        return dict(work)

    def data(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @staticmethod
    def of(data: Mapping[str, Any]) -> Costs:
        """The inverse of `data`."""
        layers = tuple((window, width) for window, width in data["cache_widths"])
        return Costs(data["weight_bytes"], data["macs"], data["head_macs"], layers)


def costs(path: Path) -> Costs:
    """Reads them from a GGUF file's header. Raises InfercError for what is no language model."""
    from ..compiler.frontends import gguf, language  # here: they import jax; processes that measure memory use `Costs`

    source = gguf.load(path)
    if not isinstance(source, language.Source):
        raise InfercError(f"{path} is no language model: give one")
    config = source.config
    tied = "output.weight" not in source.weights
    macs, head_macs, weight_bytes = Counter[str](), Counter[str](), 0
    for name, weight in source.weights.items():
        size, shape = evaluate(weight.type.bytes, {}), weight.type.shape
        if name == "token_embd.weight" and not tied:
            weight_bytes += size // evaluate(shape[0], {})  # one row of it
            continue
        weight_bytes += size
        if len(shape) == 2:
            peak = PEAK_OF.get(weight.type.dtype.name, "int8_dot")
            head = name in ("output.weight", "token_embd.weight")
            (head_macs if head else macs)[peak] += evaluate(shape[0], {}) * evaluate(shape[1], {})
    width = config.key_width + config.value_width
    layers = tuple((config.layer_window(i), width) for i in range(config.layers))
    return Costs(weight_bytes, dict(macs), dict(head_macs), layers)
