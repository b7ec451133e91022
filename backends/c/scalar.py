"""Scalar operations as C expressions: the table that the loop family's bodies are printed from.

Values of f16 and bf16 are held as bits in memory and as f32 that has been rounded to them in expressions, where one
operation in f32 and one rounding give what `ir.ops` says. Booleans are bytes 0 and 1 in memory, `bool` in expressions.
"""

from __future__ import annotations

import re

import numpy as np

from ...ir.graph import IRError
from ...ir.ops.common import kind_of
from ...ir.types import DType, f32
from .text import C_TYPES, literals

HALVES = ("f16", "bf16")
VALUE_TYPES = C_TYPES | {"f16": "float", "bf16": "float", "bool": "bool"}  # of expressions; C_TYPES is of memory

# Functions that the C library has for f64; of other dtypes they are decomposed.
DOUBLE = "exp2 sinh cosh tan atan atan2 asin acos asinh acosh atanh cbrt erfc".split()

# op → C for each kind of operand; {t} is the dtype's name. Functions are those of scalar.h, elementary.h and math.h.
SCALARS: dict[str, dict[str, str]] = {
    "add": {"float": "{0} + {1}", "int": "add_{t}({0}, {1})"},
    "sub": {"float": "{0} - {1}", "int": "sub_{t}({0}, {1})"},
    "mul": {"float": "{0} * {1}", "int": "mul_{t}({0}, {1})"},
    "div": {"float": "{0} / {1}", "int": "div_{t}({0}, {1})"},
    "rem": {"f32": "fmodf({0}, {1})", "f64": "fmod({0}, {1})", "int": "rem_{t}({0}, {1})"},
    "max": {"float": "max_{t}({0}, {1})", "int": "max_{t}({0}, {1})", "bool": "{0} | {1}"},
    "min": {"float": "min_{t}({0}, {1})", "int": "min_{t}({0}, {1})", "bool": "{0} & {1}"},
    "neg": {"float": "-{0}", "int": "neg_{t}({0})"},
    "abs": {"f32": "fabsf({0})", "f64": "fabs({0})", "int": "abs_{t}({0})"},
    "sign": {"float": "sign_{t}({0})", "int": "sign_{t}({0})"},
    "floor": {"f32": "floorf({0})", "f64": "floor({0})"},
    "ceil": {"f32": "ceilf({0})", "f64": "ceil({0})"},
    "round_even": {"f32": "rintf({0})", "f64": "rint({0})"},
    "round_away": {"f32": "roundf({0})", "f64": "round({0})"},
    "sqrt": {"f32": "sqrtf({0})", "f64": "sqrt({0})"},
    "rsqrt": {"f32": "1.0f / sqrtf({0})", "f64": "1.0 / sqrt({0})"},
    **{name: {"f32": f"m_{name}({{0}})"} for name in ("silu", "gelu_tanh", "gelu")},
    **{name: {"f32": f"m_{name}({{0}})", "f64": f"{name}({{0}})"} for name in (  # f64: to the C library's last bit
        "exp", "expm1", "log", "log1p", "tanh", "erf", "sin", "cos")},
    **{name: {"f64": f"{name}({{0}})"} for name in DOUBLE if name != "atan2"}, "atan2": {"f64": "atan2({0}, {1})"},
    "logistic": {"f32": "m_logistic({0})", "f64": "1.0 / (1.0 + exp(-{0}))"},
    "pow": {"f32": "m_pow({0}, {1})", "f64": "pow({0}, {1})"},
    "softcap": {"f32": "{1} * m_tanh({0} / {1})"},
    "not": {"int": "({c})~{0}", "bool": "!{0}"},
    "and": {"int": "({c})({0} & {1})", "bool": "{0} & {1}"},
    "or": {"int": "({c})({0} | {1})", "bool": "{0} | {1}"},
    "xor": {"int": "({c})({0} ^ {1})", "bool": "{0} ^ {1}"},
    "shift_left": {"int": "shift_left_{t}({0}, {1})"},
    "shift_right_logical": {"int": "shift_right_logical_{t}({0}, {1})"},
    "shift_right_arithmetic": {"int": "shift_right_arithmetic_{t}({0}, {1})"},
    **{name: {"any": f"{{0}} {sign} {{1}}"} for name, sign in (
        ("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="))},
    "select": {"any": "{0} ? {1} : {2}"},
    "is_finite": {"float": "isfinite({0})"},
}  # fmt: skip
EXACT = ("neg", "abs", "max", "min", "select")  # they give a half float that needs no rounding


def expression(op: str, args: list[str], operand: DType, result: DType) -> str:
    """C text of `op` applied to operand texts of dtype `operand`. Raises IRError where C has no such op."""
    if op in ("convert", "bitcast"):
        return CASTS[op](args[0], operand, result)
    forms = SCALARS[op]
    computed = "f32" if operand.name in HALVES else operand.name
    form = forms.get(computed) or forms.get(kind_of(operand)) or forms.get("any")
    if form is None:
        raise IRError(f"C has no {op} of {operand}; convert it first")
    text = form.format(*map(enclosed, args), t=computed, c=VALUE_TYPES[operand.name])
    return rounded(text, result) if operand == result and op not in EXACT else text


def rounded(text: str, dtype: DType) -> str:
    """An f32 expression rounded to a half dtype, still as f32; others as they are."""
    return f"load_{dtype}(store_{dtype}({text}))" if dtype.name in HALVES else text


def load(text: str, dtype: DType) -> str:
    """What is stored, as a value."""
    return f"load_{dtype}({text})" if dtype.name in HALVES else text


def store(text: str, dtype: DType) -> str:
    """A value, as it is stored. Storing rounds, so a rounding right before it goes."""
    if dtype.name not in HALVES:
        return text
    opening = f"load_{dtype}("
    return text[len(opening) : -1] if text.startswith(opening) and enclosed(text) == text else f"store_{dtype}({text})"


def _convert(text: str, operand: DType, result: DType) -> str:
    if operand == result:
        return text
    if result.name == "bool":
        return f"{enclosed(text)} != 0"
    if operand.is_float and result.is_integer:
        return f"convert_{'f64' if operand.name == 'f64' else 'f32'}_{result}({text})"
    if operand.name == "f64" and result.name in HALVES:
        return rounded(f"(float){enclosed(text)}", result)
    return rounded(f"({VALUE_TYPES[result.name]}){enclosed(text)}", result)


def _bitcast(text: str, operand: DType, result: DType) -> str:
    def unsigned(dtype: DType) -> str:
        return f"u{dtype.block_bytes * 8}"

    if operand == result:
        return text
    if operand.name in HALVES:
        text = f"store_{operand}({text})"
    elif operand.is_float:
        text = f"bitcast_{operand}_{unsigned(operand)}({text})"
    if result.name in HALVES:
        return f"load_{result}((uint16_t){enclosed(text)})"
    if result.is_float:
        return f"bitcast_{unsigned(result)}_{result}(({C_TYPES[unsigned(result)]}){enclosed(text)})"
    return f"({VALUE_TYPES[result.name]}){enclosed(text)}"


CASTS = {"convert": _convert, "bitcast": _bitcast}

_SIMPLE = re.compile(r"[\w.]+|INT\d+_MIN")


def enclosed(text: str) -> str:
    """The text as one operand: parenthesised unless it is a name, a number, one call or one subscript."""
    head = _SIMPLE.match(text)
    if head is None:
        return f"({text})"
    depth = 0
    for n, c in enumerate(text[head.end() :], head.end()):
        if depth == 0 and c not in "([":
            return f"({text})"
        depth += (c in "([") - (c in ")]")
        if depth == 0 and n + 1 < len(text):
            return f"({text})"
    return text


def literal(value: int | float | bool, dtype: DType) -> str:
    """A number as a C expression of the dtype's type."""
    kept = np.array(value, "float32" if dtype.name in HALVES else dtype.numpy)
    return literals(kept.tobytes(), f32 if dtype.name in HALVES else dtype)[0]
