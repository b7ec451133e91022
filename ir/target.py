"""What a backend says about itself to the passes: data, so that no pass knows a backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .types import BLOCK_SIZES, CODE_SIZES, DType, a8g32, bf16, f16, f32

# The dtype that activations are quantised to before a product with each weight dtype; absent: they stay f32.
ACTIVATIONS: Mapping[str, DType] = dict.fromkeys((*BLOCK_SIZES, *CODE_SIZES), a8g32) | {"bf16": bf16}


@dataclass(frozen=True)
class Target:
    """The choices that differ between backends; `backend` says which one reads the result.

    `activations` maps a weight dtype's name to the dtype its activations are quantised to; weights that it leaves out
    take f32. `ops` names the ops that have a kernel, if any are named ("atan2 f64" one that has it for a dtype alone);
    others are decomposed where they can be.
    `weight_layout` packs linear weights ("" leaves them row-major). `fusions` names the fusion rules allowed.
    `page` is the number of positions by which a cache grows, 0 where it is allocated whole. `rounded` names the
    format that the matrices of a function are rounded to, "" for none. `tuning` is for the backend
    alone: sizes that change no bit and no pass.
    """

    name: str
    backend: str
    activations: Mapping[str, DType] = field(default_factory=dict, hash=False)
    ops: frozenset[str] = frozenset()
    weight_layout: str = ""
    fusions: frozenset[str] = frozenset()
    cache: DType = f16
    compute: DType = f32
    page: int = 0
    rounded: str = ""
    tuning: object = None

    def activation(self, weight: DType) -> DType | None:
        """The dtype that activations are quantised to before a product with `weight`; None if they stay f32."""
        return self.activations.get(weight.name)
