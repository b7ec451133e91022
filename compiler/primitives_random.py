"""Random bits as JAX makes them: the same keys give the same bits.

A typed key is an array of its data, u32[…, 2] for threefry; what moves keys moves that axis along.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ..ir.graph import IRError, Value
from ..ir.types import Type

if TYPE_CHECKING:
    from .primitives import Lowering
    from .tracing import Body

Params = Mapping[str, Any]


def is_key(dtype: Any) -> bool:
    return bool(jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key))


def data_of(aval: Any) -> Any:
    """The abstract array of a key array's data."""
    return jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(aval.shape, aval.dtype))


def threefry2x32(k1: Any, k2: Any, x1: Any, x2: Any) -> tuple[Any, Any]:
    """Twenty rounds of Threefry-2x32 (Salmon and others, "Parallel random numbers: as easy as 1, 2, 3", 2011)."""
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    keys = (k1, k2, k1 ^ k2 ^ np.uint32(0x1BD11BDA))
    x1, x2 = x1 + keys[0], x2 + keys[1]
    for group in range(5):
        for r in rotations[group % 2]:
            x1 = x1 + x2
            x2 = x1 ^ ((x2 << np.uint32(r)) | (x2 >> np.uint32(32 - r)))
        x1 = x1 + keys[(group + 1) % 3]
        x2 = x2 + keys[(group + 2) % 3] + np.uint32(group + 1)
    return x1, x2


def _implementation(body: Body) -> Any:
    """The generator of the key that an equation takes. Only threefry's bits are made of operations there are."""
    return body.avals[0].dtype._impl  # JAX has no public name for what a key type is made by


def _each_key(function: Any, rank: int) -> Any:
    for _ in range(rank):
        function = jax.vmap(function)
    return function


def _on_keys(name: str, *settings: str) -> Lowering:
    """A function of the generator for every key of an array, with parameters of the equation after its operands."""

    def lower(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
        made, rank = getattr(_implementation(body), name), body.avals[0].ndim
        given = [params[key] for key in settings]
        return body.inline(_each_key(lambda key, *rest: made(key, *rest, *given), rank), operands)

    return lower


def _gamma_of(key: Any, alpha: Any, log_space: bool) -> Any:
    """One number by Marsaglia and Tsang ("A simple method for generating gamma variables", 2000), whose keys are split
    as JAX splits them."""
    raised = jnp.where(alpha >= 1, alpha, alpha + 1)
    d = raised - 1 / 3
    c = (1 / 3) / jnp.sqrt(d)
    key, last = jax.random.split(key)

    def refused(state: Any) -> Any:
        _, square, cube, u = state
        slow = jnp.log(u) >= square / 2 + d * (1 - cube + jnp.log(cube))
        return (u >= 1 - 0.0331 * square * square) & slow

    def draw(state: Any) -> Any:
        key, for_x, for_u = jax.random.split(state[0], 3)

        def again(state: Any) -> Any:
            following, own = jax.random.split(state[0])
            x = jax.random.normal(own, (), alpha.dtype)
            return following, x, 1 + x * c

        _, x, v = jax.lax.while_loop(lambda state: state[2] <= 0, again, (for_x, zero, -one))
        return key, x * x, v * v * v, jax.random.uniform(for_u, (), alpha.dtype)

    zero, one = jnp.zeros((), alpha.dtype), jnp.ones((), alpha.dtype)
    _, _, cube, _ = jax.lax.while_loop(refused, draw, (key, zero, one, 2 * one))
    if log_space:
        rest = -jax.random.exponential(last, (), alpha.dtype)
        return jnp.log(d) + jnp.log(cube) + jnp.where((alpha >= 1) | (rest == 0), 0, rest / alpha)
    boost = (1 - jax.random.uniform(last, (), alpha.dtype)) ** (1 / alpha)
    return d * cube * jnp.where(alpha >= 1, 1, boost)


def _gamma(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """Each key is split for the elements of `alpha` that it stands before."""
    def draw(keys: Any, alpha: Any) -> Any:
        count = prod(alpha.shape[keys.ndim :])
        own = jax.vmap(lambda key: jax.random.split(key, count))(keys.reshape(-1)).reshape(-1)
        each = jax.vmap(lambda key, a: _gamma_of(key, a, params["log_space"]))
        return each(own, alpha.reshape(-1)).reshape(alpha.shape)

    return body.inline(draw, operands, keys=True)


def _seed(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    made, rank = params["impl"].seed, body.avals[0].ndim
    return body.inline(lambda seeds: _each_key(made, rank)(seeds), operands)


def _same(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    return operands


def _counts(body: Body, params: Params, operands: list[Value], types: list[Type]) -> Sequence[Value]:
    """`iota_2x32_shape`: the upper and lower half of each element's place. Arrays have fewer than 2^32 elements."""
    shape = types[1].shape
    places = body.make("iota", type=Type((prod(shape, start=1),), types[1].dtype), dim=0)[0]
    zero = body.constant(np.zeros((), np.uint32))
    return [*body.make("broadcast", zero, shape=shape, dims=()), *body.make("reshape", places, shape=shape)]


RANDOM_PRIMITIVES: dict[str, Lowering] = {
    "iota_2x32_shape": _counts,
    "threefry2x32": lambda body, params, operands, types: body.inline(threefry2x32, operands),
    "random_bits": _on_keys("random_bits", "bit_width", "shape"),
    "random_split": _on_keys("split", "shape"),
    "random_fold_in": _on_keys("fold_in"),
    "random_seed": _seed,
    "random_gamma": _gamma,
    "random_wrap": _same,
    "random_unwrap": _same,
}


def _gathered(params: Params, aval: Any, data: Any) -> dict[str, Any]:
    numbers = params["dimension_numbers"]
    grown = numbers.__class__(**{**numbers._asdict(), "offset_dims": (*numbers.offset_dims, data.ndim - 1)})
    return {**params, "dimension_numbers": grown, "slice_sizes": (*params["slice_sizes"], data.shape[-1])}


# What moves keys: parameters with the axis of their data, given the key array's result, and its data.
MOVES_KEYS: Mapping[str, Any] = {
    "broadcast_in_dim": lambda p, aval, data: {**p, "broadcast_dimensions": (*p["broadcast_dimensions"], aval.ndim)},
    "transpose": lambda p, aval, data: {**p, "permutation": (*p["permutation"], aval.ndim)},
    "slice": lambda p, aval, data: {
        **p, "start_indices": (*p["start_indices"], 0), "limit_indices": (*p["limit_indices"], data.shape[-1]),
        "strides": None if p["strides"] is None else (*p["strides"], 1)},
    "gather": _gathered,
    **{name: lambda p, aval, data: dict(p) for name in (
        "reshape", "squeeze", "concatenate", "copy", "copy_p", "optimization_barrier")},
}  # fmt: skip


def with_data(name: str, params: Params, aval: Any) -> dict[str, Any]:
    """Parameters of an equation that moves keys, for their data. Raises IRError for one that cannot."""
    if name not in MOVES_KEYS:
        raise IRError(f"{name} of typed random keys is not supported: use jax.random.key_data and wrap_key_data")
    found: dict[str, Any] = MOVES_KEYS[name](params, aval, data_of(aval))
    return found


def select_keys(body: Body, operands: list[Value], shape: tuple[Any, ...]) -> list[Value]:
    """A condition beside keys, with the axis of their data."""
    which, *keys = operands
    if which.shape:
        which = body.make("broadcast", which, shape=shape, dims=tuple(range(which.type.rank)))[0]
    return [which, *keys]


def starts_with_zero(body: Body, operands: list[Value]) -> list[Value]:
    """Starts of a dynamic slice, with that of the data's axis."""
    return [*operands, body.constant(np.array(0, jnp.int32))]
