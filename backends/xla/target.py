"""What the XLA backend says about itself to the passes."""

from __future__ import annotations

from ...ir.target import ACTIVATIONS, Target
from ...ir.types import DTYPES, bf16, f16
from .elementwise import DOUBLE
from .lower import LOWERINGS

COMPUTE = ("f32", "bf16", "f16")


def target(compute: str = "f32", cache: str = "", quantised: bool = False) -> Target:
    """`compute` is the dtype that products multiply in, `cache` that of the caches (by default f16, or bf16 where
    products are), `quantised` whether activations become int8 as on CPUs. Raises KeyError for an unknown dtype."""
    default = bf16 if compute == "bf16" else f16
    return Target(
        name="xla",
        backend="xla",
        activations=ACTIVATIONS if quantised else {},
        ops=frozenset(LOWERINGS) - set(DOUBLE) | {f"{op} f64" for op in DOUBLE},
        fusions=frozenset({"concat_rows"}),
        cache=DTYPES[cache] if cache else default,
        compute=DTYPES[compute],
    )
