"""Norms, softmax, activations and attention are found in what torch and ONNX say of models of transformers, as in JAX's
(test_recognise.py)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from inferc.backends.c import target
from inferc.compiler.passes import canonical, fold, recognise
from inferc.ir.graph import Module

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from inferc.compiler.frontends import torch_export  # noqa: E402

from .test_torch_models import SIZES, Part  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
LAYERS = SIZES["num_hidden_layers"]
PARTS = {"exp", "erf", "tanh", "softmax", "rsqrt", "logistic"}  # of what is recognised; none may be left but as said


def found(module: Module) -> Counter[str]:
    """How often each op is in the module after recognition."""
    ir = target.get("native").ir
    for step in (canonical, fold, recognise):
        module = step.run(module, ir)
    return Counter(n.op.name for g in module.entries.values() for n in g.nodes())


def bert(**options: Any) -> tuple[Any, tuple[Any, ...]]:
    config = transformers.BertConfig(vocab_size=99, max_position_embeddings=64, **SIZES, **options)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    return Part(model, lambda m, i, a: m(input_ids=i, attention_mask=a)[0]), (
        torch.randint(0, 99, (2, 12)), torch.ones(2, 12).long())  # fmt: skip


def vit(**options: Any) -> tuple[Any, tuple[Any, ...]]:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **SIZES, **options)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    return Part(model, lambda m, x: m(x)[0]), (torch.randn(2, 3, 32, 32),)


def gpt2(**options: Any) -> tuple[Any, tuple[Any, ...]]:
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=LAYERS, n_head=4, n_positions=64,
                                     bos_token_id=1, eos_token_id=2, **options)  # fmt: skip
    model = transformers.GPT2LMHeadModel(config).eval()
    return Part(model, lambda m, i: m(i, use_cache=False).logits), (torch.randint(0, 99, (2, 12)),)


def llama(**options: Any) -> tuple[Any, tuple[Any, ...]]:
    config = transformers.LlamaConfig(vocab_size=99, max_position_embeddings=64, num_key_value_heads=2, **SIZES,
                                      **options)  # fmt: skip
    model = transformers.LlamaModel(config).eval()
    return Part(model, lambda m, i: m(i, use_cache=False)[0]), (torch.randint(0, 99, (2, 12)),)


EXPECTED = {
    bert: {"attention": LAYERS, "layer_norm": 2 * LAYERS + 1, "gelu": LAYERS},
    vit: {"attention": LAYERS, "layer_norm": 2 * LAYERS + 1, "gelu": LAYERS},
    gpt2: {"attention": LAYERS, "layer_norm": 2 * LAYERS + 1, "gelu_tanh": LAYERS},
    llama: {"attention": LAYERS, "rms_norm": 2 * LAYERS + 1, "gated": LAYERS},  # silu of one, times another
}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("make", EXPECTED, ids=lambda f: f.__name__)
def test_exports_of_torch(make: Any, attention: str) -> None:
    model, inputs = make(attn_implementation=attention)
    ops = found(torch_export.opened(torch.export.export(model, inputs)).build())
    assert {name: ops[name] for name in EXPECTED[make]} == EXPECTED[make]
    assert not PARTS & set(ops), ops


@pytest.mark.slow
@pytest.mark.parametrize("make", EXPECTED, ids=lambda f: f.__name__)
def test_exports_of_onnx(make: Any, tmp_path: Path) -> None:
    """What torch's exporter to ONNX writes."""
    pytest.importorskip("onnxscript")
    onnx_model = pytest.importorskip("inferc.compiler.frontends.onnx_model")
    model, inputs = make(attn_implementation="eager")
    model.eval()
    torch.onnx.export(model, inputs, tmp_path / "m.onnx", dynamo=True, opset_version=20, verbose=False)
    ops = found(onnx_model.load(tmp_path / "m.onnx").build())
    assert {name: ops[name] for name in EXPECTED[make]} == EXPECTED[make]
    assert not PARTS & set(ops), ops
