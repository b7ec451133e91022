"""benchmarks/quality.py: its arithmetic on known cases, its reference, and a tiny compiled model against it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import log
from pathlib import Path

import numpy as np
import pytest

import inferc
from benchmarks import quality
from inferc.backends.c import toolchain
from inferc.compiler.frontends import gguf, language
from inferc.compiler.verification.compare import divergence
from inferc.compiler.verification.reference import attention_at_once, with_rules
from inferc.ir.numerics.linear import quantize
from inferc.ir.quant import decode_activation
from inferc.ir.types import a8g32
from inferc.runtime.perplexity import log_softmax, perplexity, windows
from tests.tiny_models import write_model

WINDOW = 32
WORDS = "the tin hen and the inn in the den is on the rise and the rain is in on the oration "
TEXT = " ".join(WORDS[i:] + WORDS[:i] for i in range(2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("quality")
    (folder / "text.txt").write_text(TEXT)
    write_model(folder / "tiny.gguf", "llama", {"ffn_down": "q6_k", "": "q5_0"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, "-O1"))
        yield folder


@pytest.fixture(scope="module")
def model(folder) -> Iterator[inferc.Model]:
    with inferc.compile(folder / "tiny.gguf") as model:
        yield model


@pytest.fixture(scope="module")
def reference(folder) -> quality.Reference:
    return quality.Reference(gguf.load(folder / "tiny.gguf"), WINDOW)


def test_divergence_of_known_distributions():
    p, q = log_softmax(np.float32([0, 0])), log_softmax(np.log(np.float32([1, 3])))
    assert divergence(p, p) == 0.0
    assert divergence(p, q) == pytest.approx(0.5 * log(2) + 0.5 * log(2 / 3), rel=1e-6)
    assert divergence(q, p) == pytest.approx(0.25 * log(1 / 2) + 0.75 * log(3 / 2), rel=1e-6)


def test_log_softmax_bears_any_shift():
    logits = np.float32([-3, 0, 2, 2.5])
    expected = np.log(np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum())
    for shift in (0, 1e4, -1e4):
        np.testing.assert_allclose(log_softmax(logits + np.float32(shift)), expected, atol=1e-3 if shift else 1e-12)
    assert log_softmax(logits).dtype == np.float64


def test_scores_add_up():
    scores = quality.Scores()
    exact = np.float32([[0, 1, 2], [0, 1, 2]])
    for row, found in zip(exact, np.float32([[0, 1, 2], [2, 1, 0]])):
        scores.add(log_softmax(row), found, 1)
    p = np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum()
    summary = scores.summary()
    assert summary["perplexity"] == pytest.approx(1 / p[1])
    assert scores.divergences == pytest.approx([0, 2 * (p[2] - p[0])])  # the logs differ by -2, 0 and 2
    assert summary["kl"] == pytest.approx(p[2] - p[0]) and summary["top_1"] == 0.5
    assert summary["kl_error"] == pytest.approx(p[2] - p[0])  # of 0 and 2a: the deviation a / sqrt(2 - 1)


def test_rounding_is_that_of_a8g32():
    x = np.random.default_rng(1).standard_normal((5, 96)).astype(np.float32)
    x[1, 32:64] = 0
    rounded = quality.rounded_to_groups(x, 32)
    held = decode_activation(a8g32, quantize(x, a8g32))
    np.testing.assert_allclose(rounded, held.q * np.repeat(held.d, 32, axis=1), rtol=1e-6)
    odd = quality.rounded_to_groups(x[:, :70], 32)  # the last group has 6 values
    np.testing.assert_array_equal(odd[:, :64], rounded[:, :64])
    assert odd.shape == (5, 70)


def test_attention_at_once_is_cached_attention(tmp_path):
    """In a model with layers of both kinds, and a window narrower than the text."""
    source = gguf.load(write_model(tmp_path / "tiny.gguf", "gemma3", "q8_0"))
    logits, weights = language.reference(source, WINDOW)
    ids = np.arange(3, 3 + WINDOW, dtype=np.int32)
    exact = with_rules(logits, {"cached_attention": attention_at_once})
    found = exact(weights, ids, np.arange(WINDOW, dtype=np.int32))
    np.testing.assert_allclose(found, language.reference_logits(source, ids.tolist()), atol=1e-5)


def test_compiled_rounds_as_plain_groups_of_32_do(model, reference):
    """The artifact is as far from f32 activations as the reference with rounded ones, and much nearer to that."""
    pieces = list(windows(model, model.tokenize(TEXT), WINDOW))
    scores = quality.compare(model, reference, iter(pieces))
    result = quality.report(scores, None)
    assert result["positions"] == len(pieces) * (WINDOW // 2 - 1)
    assert result["engines"]["f32"]["kl"] == 0.0 and result["engines"]["f32"]["top_1"] == 1.0
    assert 0.9 < result["kl_ratio"] < 1.1
    *_, estimate = perplexity(model, model.tokenize(TEXT), WINDOW)
    compiled = result["engines"]["compiled"]
    assert (compiled["perplexity"], compiled["perplexity_error"]) == pytest.approx(
        (estimate.perplexity, estimate.error), rel=1e-6
    )
    first = WINDOW // 2
    rounded, exact = reference.plain(pieces[0]), reference.f32(pieces[0])
    found = model.logits(pieces[0])[first:-1]
    # Some rows are equal but for f32's last bits; in others a value has fallen to the other side of a half.
    assert np.abs(found - rounded).mean() < 0.4 * np.abs(found - exact).mean()


def test_main_prints_and_judges(folder, model, reference, capsys, monkeypatch):
    monkeypatch.setattr(quality, "Reference", lambda source, window: reference)  # made once
    arguments = [str(folder / "tiny.gguf"), "--text", str(folder / "text.txt"), "--window", str(WINDOW)]
    arguments += ["--json", str(folder / "out.json"), "--expect"]
    assert quality.main(arguments) == 0
    printed = [line.split("|")[3].split("±")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    [result] = json.loads((folder / "out.json").read_text())
    assert [e["perplexity"] for e in result["engines"].values()] == pytest.approx([*map(float, printed)], abs=1e-3)
    assert quality.main([*arguments, "--windows", "2"]) == 0
    assert json.loads((folder / "out.json").read_text())[0]["windows"] == 2
    assert quality.main([*arguments, "--llama-cpp", str(float(printed[-1]) / 1.01)]) == 1
    assert "perplexity_difference is 0.01" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        quality.main([*arguments, "--llama-cpp", "1", "2"])
