"""The backend node tests of the `onnx` package: a sample in every run, all of them in the slow one."""

from __future__ import annotations

import pytest

onnx = pytest.importorskip("onnx")

from . import onnx_cases  # noqa: E402

SAMPLE = 16  # every so many cases


def test_a_sample_of_the_node_tests_passes() -> None:
    chosen = [c for c in onnx_cases.cases() if not c.excluded][::SAMPLE]
    wrong = {n: why for n, why in onnx_cases.run(chosen).items() if not why.startswith("not supported")}
    assert not wrong


@pytest.mark.slow
def test_every_node_test_passes_or_is_refused(golden) -> None:
    chosen = [c for c in onnx_cases.cases() if not c.excluded]
    wrong = onnx_cases.run(chosen)
    assert not {n: why for n, why in wrong.items() if not why.startswith("not supported")}
    assert len(wrong) <= 0.05 * len(chosen)
    golden("../../docs/onnx_coverage.md", onnx_cases.coverage(wrong))
