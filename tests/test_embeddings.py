"""Language models compiled to give embeddings: the bits, the C interface, Python, the program, what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from inferc.backends.c import target as c_target
from inferc.backends.c import toolchain
from inferc.compiler import checking
from inferc.compiler.driver import compile_model, open_model, plan_model
from inferc.compiler.frontends.language import reference
from inferc.errors import InfercError
from inferc.runtime.model import Model, load

from .test_end_to_end import CHUNK, IDS, assert_same_bits, expected_logits
from .tiny_models import VOCABULARY, write_model

HOST = [t.name for t in c_target.supported()]
WIDTH = 64
TEXT = "on the there"

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", "q8_0", tokenizer="bpe")


@pytest.fixture(scope="module")
def model(gguf: Path, quick_compiler: object) -> Iterator[Model]:
    path = gguf.with_name("e.inferc")
    compile_model(str(gguf), path, target=HOST[-1], chunk=CHUNK, embeddings=True)
    with load(path, threads=2) as opened:
        yield opened


@pytest.mark.parametrize("name", ["llama", "gemma2"])  # an own head, and a tied one with a cap on the logits
def test_bits_are_the_interpreters_on_any_thread_count(name: str, tmp_path: Path) -> None:
    path = write_model(tmp_path / "tiny.gguf", name, "q4_0", tokenizer="bpe")
    plan = plan_model(path, chunk=CHUNK, embeddings=True)
    expected = expected_logits(plan, IDS)
    assert expected.shape == (len(IDS), WIDTH) and np.isfinite(expected).all() and expected.std() > 1e-3
    for target in ("generic", HOST[-1]):
        compile_model(str(path), tmp_path / "e.inferc", target=target, chunk=CHUNK, embeddings=True)
        for threads in (1, 3):
            with load(tmp_path / "e.inferc", threads) as model:
                assert_same_bits(model.embeddings(IDS), expected)


def test_embeddings_are_what_the_head_reads(model: Model, gguf: Path) -> None:
    """The head, which tells all of them apart, makes of them the logits of the model in plain JAX."""
    source = open_model(gguf)
    logits, weights = reference(source, len(IDS))
    rows = np.arange(len(IDS), dtype=np.int32)
    found = model.embeddings(IDS)
    from_head = found @ weights["output.weight"].T
    wanted = np.asarray(jax.jit(logits)(weights, np.array(IDS, np.int32), rows))
    assert np.linalg.matrix_rank(weights["output.weight"]) == WIDTH
    assert np.abs(from_head - wanted).mean() < 0.02 * wanted.std()  # activations are rounded to int8


def test_embed(model: Model) -> None:
    ids = model.tokenize(TEXT)
    states = model.embeddings(ids)
    mean, last = states.mean(0, dtype=np.float64), states[-1]
    assert model.output == "embeddings" and (model.output_width, model.vocab_size) == (WIDTH, VOCABULARY)
    assert_same_bits(model.embed(TEXT, pooling="last", normalize=False), last)
    np.testing.assert_allclose(model.embed(TEXT, normalize=False), mean, rtol=1e-6)
    np.testing.assert_allclose(model.embed(TEXT), mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-7)
    assert_same_bits(model.embed(ids), model.embed(TEXT))
    several = model.embed([TEXT, "an is", TEXT])
    assert several.shape == (3, WIDTH) and several.dtype == np.float32
    assert_same_bits(several[0], several[2])
    assert np.abs(several[0] - several[1]).max() > 1e-3
    assert model.embed([]).shape == (0, WIDTH)
    longer = (ids * 20)[:40]  # more than a chunk
    np.testing.assert_allclose(model.embed(longer, normalize=False), model.embeddings(longer).mean(0), rtol=1e-4,
                               atol=1e-6)  # fmt: skip
    with pytest.raises(InfercError, match="give one kind"):
        model.embed(["the", 3])
    with pytest.raises(InfercError, match="no pooling 'max': choose one of mean, last"):
        model.embed(TEXT, pooling="max")


def test_each_model_gives_one_thing(model: Model, gguf: Path, tmp_path: Path) -> None:
    for call in (lambda: model.logits(IDS), lambda: model.generate(TEXT), lambda: next(model.logits_from(IDS, 0)),
                 lambda: model.chat("the")):  # fmt: skip
        with pytest.raises(InfercError, match="gives embeddings, not logits: compile the model without"):
            call()
    compile_model(str(gguf), tmp_path / "l.inferc", target=HOST[-1], chunk=CHUNK)
    with load(tmp_path / "l.inferc") as other, pytest.raises(InfercError, match="gives logits, not embeddings"):
        other.embed(TEXT)


def test_the_header_and_the_manifest_say_so(model: Model) -> None:
    artifact = model.artifact
    header = artifact.read("c/model.h").decode()
    assert f"MODEL_OUTPUT_WIDTH = {WIDTH}," in header and f"MODEL_VOCAB_SIZE = {VOCABULARY}," in header
    assert "float *embeddings;" in header
    for absent in ("float *logits", "model_sample", "model_sampling"):
        assert absent not in header
    manifest = artifact.manifest
    assert (manifest["output"], manifest["output_width"], manifest["vocab_size"]) == ("embeddings", WIDTH, VOCABULARY)
    assert len(manifest["golden"]) == 3 and "output.weight" not in {t["name"] for t in manifest["tensors"]}
    states = model.embeddings(manifest["golden"][2]["ids"])
    assert manifest["golden"][2]["embeddings"] == [float(x) for x in states[-1, :8]]
    assert any("3 golden prompts" in line for line in checking.verify(artifact.path))


def test_what_cannot_give_embeddings_is_refused(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InfercError, match="given by the backend c, in all forms but wasm"):
        plan_model(gguf, backend="xla", embeddings=True)
    with pytest.raises(InfercError, match="given by the backend c, in all forms but wasm"):
        plan_model(gguf, target="wasm32", emit="wasm", embeddings=True)
    function = tmp_path / "f.py"
    function.write_text('import inferc\n\nf = inferc.function(lambda x: x + x, "float32[4]")\n')
    with pytest.raises(InfercError, match="only language models can be asked for embeddings"):
        plan_model(Path(f"{function}:f"), embeddings=True)


C_PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "model.h"

int main(int argc, char **argv) {
  static _Alignas(64) char scratch[1 << 16], memory[1 << 22], workspace[1 << 22];
  static float rows[MODEL_MAX_TOKENS][MODEL_OUTPUT_WIDTH], mean[MODEL_OUTPUT_WIDTH];
  const size_t bytes = strlen(argv[argc - 1]);
  int32_t ids[MODEL_MAX_TOKENS];
  size_t found;
  model_model *model;
  model_session *session;
  const model_open_options options = {.size = sizeof options};
  if (model_open(&options, &model)) return 1;
  if (model_tokenize(model, argv[argc - 1], bytes, 0, scratch, sizeof scratch, ids, MODEL_MAX_TOKENS, &found)) return 2;
  if (model_session_init(model, memory, sizeof memory, &session)) return 3;
  const int32_t count = (int32_t)found;
  model_item item = {session, ids, count, count, rows[0]};
  if (model_eval(model, workspace, sizeof workspace, &item, 1)) return 4;
  for (int32_t t = 0; t < count; t++)
    for (int32_t i = 0; i < MODEL_OUTPUT_WIDTH; i++) mean[i] += rows[t][i] / (float)count;
  const model_info *facts = model_describe(model);
  printf("%s %d %d\\n", facts->output, (int)facts->output_width, (int)facts->vocab_size);
  for (int32_t i = 0; i < MODEL_OUTPUT_WIDTH; i++) printf("%.9g ", (double)mean[i]);
  model_close(model);
  return 0;
}
"""


def test_a_c_program_and_the_program(model: Model, gguf: Path, tmp_path: Path) -> None:
    """The example of the header, and `--emit exe`, give what Python gives."""
    folder = tmp_path / "c"
    folder.mkdir()
    for form, name in (("a", "libmodel.a"), ("exe", "program")):
        compile_model(str(gguf), folder / name, emit=form, target=HOST[-1], chunk=CHUNK, embeddings=True)
    (folder / "main.c").write_text(C_PROGRAM)
    strict = ("-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I.")
    subprocess.run([*toolchain.find_compiler(), *strict, "main.c", "libmodel.a", "-o", "main", *toolchain.LIBRARIES],
                   check=True, cwd=folder)  # fmt: skip
    mean = model.embed(TEXT, normalize=False)

    def printed(*command: str, given: str = "") -> list[str]:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, input=given)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    facts, numbers = printed("./main", TEXT)
    assert facts == f"embeddings {WIDTH} {VOCABULARY}"
    np.testing.assert_allclose(np.array(numbers.split(), float), mean, rtol=1e-5, atol=1e-6)
    (line,) = printed("./program", "-p", TEXT)
    np.testing.assert_allclose(np.array(line.split(), float), model.embed(TEXT), rtol=1e-5, atol=1e-6)
    (line,) = printed("./program", "-p", TEXT, "--last", "--raw")
    assert_same_bits(np.array(line.split(), np.float32), model.embed(TEXT, pooling="last", normalize=False))
    long = " ".join(["the", "an"] * 12)
    lines = printed("./program", given=f"{TEXT}\n{long}\n")
    assert len(lines) == 2
    np.testing.assert_allclose(np.array(lines[1].split(), float), model.embed(long), rtol=1e-5, atol=1e-6)
    assert any(f"embeddings, {WIDTH} floats" in line for line in printed("./program", "--info"))
