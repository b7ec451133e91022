"""Arrays to call a function with, from its signature alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...runtime.function import DTYPES
from ...runtime.sizes import size_of


def inputs(signature: Mapping[str, Any]) -> list[np.ndarray]:
    """Arrays for a function: normal numbers, small whole ones, in the signature's order and dtypes, bf16 as f32 that it
    holds. Dimensions that have a name are as small as they may be, but not below 1, or as "chosen" says."""
    rng = np.random.default_rng(0)
    dims = {name: max(int(low), 1) for name, (low, _) in signature.get("dims", {}).items()}
    dims |= signature.get("chosen", {})
    made = []
    for entry in signature["inputs"]:
        shape = tuple(size_of(d, dims) for d in entry["shape"])
        if entry["dtype"] == "bool":
            made.append(np.ones(shape, bool))
        elif entry["dtype"].startswith(("i", "u")):
            made.append(rng.integers(0, 2, shape).astype(DTYPES[entry["dtype"]]))
        elif entry["dtype"] == "bf16":
            rounded = rng.standard_normal(shape).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
            made.append(rounded.view(np.float32))
        else:
            made.append(rng.standard_normal(shape).astype(DTYPES[entry["dtype"]]))
    return made
