"""Programs for TPUs: their numbers, which any platform computes, and how their weights lie in memory."""

from __future__ import annotations

import pytest

from inferc.ir.types import BLOCK_SIZES, CODE_SIZES

from .test_xla_ops import cache_cases, weight_cases
from .xla_run import Case, by_xla, near

DTYPES = (*BLOCK_SIZES, *CODE_SIZES, "f16", "bf16", "f32")
FEW = ("q4_0", "q5_1", "q8_0", "q4_k", "q6_k", "mxfp4", "f16")  # one of each kind of scale, and of plane


def check(cases: dict[str, Case], tolerance: float) -> None:
    for (name, c), results in zip(cases.items(), by_xla(list(cases.values()))):
        for actual, expected in zip(results, c.expected(), strict=True):
            try:
                near(actual, expected, tolerance)
            except AssertionError as error:
                raise AssertionError(f"{name}: {error}") from error


@pytest.mark.parametrize("dtypes", [FEW, pytest.param(tuple({*DTYPES} - {*FEW}), marks=pytest.mark.slow)],
                         ids=["few", "rest"])  # fmt: skip
def test_products_and_embeddings(dtypes):
    check(weight_cases("tpu", dtypes), 1e-4)


@pytest.mark.parametrize("dtype", ["f16", *(pytest.param(d, marks=pytest.mark.slow) for d in ("f32", "q8_0"))])
def test_caches_and_attention(dtype):
    check(cache_cases((dtype,), (1, 5, 12), "tpu"), 1e-4 if dtype == "f32" else 3e-3)
