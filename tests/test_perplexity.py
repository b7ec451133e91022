"""`inferc perplexity`: files of distributions, comparisons with them, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from inferc.backends.c import toolchain
from inferc.compiler.cli import app
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError
from inferc.runtime.log_probabilities import Reader, Writer, decode, encode, row_words, scored
from inferc.runtime.perplexity import Against, log_softmax
from tests.tiny_models import write_model

pytestmark = pytest.mark.usefixtures("quick_compiler")

WORDS = "the tin hen and the inn in the den is on the rise and the rain is in on the oration "


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("perplexity")
    for name, types in (("fine", "q8_0"), ("coarse", "q4_0")):
        write_model(folder / f"{name}.gguf", "llama", types)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, "-O1"))
            compile_model(str(folder / f"{name}.gguf"), folder / f"{name}.inferc", target="generic")
    (folder / "text.txt").write_text(WORDS * 2)
    (folder / "other.txt").write_text(WORDS[9:] * 2)
    return folder


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["perplexity", *map(str, arguments)])
    if done.exception:
        raise done.exception
    return done.output


def test_rows_keep_what_is_within_16_nats():
    rng = np.random.default_rng(3)
    logits = np.float32([rng.normal(0, 3, 33), np.full(33, 2.0), [*rng.normal(0, 1, 32), -100.0]])
    found = decode(encode(logits), 33)
    exact = np.array([log_softmax(row) for row in logits])
    assert encode(logits).shape == (3, row_words(33)) == (3, 38)
    kept = exact > exact.max(axis=1, keepdims=True) - 16
    assert np.abs(found - exact)[kept].max() < 16 / 65535
    assert found[2, -1] == pytest.approx(exact[2].max() - 16, abs=1e-3)


def test_a_file_of_llama_perplexity_is_read():
    """Bytes as its source writes them: a step of 0.5 from -3, one window of 4 with one scored position."""
    raw = b"_logits_" + np.array([4, 3, 1, 7, 8, 9, 10], np.int32).tobytes()
    raw += np.array([0.5, -3.0], np.float32).tobytes() + np.array([0, 4, 2, 0], np.uint16).tobytes()
    path = Path(__import__("tempfile").mkstemp()[1])
    path.write_bytes(raw)
    reader = Reader(path)
    assert (reader.window, reader.vocabulary, reader.tokens.tolist()) == (4, 3, [[7, 8, 9, 10]])
    np.testing.assert_array_equal(reader.rows(0, 0, 1), [[-3.0, -1.0, -2.0]])
    path.write_bytes(raw[:-1])
    with pytest.raises(InfercError, match="is truncated"):
        Reader(path)
    path.write_bytes(b"GGUF" + raw)
    with pytest.raises(InfercError, match="has no distributions"):
        Reader(path)
    path.unlink()


def test_divergence_from_a_file(tmp_path):
    tokens, logits = np.arange(6, dtype=np.int32)[None], np.log(np.float32([[1, 1, 2], [1, 1, 2]]))
    with Writer(tmp_path / "f", 6, 3, tokens) as writer:
        writer.add(logits)
    against = Against(Reader(tmp_path / "f"))
    against.watch(0, 0, np.log(np.float32([[1, 1, 2], [2, 1, 1]])), [0, 2])
    found = against.summary()
    assert scored(6) == 2 and found["positions"] == 2 and found["top_1"] == 0.5
    assert found["kl_max"] == pytest.approx(0.25 * np.log(0.5) + 0.5 * np.log(2), abs=1e-4)
    assert found["kl"] == pytest.approx(found["kl_max"] / 2, abs=1e-4)
    assert found["perplexity_ratio"] == pytest.approx(np.exp(np.log(2) / 2), rel=1e-4)


def test_a_model_beside_itself_and_another(folder):
    saved = folder / "fine.logits"
    first = run(folder / "fine.inferc", "-f", folder / "text.txt", "-c", 32, "--save-logits", saved)
    same = run(folder / "fine.inferc", "--kl-reference", saved, "--json", folder / "same.json")
    assert first.splitlines()[-1] in same  # the tokens come from the file
    found = json.loads((folder / "same.json").read_text())
    assert found["top_1"] == 1.0 and abs(found["kl"]) < 1e-4 and found["perplexity_ratio"] == pytest.approx(1, abs=1e-4)
    run(folder / "coarse.inferc", "-f", folder / "text.txt", "--kl-reference", saved, "--json", folder / "other.json")
    other = json.loads((folder / "other.json").read_text())
    assert other["kl"] > 0.001 and other["kl_max"] > other["kl_median"] and other["positions"] == found["positions"]
    assert other["reference_perplexity"] == pytest.approx(found["perplexity"], rel=1e-4)


def test_what_does_not_fit_is_said(folder):
    saved = folder / "some.logits"
    run(folder / "fine.inferc", "-f", folder / "text.txt", "-c", 32, "--save-logits", saved, "--chunks", 2)
    assert len(Reader(saved).tokens) == 2
    with pytest.raises(InfercError, match="was made from another text"):
        run(folder / "fine.inferc", "-f", folder / "other.txt", "--kl-reference", saved)
    with pytest.raises(InfercError, match="give a text with --file"):
        run(folder / "fine.inferc")
    with pytest.raises(InfercError, match="the window must have"):
        run(folder / "fine.inferc", "-f", folder / "text.txt", "-c", 4096, "--save-logits", folder / "none")
    assert not list(folder.glob("none*"))
