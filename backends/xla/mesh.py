"""Meshes: how many devices share a model, and how many such groups there are.

`tp` devices share each matrix: q, k, v, gate and up by their rows, so that each device has its own heads; the
projections that follow by their columns, after which the devices' results are summed. Each evaluates a program of its
own parts (`program.Program.graph`). `dp` groups of such devices are replicas with sessions of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InfercError


@dataclass(frozen=True)
class Mesh:
    """Numbers of devices: `tp` for one model, `dp` of them."""

    tp: int = 1
    dp: int = 1

    @classmethod
    def parse(cls, text: str) -> Mesh:
        """`tp=2,dp=4` in any order; "" is one device. Raises InfercError for anything else."""
        sizes: dict[str, int] = {}
        for item in filter(None, (t.strip() for t in text.split(","))):
            axis, _, size = item.partition("=")
            if axis not in ("tp", "dp") or axis in sizes or not size.isdigit() or int(size) < 1:
                raise InfercError(f"a mesh is written as in tp=2,dp=4, not {text!r}")
            sizes[axis] = int(size)
        return cls(**sizes)

    def as_data(self) -> dict[str, int]:
        return {"tp": self.tp, "dp": self.dp}
