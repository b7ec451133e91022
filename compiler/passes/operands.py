"""Where products have their weights."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.graph import Node

# By op, the operands that are weights of any float or block dtype, and may be packed.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "embedding": (0,), "linear": (1,), "linear_add": (1,), "gated_linear": (1, 2), "expert_linear": (1,),
    "patch_linear": (1,),
}  # fmt: skip


def weight_operands(node: Node) -> Sequence[int]:
    """The indices of a node's operands that are weights of any float or block dtype, and may be packed."""
    if node.op.name == "linear_group":
        return range(1, 1 + len(node.attr("biases")))
    return WEIGHTS.get(node.op.name, ())
