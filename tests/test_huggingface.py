"""Hugging Face folders: transformers' logits, GPTQ and AWQ without loss, rounding to K-quants, tokenizers, errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inferc.compiler.driver import compile_model, open_model, plan_model
from inferc.compiler.frontends import huggingface, language, quantizing, safetensors
from inferc.errors import InfercError
from inferc.ir.interpret import interpret
from inferc.ir.quant import dequantize
from inferc.ir.quant.rounding import ROUNDED, round_to_blocks
from inferc.ir.types import DTYPES
from inferc.runtime.model import load

from .test_end_to_end import assert_same_bits, compiled_logits, expected_logits
from .test_transformers import IDS, MODELS, build

pytestmark = pytest.mark.usefixtures("quick_compiler")

torch = pytest.importorskip("torch")
tokenizers = pytest.importorskip("tokenizers")
save_file = pytest.importorskip("safetensors.numpy").save_file

SHORT = IDS[:20].tolist()
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def edit(folder: Path, **changes: Any) -> Path:
    """config.json with some values replaced, those that are None removed."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def saved(folder: Path, name: str = "llama", **changes: Any) -> Path:
    _, prefix, own = MODELS[name]
    build(prefix, own | changes).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_those_of_transformers(name, tmp_path):
    _, prefix, own = MODELS[name]
    model = build(prefix, own)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor(IDS[None]), use_cache=False).logits[0].numpy()
    source = huggingface.load(tmp_path)
    ours = language.reference_logits(source, IDS.tolist())
    assert np.abs(ours - expected).max() <= 1e-4 * expected.std()


def test_windows_of_some_layers(tmp_path):
    """As of Qwen's, whose configuration says from which layer on, or of each."""
    model = build("Qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1})
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(torch.tensor(IDS[None]), use_cache=False).logits[0].numpy()
    source = huggingface.load(tmp_path)
    assert source.config.local == (False, *(True,) * (source.config.layers - 1))
    ours = language.reference_logits(source, IDS.tolist())
    assert np.abs(ours - expected).max() <= 1e-4 * expected.std()
    assert huggingface.load(edit(tmp_path, layer_types=None)).config == source.config


def test_other_files_beside_the_model(folder, tmp_path):
    """An adapter is no part of it; a head that is missing is said to be."""
    shutil.copytree(folder, tmp_path / "model")
    save_file({"lora_A.weight": np.ones(3, np.float32)}, tmp_path / "model" / "adapter_model.safetensors")
    assert huggingface.load(tmp_path / "model").weights.keys() == huggingface.load(folder).weights.keys()
    tensors = {n: t.array() for n, t in safetensors.read_folder(folder).items() if n != "lm_head.weight"}
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(InfercError, match="lm_head.weight is missing.*tie_word_embeddings"):
        huggingface.load(edit(tmp_path / "model", tie_word_embeddings=False))


def test_bf16_files_in_several_parts_are_read_as_they_are(tmp_path):
    model = build("Llama", {}).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    source = huggingface.load(tmp_path)
    stored = model.state_dict()["model.layers.1.mlp.down_proj.weight"]
    weight = source.weights["blk.1.ffn_down.weight"]
    assert weight.type.dtype.name == "bf16"
    np.testing.assert_array_equal(weight.load(), stored.view(torch.uint16).numpy())
    norm = source.weights["blk.0.attn_norm.weight"]
    assert norm.type.dtype.name == "f32"
    np.testing.assert_array_equal(norm.load(), model.model.layers[0].input_layernorm.weight.float().detach().numpy())


def pack(values: np.ndarray, bits: int, order: tuple[int, ...] | None = None) -> np.ndarray:
    """Integers [..., n] → int32 [..., n * bits / 32], the first in the lowest bits, or as the order says."""
    count = 32 // bits
    groups = values.reshape(*values.shape[:-1], -1, count).astype(np.uint64)
    words = np.zeros(groups.shape[:-1], np.uint64)
    for i in range(count):
        words |= groups[..., order[i] if order else i] << np.uint64(i * bits)
    return words.astype(np.uint32).view(np.int32)


SCHEMES: dict[str, dict[str, Any]] = {
    "gptq": {"method": "gptq", "group": 32},
    "gptq-v2": {"method": "gptq", "group": 32, "format": "gptq_v2"},
    "gptq-symmetric": {"method": "gptq", "group": 32, "symmetric": True},
    "gptq-act-order": {"method": "gptq", "group": 32, "act_order": True},
    "gptq-8-bit": {"method": "gptq", "group": 64, "symmetric": True, "bits": 8},
    "awq": {"method": "awq", "group": 32},
    "awq-128": {"method": "awq", "group": 128, "wide": True},
    "gptq-128": {"method": "gptq", "group": 128, "symmetric": True, "wide": True, "act_order": True},
}  # fmt: skip


def quantised_folder(
    folder: Path, method: str, group: int, bits: int = 4, symmetric: bool = False, act_order: bool = False,
    wide: bool = False, format: str = "gptq",
) -> dict[str, np.ndarray]:  # fmt: skip
    """A Llama whose linears are random integers in groups, and the matrices [N, K] that they mean."""
    saved(folder, "llama", **({"hidden_size": 128, "intermediate_size": 256} if wide else {"intermediate_size": 128}))
    rng = np.random.default_rng(5)
    tensors = {n: t.array().copy() for n, t in safetensors.read_folder(folder).items()}
    meant: dict[str, np.ndarray] = {}
    for name in [n for n in tensors if n.endswith("_proj.weight")]:
        outputs, inputs = tensors.pop(name).shape
        groups = inputs // group
        q = rng.integers(0, 1 << bits, (inputs, outputs))
        zero = np.full((groups, outputs), 1 << (bits - 1))
        if not symmetric:
            zero = rng.integers(1 if format == "gptq" else 0, 1 << bits, (groups, outputs))
        scale = (rng.uniform(0.5, 1.5, (groups, outputs)) / (8 << (bits - 4)) / np.sqrt(inputs)).astype(np.float16)
        of = np.arange(inputs) // group
        if act_order:
            of = rng.permutation(of)
        meant[name] = (scale[of].astype(np.float32) * (q - zero[of]).astype(np.float32)).T
        base = name.removesuffix(".weight")
        if method == "awq":
            tensors |= {f"{base}.qweight": pack(q, 4, AWQ_ORDER), f"{base}.qzeros": pack(zero, 4, AWQ_ORDER)}
        else:
            stored = zero - 1 if format == "gptq" else zero
            tensors |= {f"{base}.qweight": pack(q.T, bits).T.copy(), f"{base}.qzeros": pack(stored, bits),
                        f"{base}.g_idx": of.astype(np.int32)}  # fmt: skip
        tensors[f"{base}.scales"] = scale
    save_file(tensors, folder / "model.safetensors")
    own = {"version": "gemm"} if method == "awq" else {"checkpoint_format": format}
    edit(folder, quantization_config={"quant_method": method, "bits": bits, "group_size": group, **own})
    return meant


@pytest.mark.parametrize("name", SCHEMES)
def test_integers_in_groups_are_read_without_loss(name, tmp_path):
    meant = quantised_folder(tmp_path / "packed", **SCHEMES[name])
    source = huggingface.load(tmp_path / "packed")
    gathered = []
    for i in range(2):
        for ours, theirs in (("attn_q", "self_attn.q_proj"), ("ffn_down", "mlp.down_proj")):
            weight = source.weights[f"blk.{i}.{ours}.weight"]
            expected = meant[f"model.layers.{i}.{theirs}.weight"]
            order = source.weights.get(f"blk.{i}.{ours}.order")
            gathered += [ours] if order else []
            assert weight.type.dtype.is_block
            expected = expected if order is None else expected[:, order.load()]
            np.testing.assert_array_equal(dequantize(weight.type.dtype, weight.load(), expected.shape), expected)
    several = {"gptq-act-order": ["attn_q", "ffn_down"], "gptq-128": ["ffn_down"]}  # groups, so that there is an order
    assert gathered == several.get(name, []) * 2


@pytest.mark.parametrize("name", ["gptq-act-order", "awq-128", "gptq-128"])
def test_integers_in_groups_run(name, tmp_path):
    """The plain model of what they mean has the same logits, and C has the interpreter's bits."""
    meant = quantised_folder(tmp_path / "packed", **SCHEMES[name])
    dense = {n: t.array().copy() for n, t in safetensors.read_folder(tmp_path / "packed").items()
             if not n.endswith(("qweight", "qzeros", "scales", "g_idx"))}  # fmt: skip
    (tmp_path / "dense").mkdir()
    save_file(dense | {n: w.copy() for n, w in meant.items()}, tmp_path / "dense" / "model.safetensors")
    (tmp_path / "dense" / "config.json").write_text((tmp_path / "packed" / "config.json").read_text())
    edit(tmp_path / "dense", quantization_config=None)
    expected = language.reference_logits(huggingface.load(tmp_path / "dense"), SHORT)
    ours = language.reference_logits(huggingface.load(tmp_path / "packed"), SHORT)
    assert np.abs(ours - expected).max() <= 1e-4 * expected.std()
    artifact = tmp_path / "packed.inferc"
    compile_model(str(tmp_path / "packed"), artifact, chunk=32)
    plan = plan_model(tmp_path / "packed", chunk=32)
    assert_same_bits(compiled_logits(artifact, SHORT), expected_logits(plan, SHORT))


@pytest.mark.parametrize("dtype", ROUNDED)
def test_rounding_to_nearest(dtype):
    """As near as the format's steps allow, exact on what it holds, zero stays zero."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((8, 512)).astype(np.float32)
    x[3] = 0
    raw = round_to_blocks(dtype, x)
    y = dequantize(DTYPES[dtype], raw, x.shape)
    groups = 16 if dtype in ("q2_k", "q3_k", "q6_k") else 32
    reach = np.abs(x).reshape(-1, groups).max(-1)
    step = {"q2_k": 2 / 3, "q3_k": 1 / 4, "q4_k": 2 / 15, "q5_k": 2 / 31, "q6_k": 1 / 32, "q8_0": 1 / 250}[dtype]
    assert (np.abs(x - y).reshape(-1, groups).max(-1) <= reach.max() * step).all()
    assert not y[3].any()
    best = np.sqrt(np.mean((x - y) ** 2))
    assert best < {"q2_k": 0.34, "q3_k": 0.16, "q4_k": 0.08, "q5_k": 0.04, "q6_k": 0.02, "q8_0": 0.01}[dtype]
    with pytest.raises(ValueError, match="cannot be rounded"):
        round_to_blocks(dtype, x[:, :16])


@pytest.mark.parametrize("name", ["q4_0", "q4_k", "q8_0"])
def test_quant(name, tmp_path):
    """Matrices take the format, or the one for rows that do not fit it; logits stay near."""
    saved(tmp_path, "llama", hidden_size=256, intermediate_size=288)
    source, plain = open_model(tmp_path, name), open_model(tmp_path)
    types = {n.split(".", 2)[-1]: w.type.dtype.name for n, w in source.weights.items()}
    assert types["attn_q.weight"] == name and types["attn_norm.weight"] == "f32"
    assert types["ffn_down.weight"] == quantizing.QUANTS[name][0]
    assert types["token_embd.weight" if "token_embd.weight" in types else "weight"] == quantizing.QUANTS[name][1]
    exact, rounded = (language.reference_logits(s, SHORT) for s in (plain, source))
    error = np.abs(rounded - exact).std() / exact.std()
    assert 1e-4 < error < (0.02 if name == "q8_0" else 0.6)
    with pytest.raises(InfercError, match="no quantisation 'q9'"):
        open_model(tmp_path, "q9")


def test_tokenizer_and_chat(tmp_path):
    saved(tmp_path, "llama")
    pieces = ["<s>", "</s>", "<|im_end|>", *(chr(c) for c in range(33, 127)), "Ġ", "he", "ll", "hell"]
    model = tokenizers.models.BPE({p: i for i, p in enumerate(pieces)}, [("h", "e"), ("l", "l"), ("he", "ll")])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<|im_end|>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages[0].content }}!"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1]}))
    compile_model(str(tmp_path), tmp_path / "m.inferc", chunk=32)
    with load(tmp_path / "m.inferc") as loaded:
        assert loaded.tokenize("hello hell") == tokenizer.encode("hello hell").ids
        assert loaded.tokenizer.eos_ids == (1, 2)
        read = loaded.artifact.manifest["source"]
        assert read["file"] == tmp_path.name
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(read["files"])
        assert isinstance(loaded.generate("hello", max_tokens=3), str)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "model type": ({"model_type": "mamba"}, "model type 'mamba' is not supported"),
    "activation": ({"hidden_act": "relu"}, "activation 'relu' is not supported"),
    "layers": ({"num_hidden_layers": 3}, r"blk.2.attn_norm.weight \[64\] is missing"),
    "fewer layers": ({"num_hidden_layers": 1}, "no part of"),
    "width": ({"intermediate_size": 128}, r"ffn_gate.weight is \[96, 64\], config.json makes it \[128, 64\]"),
    "rope": ({"rope_parameters": {"rope_type": "longrope"}}, "rope of type 'longrope'"),
    "quantised": ({"quantization_config": {"quant_method": "fp8"}}, "quantised by 'fp8'"),
    "missing size": ({"hidden_size": None}, "embedding_length is missing"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("case", BAD)
def test_bad_configurations(case, folder, tmp_path):
    changes, message = BAD[case]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InfercError, match=message) as raised:
        huggingface.load(edit(tmp_path, **changes))
    assert "\n" not in str(raised.value)


def test_bad_files(folder, tmp_path):
    with pytest.raises(InfercError, match="config.json: cannot be opened"):
        huggingface.load(tmp_path)
    data = (folder / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    rng = np.random.default_rng(0)
    for cut in (0, 4, 8, 100, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(InfercError, match="truncated|damaged"):
            safetensors.read(path)
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(0, 1500, 3):
            changed[at] = rng.integers(0, 256)
        path.write_bytes(changed)
        try:
            for tensor in safetensors.read(path).values():
                assert tensor.array().shape == tensor.shape
        except InfercError as error:
            assert "\n" not in str(error)


def test_interpreter_reads_the_step(folder):
    """The module of a folder is the same step as any other: the interpreter gives the reference's logits."""
    source = huggingface.load(folder)
    module = source.build(128, len(SHORT))
    state = {n.attr("name"): np.zeros((1, *n.types[0].shape[1:]), np.float32)
             for n in module.entries["step"].inputs_of("state")}  # fmt: skip
    positions = np.arange(len(SHORT), dtype=np.int32)
    inputs = {"tokens": np.array(SHORT, np.int32), "sequence": 0 * positions, "position": positions, "rows": positions}
    expected = language.reference_logits(source, SHORT)
    assert np.abs(interpret(module, {**inputs, **state})["logits"] - expected).max() <= 1e-4 * expected.std()
