"""Meshes: how weights and caches are split over devices.

`tp` devices share each matrix: q, k, v, gate and up by their rows, so that each device has its own heads; the
projections that follow by their columns, after which the devices' results are summed. `dp` groups of such devices are
replicas with sessions of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import InfercError
from .program import Input, Program

COLUMNS = ("attn_output.weight", "ffn_down.weight")  # matrices whose operand is split, by the last part of their name
ROWS = ("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up")


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

    def check(self, built: Program) -> None:
        """Raises InfercError where the heads of a cache, or the rows or blocks of a matrix, do not divide by `tp`."""
        for i in (*built.states, *built.weights):
            if self.tp == 1 or (axis := self.axis(i)) is None:
                continue
            what = "heads" if i.role == "state" else "rows" if axis == 0 else "blocks of a row"
            for part in i.parts:
                if part.shape[axis] % self.tp:
                    raise InfercError(
                        f"the mesh tp={self.tp} does not divide the {part.shape[axis]} {what} of {i.name}: "
                        "choose a tp that does"
                    )

    def axis(self, i: Input) -> int | None:
        """The axis along which an input's tensors are split over `tp`; None where each device has the whole."""
        if i.role == "state":
            return 1
        last = i.name.split(".", 2)[-1] if i.name.startswith("blk.") else ""
        if last in COLUMNS:
            return 1
        return 0 if last.split(".")[0] in ROWS else None

    def of(self, i: Input) -> list[int | None]:
        """For each tensor of an input, the axis that is split."""
        return [self.axis(i) if self.tp > 1 else None for _ in i.parts]
