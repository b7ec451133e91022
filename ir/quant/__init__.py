"""Quantised weights and activations: formats, packed layout, and their meaning as f32."""

from .activations import SUM_GROUP, Activation, decode_activation, encode_activation, row_bytes
from .convert import dequantize, quantize_q8_0, requantize
from .formats import DENSE, DIRECT, FORMATS, Fields, Format, fields, is_direct, planes_of
from .panels import ROWS, known_shape, pack, packed_bytes, panel_bytes, unpack

__all__ = [
    "DENSE", "DIRECT", "FORMATS", "ROWS", "SUM_GROUP", "Activation", "Fields", "Format",
    "decode_activation", "dequantize", "encode_activation", "fields", "is_direct", "known_shape", "pack",
    "packed_bytes", "panel_bytes", "planes_of", "quantize_q8_0", "requantize", "row_bytes", "unpack",
]  # fmt: skip
