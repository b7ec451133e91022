"""Checkpoints whose linears are integers in groups: GPTQ and AWQ, read into packed dtypes without loss.

Both hold w[n, k] = scale[g, n] * (q[k, n] - zero[g, n]) with g the group of k, q and zero packed in words of 32 bits.
GPTQ packs q along k and may give the columns to groups in any order ("act-order"): then the weights are sorted by group
and the input of the product is gathered in that order. (Frantar et al., GPTQ, 2022; Lin et al., AWQ, 2023.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import InfercError
from ...ir.graph import Weight
from ...ir.quant.formats import FORMATS, Raw, put_together
from ...ir.types import DTYPES, Type, f32, i32
from .safetensors import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each nibble of a word
METHODS = {"gptq": (4, 8), "awq": (4,)}  # bits


@dataclass(frozen=True)
class Scheme:
    """How a checkpoint's integers lie; `zero_offset` is added to stored zeros."""

    method: str
    bits: int
    zero_offset: int


@dataclass(frozen=True)
class Grouped:
    """The parts of one linear: q u8 [K, N], zero u8 [groups, N], scale f16 [groups, N], the group of each k [K]."""

    q: Callable[[], np.ndarray]
    zero: np.ndarray
    scale: np.ndarray
    group: np.ndarray


def scheme(path: Path, config: Any) -> Scheme | None:
    """What `quantization_config` says; None without one. Raises InfercError for a method that is not read."""
    if config is None:
        return None
    method = config.get("quant_method") if isinstance(config, Mapping) else None
    if method not in METHODS:
        raise InfercError(f"{path}: weights quantised by {method!r:.30} are not supported; {', '.join(METHODS)} are")
    bits = config.get("bits", config.get("w_bit"))
    if bits not in METHODS[method]:
        raise InfercError(f"{path}: {method} of {bits!r:.10} bits is not supported; {METHODS[method]} are")
    if method == "awq" and (version := str(config.get("version", "gemm")).lower()) != "gemm":
        raise InfercError(f"{path}: AWQ packed as {version!r:.20} is not supported; save it as gemm")
    one_less = method == "gptq" and config.get("checkpoint_format", "gptq") == "gptq"
    return Scheme(method, bits, int(one_less))


def weights(path: Path, scheme: Scheme | None, name: str, parts: Mapping[str, Tensor]) -> dict[str, Weight]:
    """The weights of one linear by our names: NAME.weight packed [N, K], NAME.bias, and NAME.order i32 [K] where the
    input is to be gathered. Raises InfercError for parts that are missing or contradict each other."""
    if scheme is None:
        raise InfercError(f"{path}: {name} is packed but config.json has no quantization_config; download it again")
    for part in ("qweight", "qzeros", "scales"):
        if part not in parts:
            raise InfercError(f"{path}: {name} has no {part}; download the model again")
    grouped = (_gptq if scheme.method == "gptq" else _awq)(path, scheme, name, parts)
    made = _packed(path, scheme, name, grouped)
    if "bias" in parts:
        bias = parts["bias"]
        made[f"{name}.bias"] = Weight(f"{name}.bias", Type(bias.shape, f32), lambda: _floats(bias).astype(np.float32))
    return made


def _nibbles(words: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """int32 [..., n] → u8 [..., n * 32 / bits], lowest bits first or each in its column of `order`."""
    count = 32 // bits
    shifts = np.arange(count, dtype=np.uint32) * np.uint32(bits)
    values = (words.view(np.uint32)[..., None] >> shifts & np.uint32((1 << bits) - 1)).astype(np.uint8)
    if order:
        values = values[..., np.argsort(order)]
    return values.reshape(*words.shape[:-1], -1)


def _gptq(path: Path, scheme: Scheme, name: str, parts: Mapping[str, Tensor]) -> Grouped:
    packed, count = parts["qweight"], 32 // scheme.bits
    inputs, outputs = packed.shape[0] * count, packed.shape[1]
    scale = _scales(path, name, parts["scales"], outputs)
    zero = _nibbles(parts["qzeros"].array(), scheme.bits) + np.uint8(scheme.zero_offset)
    stored = parts["g_idx"].array().astype(np.int64) if "g_idx" in parts else None
    group = np.arange(inputs) // -(-inputs // len(scale)) if stored is None else stored

    def q() -> np.ndarray:
        return np.ascontiguousarray(_nibbles(packed.array().T, scheme.bits).T)

    return _checked(path, name, Grouped(q, zero, scale, group), inputs, outputs)


def _awq(path: Path, scheme: Scheme, name: str, parts: Mapping[str, Tensor]) -> Grouped:
    packed = parts["qweight"]
    inputs, outputs = packed.shape[0], packed.shape[1] * 8
    scale = _scales(path, name, parts["scales"], outputs)
    zero = _nibbles(parts["qzeros"].array(), 4, AWQ_ORDER)
    group = np.arange(inputs) // -(-inputs // len(scale))
    q = lambda: _nibbles(packed.array(), 4, AWQ_ORDER)  # noqa: E731
    return _checked(path, name, Grouped(q, zero, scale, group), inputs, outputs)


def _scales(path: Path, name: str, tensor: Tensor, outputs: int) -> np.ndarray:
    """f16 [groups, N]. Raises InfercError where a value is no f16."""
    if len(tensor.shape) != 2 or tensor.shape[1] != outputs or not tensor.shape[0]:
        raise InfercError(f"{path}: {name}.scales is {list(tensor.shape)} for {outputs} outputs; download it again")
    values = _floats(tensor)
    halves = values.astype(np.float16)
    if not np.array_equal(halves.astype(np.float32), values.astype(np.float32)):
        raise InfercError(f"{path}: {name} has scales that f16 does not hold; save the model with f16 scales")
    return halves


def _floats(tensor: Tensor) -> np.ndarray:
    values = tensor.array()
    return (values.astype(np.uint32) << 16).view(np.float32) if tensor.kind == "BF16" else values


def _checked(path: Path, name: str, grouped: Grouped, inputs: int, outputs: int) -> Grouped:
    groups = len(grouped.scale)
    wrong = grouped.zero.shape != (groups, outputs) or grouped.group.shape != (inputs,)
    if wrong or grouped.group.min(initial=0) < 0 or grouped.group.max(initial=0) >= groups:
        raise InfercError(f"{path}: {name}'s zeros, scales and groups do not fit each other; download the model again")
    return grouped


def _packed(path: Path, scheme: Scheme, name: str, grouped: Grouped) -> dict[str, Weight]:
    inputs, outputs = len(grouped.group), grouped.scale.shape[1]
    order = np.argsort(grouped.group, kind="stable")
    sorted_groups = grouped.group[order]
    symmetric = bool(np.all(grouped.zero == 1 << (scheme.bits - 1)))
    dtype = next((DTYPES[d] for d in _dtypes(scheme.bits, symmetric) if _fits(sorted_groups, DTYPES[d].block)), None)
    if dtype is None:
        kind = "symmetric" if symmetric else "with zero points"
        raise InfercError(
            f"{path}: {name} has {scheme.bits}-bit groups {kind} that are no multiples of 32 inputs, "
            "which is not supported; quantise with groups of 32, 64 or 128"
        )
    permuted = not np.array_equal(order, np.arange(inputs))
    load = partial(_blocks, grouped, order if permuted else None, sorted_groups[:: dtype.block], dtype.name)
    made = {f"{name}.weight": Weight(f"{name}.weight", Type((outputs, inputs), dtype), load)}
    if permuted:
        gather = order.astype(np.int32)
        made[f"{name}.order"] = Weight(f"{name}.order", Type((inputs,), i32), lambda: gather)
    return made


def _dtypes(bits: int, symmetric: bool) -> tuple[str, ...]:
    """The packed dtypes that hold such groups, the smallest first."""
    if bits == 8:
        return ("q8_0",) if symmetric else ()
    return ("int4_g128", "q4_0") if symmetric else ("uint4_g128", "uint4_g32")


def _fits(groups: np.ndarray, block: int) -> bool:
    """Whether every block of so many neighbouring inputs lies in one group."""
    return len(groups) % block == 0 and bool(np.all(groups.reshape(-1, block) == groups[::block, None]))


def _blocks(grouped: Grouped, order: np.ndarray | None, block_group: np.ndarray, dtype: str) -> np.ndarray:
    """Raw blocks uint8 [N, bytes] of a packed dtype."""
    fmt = FORMATS[dtype]
    q = grouped.q() if order is None else grouped.q()[order]
    q = np.ascontiguousarray(q.T).reshape(q.shape[1], -1, fmt.block)
    if fmt.bits == 8:
        q = q ^ np.uint8(0x80)
    d = np.ascontiguousarray(grouped.scale[block_group].T).view(np.uint16)
    if not fmt.mins:
        return put_together(fmt, Raw(q, d, None, None))
    ones = np.ones((*d.shape, fmt.groups), np.uint8)
    zeros = np.broadcast_to(grouped.zero[block_group].T[..., None], ones.shape)
    return put_together(fmt, Raw(q, d, d, np.concatenate([ones, zeros], axis=-1)))
