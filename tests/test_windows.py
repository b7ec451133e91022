"""Convolution and windowed reductions: JAX's meaning, and the interpreter's bits in C."""

from __future__ import annotations

import numpy as np
import pytest
from jax import lax

from .test_traced_programs import arg, check, weight

CONVOLUTIONS = {
    "plain": ((2, 9, 7, 5), (3, 3, 5, 8), dict(window_strides=(1, 1), padding="SAME")),
    "strided": ((1, 11, 8, 3), (5, 3, 3, 4), dict(window_strides=(2, 3), padding=((2, 1), (0, 3)))),
    "pointwise": ((2, 5, 6, 20), (1, 1, 20, 36), dict(window_strides=(1, 1), padding="VALID")),
    "depthwise": ((1, 8, 9, 20), (3, 3, 1, 20), dict(window_strides=(1, 1), padding="SAME", feature_group_count=20)),
    "grouped": ((1, 6, 6, 8), (3, 3, 4, 6), dict(window_strides=(1, 1), padding="SAME", feature_group_count=2)),
    "dilated": ((1, 12, 10, 4), (3, 3, 4, 5), dict(window_strides=(1, 1), padding="SAME", rhs_dilation=(2, 3))),
    "transposed": ((1, 5, 4, 3), (3, 3, 3, 2), dict(window_strides=(1, 1), padding=((2, 2), (1, 3)),
                                                    lhs_dilation=(2, 3))),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name):
    x, w, options = CONVOLUTIONS[name]
    numbers = ("NHWC", "HWIO", "NHWC")
    check(lambda x, w: [lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)],
          arg("x", x), weight("w", w))  # fmt: skip


def test_convolution_of_one_axis_and_other_layouts():
    check(lambda x, w: [lax.conv_general_dilated(x, w, (2,), "SAME", dimension_numbers=("NCH", "OIH", "NCH"))],
          arg("x", (2, 5, 13)), weight("w", (6, 5, 3)))  # fmt: skip
    check(lambda x, w: [lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))],
          arg("x", (2, 5, 6, 7)), weight("w", (4, 5, 3, 3)))  # fmt: skip


@pytest.mark.parametrize("op, start", [(lax.max, -np.inf), (lax.min, np.inf), (lax.add, np.float32(0))])
def test_windows(op, start):
    def pooled(x):
        return [lax.reduce_window(x, start, op, (1, 3, 2, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (0, 1), (0, 0)))]

    check(pooled, arg("x", (2, 9, 8, 5)))
    check(lambda x: [lax.reduce_window(x, start, op, (4,), (1,), "VALID", window_dilation=(3,))], arg("x", (30,)))
