"""Quantised weights and activations: formats, packed layout, and their meaning as f32."""

from .activations import SUM_GROUP, Activation, decode_activation, encode_activation, row_bytes
from .formats import DENSE, DIRECT, FORMATS, Fields, Format, fields, is_direct, planes_of
from .iq import RECODED, computed, recode
from .panels import ROWS, known_shape, pack, packed_bytes, panel_bytes, unpack
from .rounding import ROUNDED, round_to_blocks
from .values import dequantize

__all__ = [
    "DENSE", "DIRECT", "FORMATS", "RECODED", "ROUNDED",
    "ROWS", "SUM_GROUP", "Activation", "Fields", "Format", "computed",
    "decode_activation", "dequantize", "encode_activation", "fields", "is_direct", "known_shape", "pack",
    "packed_bytes", "panel_bytes", "planes_of", "recode", "round_to_blocks", "row_bytes", "unpack",
]  # fmt: skip
