"""The table of ONNX operators: (domain, name) → rule. What is missing and has a function body is imported as that."""

from __future__ import annotations

from collections.abc import Mapping

from .onnx_classical import CLASSICAL, GRAMS
from .onnx_contrib import CONTRIB
from .onnx_control import CONTROL
from .onnx_elementwise import ELEMENTWISE
from .onnx_import import Rule
from .onnx_nn import NN
from .onnx_quant import QUANT
from .onnx_recurrent import RECURRENT
from .onnx_reduce import REDUCTIONS
from .onnx_sampling import SAMPLING
from .onnx_shapes import SHAPES
from .onnx_signal import SIGNAL

OPERATORS: Mapping[tuple[str, str], Rule] = {
    ("", name): rule
    for table in (ELEMENTWISE, SHAPES, REDUCTIONS, NN, RECURRENT, SAMPLING, SIGNAL, QUANT, CONTROL, GRAMS)
    for name, rule in table.items()
} | {("ai.onnx.ml", name): rule for name, rule in CLASSICAL.items()} | CONTRIB
