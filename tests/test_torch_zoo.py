"""Families of transformers with sizes that vary: exported, compiled, called with other sizes, they agree with torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import inferc

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch.export import Dim  # noqa: E402

from .test_torch_models import Part, random  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_compiler")]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"vocab_size": 99, "max_position_embeddings": 64, **SIZES}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
IMAGE = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32]}
HALVES = {"encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
          "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_model": 32}  # fmt: skip
BATCH, LENGTH = Dim("batch", min=1, max=16), Dim("length", min=2, max=60)
Case = tuple[Part, list[tuple[Any, ...]], tuple[Any, ...]]


def made(name: str, head: str, **settings: Any) -> Any:
    return random(getattr(transformers, name + head)(getattr(transformers, name + "Config")(**settings)))


def ids(batch: int, length: int) -> Any:
    return torch.randint(3, 90, (batch, length))


def text(name: str, head: str = "Model", **settings: Any) -> Case:
    """A model of masked tokens."""
    part = Part(made(name, head, **settings), lambda m, i, a: m(input_ids=i, attention_mask=a)[0])
    mask = torch.cat([torch.ones(2, 9), torch.zeros(2, 3)], 1).long()
    return part, [(ids(2, 12), mask), (ids(3, 17), torch.ones(3, 17).long())], ({0: BATCH, 1: LENGTH},) * 2


def causal(name: str, **settings: Any) -> Case:
    part = Part(made(name, "ForCausalLM", **TEXT, num_key_value_heads=2, **ENDS, **settings),
                lambda m, i: m(input_ids=i, use_cache=False)[0])  # fmt: skip
    return part, [(ids(2, 12),), (ids(1, 17),)], ({0: BATCH, 1: LENGTH},)


def image(name: str, head: str = "Model", **settings: Any) -> Case:
    part = Part(made(name, head, **settings), lambda m, x: m(x)[0])
    return part, [(torch.randn(2, 3, 64, 64),), (torch.randn(3, 3, 64, 64),)], ({0: BATCH},)


def sequences(name: str, head: str, **settings: Any) -> Case:
    part = Part(made(name, head, **settings), lambda m, i, d: m(input_ids=i, decoder_input_ids=d, use_cache=False)[0])
    other = Dim("other", min=2, max=60)
    return part, [(ids(2, 12), ids(2, 7)), (ids(1, 9), ids(1, 11))], ({0: BATCH, 1: LENGTH}, {0: BATCH, 1: other})


def waves(name: str) -> Case:
    part = Part(made(name, "Model", **SIZES, conv_dim=(16, 16, 16), conv_stride=(5, 2, 2), conv_kernel=(10, 3, 3),
                     num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4), lambda m, x: m(x)[0])  # fmt: skip
    samples = Dim("samples", min=800, max=8000)
    return part, [(torch.randn(2, 2000),), (torch.randn(1, 2733),)], ({0: BATCH, 1: samples},)


def detector() -> Case:
    backbone = transformers.ResNetConfig(embedding_size=8, **IMAGE, out_features=["stage4"])
    model = made("Detr", "ForObjectDetection", **HALVES, use_timm_backbone=False, use_pretrained_backbone=False,
                 backbone=None, backbone_config=backbone, num_queries=6, num_labels=5)  # fmt: skip
    part = Part(model, lambda m, x, mask: m(x, pixel_mask=mask).pred_boxes)
    return part, [(torch.randn(2, 3, 64, 64), torch.ones(2, 64, 64).long())], ({}, {})


CASES: dict[str, Callable[[], Case]] = {
    "deberta": lambda: text("Deberta", **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"]),
    "deberta v2": lambda: text("DebertaV2", **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"],
                               position_buckets=8, share_att_key=True, conv_kernel_size=3, conv_act="gelu"),
    "modern bert": lambda: text("ModernBert", **TEXT, **ENDS, cls_token_id=1, sep_token_id=2, local_attention=8),
    "mpnet": lambda: text("MPNet", **TEXT),
    "t5": lambda: sequences("T5", "ForConditionalGeneration", vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2,
                            num_heads=4, decoder_start_token_id=0),
    "bart": lambda: sequences("Bart", "ForConditionalGeneration", **HALVES, **ENDS, vocab_size=99,
                              max_position_embeddings=64, decoder_start_token_id=1),
    "gemma 2": lambda: causal("Gemma2", head_dim=8, sliding_window=8),
    "mixtral": lambda: causal("Mixtral", num_local_experts=4, num_experts_per_tok=2),
    "swin": lambda: image("Swin", image_size=64, patch_size=4, embed_dim=16, depths=[2, 2], num_heads=[2, 4],
                          window_size=4),
    "segformer": lambda: image("Segformer", "ForSemanticSegmentation", **IMAGE, num_attention_heads=[1, 2, 2, 4],
                               decoder_hidden_size=16, num_labels=5),
    "wav2vec2": lambda: waves("Wav2Vec2"),
    "detr": detector,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_families(name: str) -> None:
    part, inputs, dynamic = CASES[name]()
    program = torch.export.export(part, inputs[0], dynamic_shapes={"arguments": dynamic}, strict=False)
    with inferc.compile(program) as function:
        for given in inputs:
            with torch.no_grad():
                expected = part(*given).numpy()
            assert np.abs(function(*(x.numpy() for x in given)) - expected).max() <= 1e-4 * np.abs(expected).max()
