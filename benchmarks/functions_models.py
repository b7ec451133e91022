"""The models of the function benchmark, each written once over a small set of layers that JAX and torch both have.

`MODELS` says what each takes; `Jax` and `Torch` are the layers. Weights are random and the same on all sides. Images
are [B, H, W, 3] in JAX and [B, 3, H, W] in torch, as their users have them; everything else has equal shapes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from jax import lax

Array = Any


class Weights:
    """Makes a model's random weights where it first asks for them; the layers then get them by name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng, self.arrays = np.random.default_rng(seed), dict[str, np.ndarray]()

    def new(self, name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> str:
        if name not in self.arrays:
            self.arrays[name] = (around + self.rng.standard_normal(shape) * scale).astype(np.float32)
        return name


class Layers:
    """Layers in terms of few primitives; a subclass has those for one library. `p` holds the weights by name."""

    channels = -1

    def __init__(self, p: dict[str, Array], make: Weights | None = None) -> None:
        self.p, self.make = p, make

    def weight(self, name: str, shape: tuple[int, ...], scale: float, around: float = 0.0) -> Array:
        if self.make is not None and name not in self.p:
            self.p[name] = self.array(self.make.arrays[self.make.new(name, shape, scale, around)])
        return self.p[name]

    def linear(self, name: str, x: Array, n: int, bias: bool = True) -> Array:
        y = x @ self.weight(f"{name}.w", (x.shape[-1], n), x.shape[-1] ** -0.5)
        return y + self.weight(f"{name}.b", (n,), 0.02) if bias else y

    def norm(self, name: str, x: Array, eps: float) -> Array:
        n = x.shape[-1]
        return self.layer_norm(x, self.weight(f"{name}.g", (n,), 0.1, 1), self.weight(f"{name}.b", (n,), 0.02), eps)

    def conv(self, name: str, x: Array, n: int, k: int, stride: int = 1, groups: int = 1) -> Array:
        inner = x.shape[self.channels] // groups
        w = self.weight(f"{name}.w", (k, k, inner, n), (k * k * inner) ** -0.5)
        return self.convolution(x, w, stride, k // 2, groups)

    def batch_norm(self, name: str, x: Array) -> Array:
        n = x.shape[self.channels]
        g, b, m = (self.weight(f"{name}.{part}", (n,), 0.05, a) for part, a in (("g", 1.0), ("b", 0.0), ("m", 0.0)))
        v = self.weight(f"{name}.v", (n,), 0.02, 1.0)
        return self.normalise(x, g, b, m, v)

    def heads(self, x: Array, count: int) -> Array:
        b, t, n = x.shape
        return self.swap(x.reshape(b, t, count, n // count), 1, 2)

    def attend(self, name: str, x: Array, other: Array, heads: int, causal: bool = False) -> Array:
        n = x.shape[-1]
        q, k, v = (self.heads(self.linear(f"{name}.{part}", y, n), heads)
                   for part, y in (("q", x), ("k", other), ("v", other)))
        y = self.swap(self.attention(q, k, v, causal), 1, 2).reshape(x.shape)
        return self.linear(f"{name}.o", y, n)


class Jax(Layers):
    """Plain jax.numpy and jax.nn."""

    array = staticmethod(jnp.asarray)
    relu, sigmoid = staticmethod(jax.nn.relu), staticmethod(jax.nn.sigmoid)
    gelu = staticmethod(partial(jax.nn.gelu, approximate=False))
    hardswish, hardsigmoid = staticmethod(jax.nn.hard_swish), staticmethod(jax.nn.hard_sigmoid)
    swap = staticmethod(jnp.swapaxes)

    @staticmethod
    def layer_norm(x: Array, g: Array, b: Array, eps: float) -> Array:
        mean = jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
        return (x - mean) * lax.rsqrt(variance + eps) * g + b

    @staticmethod
    def convolution(x: Array, w: Array, stride: int, pad: int, groups: int) -> Array:
        return lax.conv_general_dilated(x, w, (stride, stride), [(pad, pad)] * 2, feature_group_count=groups,
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))  # fmt: skip

    @staticmethod
    def convolution1(x: Array, w: Array, stride: int) -> Array:
        return lax.conv_general_dilated(x, w, (stride,), [(1, 1)], dimension_numbers=("NWC", "WIO", "NWC"))

    @staticmethod
    def normalise(x: Array, g: Array, b: Array, m: Array, v: Array) -> Array:
        return (x - m) * (g * lax.rsqrt(v + 1e-5)) + b

    @staticmethod
    def max_pool(x: Array) -> Array:
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))

    @staticmethod
    def mean_pool(x: Array, keep: bool) -> Array:
        return jnp.mean(x, (1, 2), keepdims=keep)

    @staticmethod
    def attention(q: Array, k: Array, v: Array, causal: bool) -> Array:
        scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        if causal:
            visible = jnp.tril(jnp.ones((q.shape[2], k.shape[2]), bool))
            scores = jnp.where(visible, scores, -1e30)
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), v)

    @staticmethod
    def patches(x: Array) -> Array:
        return x.reshape(x.shape[0], -1, x.shape[-1])

    @staticmethod
    def frames(x: Array) -> Array:
        return jnp.swapaxes(x, 1, 2)

    @staticmethod
    def cat_token(token: Array, x: Array) -> Array:
        return jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, x.shape[2])), x], 1)

    @staticmethod
    def embed(table: Array, ids: Array) -> Array:
        return jnp.take(table, ids, axis=0)

    def lstm(self, name: str, x: Array, n: int) -> Array:
        b, _, k = x.shape
        w, u = self.weight(f"{name}.w", (k, 4 * n), k**-0.5), self.weight(f"{name}.u", (n, 4 * n), n**-0.5)
        bias = self.weight(f"{name}.b", (4 * n,), 0.02)

        def step(carry: tuple[Array, Array], gates: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = carry
            i, f, g, o = jnp.split(gates + h @ u, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((b, n), jnp.float32)
        _, hs = lax.scan(step, (zero, zero), jnp.swapaxes(x @ w + bias, 0, 1))
        return jnp.swapaxes(hs, 0, 1)


class Torch(Layers):
    """torch.nn.functional."""

    channels = 1
    array = staticmethod(lambda a: torch.from_numpy(np.array(a)))
    relu, gelu, sigmoid = staticmethod(F.relu), staticmethod(F.gelu), staticmethod(torch.sigmoid)
    hardswish, hardsigmoid = staticmethod(F.hardswish), staticmethod(F.hardsigmoid)
    swap = staticmethod(lambda x, a, b: x.transpose(a, b))

    def linear(self, name: str, x: Array, n: int, bias: bool = True) -> Array:
        return F.linear(x, self.p[f"{name}.w"], self.p[f"{name}.b"] if bias else None)

    @staticmethod
    def layer_norm(x: Array, g: Array, b: Array, eps: float) -> Array:
        return F.layer_norm(x, g.shape, g, b, eps)

    @staticmethod
    def convolution(x: Array, w: Array, stride: int, pad: int, groups: int) -> Array:
        return F.conv2d(x, w, None, stride, pad, 1, groups)

    @staticmethod
    def convolution1(x: Array, w: Array, stride: int) -> Array:
        return F.conv1d(x, w, None, stride, 1)

    @staticmethod
    def normalise(x: Array, g: Array, b: Array, m: Array, v: Array) -> Array:
        return F.batch_norm(x, m, v, g, b, False, 0.0, 1e-5)

    @staticmethod
    def max_pool(x: Array) -> Array:
        return F.max_pool2d(x, 3, 2, 1)

    @staticmethod
    def mean_pool(x: Array, keep: bool) -> Array:
        return x.mean((2, 3), keepdim=keep)

    @staticmethod
    def attention(q: Array, k: Array, v: Array, causal: bool) -> Array:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

    @staticmethod
    def patches(x: Array) -> Array:
        return x.flatten(2).transpose(1, 2)

    @staticmethod
    def frames(x: Array) -> Array:
        return x

    @staticmethod
    def cat_token(token: Array, x: Array) -> Array:
        return torch.cat([token.expand(x.shape[0], 1, x.shape[2]), x], 1)

    @staticmethod
    def embed(table: Array, ids: Array) -> Array:
        return F.embedding(ids, table)

    def lstm(self, name: str, x: Array, n: int) -> Array:
        p = self.p
        h = torch.zeros(1, x.shape[0], n, dtype=x.dtype)
        flat = [p[f"{name}.w"], p[f"{name}.u"], p[f"{name}.b"], torch.zeros(4 * n, dtype=x.dtype)]
        return torch.lstm(x, (h, h), flat, True, 1, 0.0, False, False, True)[0]


# ---- the models -----------------------------------------------------------------------------------------------------


def resnet50(o: Layers, x: Array) -> Array:
    def unit(name: str, x: Array, n: int, k: int, stride: int = 1) -> Array:
        return o.batch_norm(f"{name}.bn", o.conv(name, x, n, k, stride))

    x = o.max_pool(o.relu(unit("stem", x, 64, 7, 2)))
    for stage, (count, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(count):
            name, stride = f"{stage}.{block}", 2 if stage and not block else 1
            h = o.relu(unit(f"{name}.a", x, width, 1))
            h = o.relu(unit(f"{name}.b", h, width, 3, stride))
            h = unit(f"{name}.c", h, 4 * width, 1)
            x = o.relu(h + (x if block else unit(f"{name}.d", x, 4 * width, 1, stride)))
    return o.linear("head", o.mean_pool(x, False), 1000)


# kernel, expanded, out, squeeze, hard-swish, stride: table 1 of Howard et al., "Searching for MobileNetV3" (2019)
MOBILENET = (
    (3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1),
    (5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
    (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1),
    (5, 960, 160, 1, 1, 1),
)  # fmt: skip


def mobilenet_v3(o: Layers, x: Array) -> Array:
    def unit(name: str, x: Array, n: int, k: int, stride: int = 1, groups: int = 1) -> Array:
        return o.batch_norm(f"{name}.bn", o.conv(name, x, n, k, stride, groups))

    def bias(name: str, x: Array) -> Array:
        b = o.weight(name, (x.shape[o.channels],), 0.02)
        return x + (b if o.channels == -1 else b[:, None, None])

    x = o.hardswish(unit("stem", x, 16, 3, 2))
    for i, (k, wide, n, squeeze, swish, stride) in enumerate(MOBILENET):
        act, h, narrow = o.hardswish if swish else o.relu, x, x.shape[o.channels]
        if wide != narrow:
            h = act(unit(f"{i}.expand", h, wide, 1))
        h = act(unit(f"{i}.depth", h, wide, k, stride, wide))
        if squeeze:
            s = o.mean_pool(h, True)
            s = o.relu(bias(f"{i}.fc1.b", o.conv(f"{i}.fc1", s, -(-wide // 32) * 8, 1)))
            h = h * o.hardsigmoid(bias(f"{i}.fc2.b", o.conv(f"{i}.fc2", s, wide, 1)))
        h = unit(f"{i}.project", h, n, 1)
        x = x + h if stride == 1 and narrow == n else h
    x = o.mean_pool(o.hardswish(unit("last", x, 960, 1)), False)
    return o.linear("head", o.hardswish(o.linear("wide", x, 1280)), 1000)


def block(o: Layers, name: str, x: Array, heads: int, eps: float, causal: bool = False, memory: Array = None) -> Array:
    """A pre-norm transformer layer."""
    h = o.norm(f"{name}.ln1", x, eps)
    x = x + o.attend(f"{name}.att", h, h, heads, causal)
    if memory is not None:
        x = x + o.attend(f"{name}.cross", o.norm(f"{name}.ln3", x, eps), memory, heads)
    h = o.gelu(o.linear(f"{name}.up", o.norm(f"{name}.ln2", x, eps), 4 * x.shape[-1]))
    return x + o.linear(f"{name}.down", h, x.shape[-1])


def vit_b16(o: Layers, x: Array) -> Array:
    w = o.weight("patch.w", (16, 16, 3, 768), 768**-0.5)
    x = o.patches(o.convolution(x, w, 16, 0, 1)) + o.weight("patch.b", (768,), 0.02)
    x = o.cat_token(o.weight("token", (1, 1, 768), 0.02), x) + o.weight("position", (1, 197, 768), 0.02)
    for i in range(12):
        x = block(o, str(i), x, 12, 1e-6)
    return o.linear("head", o.norm("ln", x, 1e-6)[:, 0], 1000)


def bert(o: Layers, ids: Array, width: int, layers: int, heads: int) -> Array:
    t = ids.shape[1]
    x = o.embed(o.weight("words", (30522, width), 0.5), ids) + o.weight("positions", (512, width), 0.5)[:t]
    x = o.norm("ln", x + o.weight("types", (2, width), 0.5)[0], 1e-12)
    for i in range(layers):
        x = o.norm(f"{i}.ln1", x + o.attend(f"{i}.att", x, x, heads), 1e-12)
        h = o.gelu(o.linear(f"{i}.up", x, 4 * width))
        x = o.norm(f"{i}.ln2", x + o.linear(f"{i}.down", h, width), 1e-12)
    return x


def whisper_encoder(o: Layers, mel: Array) -> Array:
    """Mel spectrogram [B, 80, 3000] -> [B, 1500, 384]."""
    x = o.frames(mel)
    for name, k, stride in (("conv1", 80, 1), ("conv2", 384, 2)):
        x = o.convolution1(x, o.weight(f"{name}.w1", (3, k, 384), (3 * k) ** -0.5), stride)
        b = o.weight(f"{name}.b", (384,), 0.02)
        x = o.gelu(x + (b if o.channels == -1 else b[:, None]))
    x = (x if o.channels == -1 else o.swap(x, 1, 2)) + o.weight("position", (1500, 384), 0.02)
    for i in range(4):
        x = block(o, str(i), x, 6, 1e-5)
    return o.norm("ln", x, 1e-5)


def whisper_decoder(o: Layers, ids: Array, memory: Array) -> Array:
    """Tokens [B, 32] and the encoder's result -> logits of the last [B, 51865]."""
    table = o.weight("words", (51865, 384), 0.05)
    x = o.embed(table, ids) + o.weight("positions", (448, 384), 0.02)[: ids.shape[1]]
    for i in range(4):
        x = block(o, str(i), x, 6, 1e-5, True, memory)
    return o.norm("ln", x, 1e-5)[:, -1] @ table.T


def mlp(o: Layers, x: Array) -> Array:
    x = o.relu(o.linear("0", x, 1024))
    return o.linear("2", o.relu(o.linear("1", x, 1024)), 10)


def lstm(o: Layers, x: Array) -> Array:
    return o.lstm("lstm", x, 512)


# ---- what each takes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """A function of layers and inputs; `inputs` are JAX's shapes after the batch, `ids` how many ids there are."""

    function: Callable[..., Array]
    inputs: tuple[tuple[int, ...], ...]
    ids: int = 0

    def arrays(self, batch: int) -> list[np.ndarray]:
        rng = np.random.default_rng(1)
        shapes = [(batch, *shape) for shape in self.inputs]
        return [rng.integers(0, self.ids, s).astype(np.int32) if self.ids and not i else
                rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)]  # fmt: skip

    def weights(self) -> dict[str, np.ndarray]:
        made = Weights()
        jax.eval_shape(lambda *x: self.function(Jax({}, made), *x), *self.arrays(1))
        return made.arrays

    def jax_function(self) -> Callable[..., Array]:
        """A function (weights, *inputs)."""
        return lambda p, *x: self.function(Jax(p), *x)

    def torch_inputs(self, arrays: list[np.ndarray]) -> list[torch.Tensor]:
        return [torch.from_numpy(np.ascontiguousarray(a.transpose(0, 3, 1, 2)) if a.ndim == 4 else a).to(
            torch.int64 if a.dtype == np.int32 else torch.float32) for a in arrays]  # fmt: skip

    def torch_module(self, weights: dict[str, np.ndarray]) -> torch.nn.Module:
        return TorchModule(self.function, weights)


class TorchModule(torch.nn.Module):
    """The model over torch's layers; weights as torch lays them out: [out, in], [out, in, kernel]."""

    def __init__(self, function: Callable[..., Array], weights: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.function, self.names = function, list(weights)
        for i, (name, w) in enumerate(weights.items()):
            if w.ndim == 4:
                w = w.transpose(3, 2, 0, 1)
            elif name.endswith(".w1"):
                w = w.transpose(2, 1, 0)
            elif name.endswith((".w", ".u")):
                w = w.T
            self.register_buffer(f"w{i}", torch.from_numpy(np.ascontiguousarray(w)))

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        return self.function(Torch({n: getattr(self, f"w{i}") for i, n in enumerate(self.names)}), *x)


MODELS = {
    "ResNet-50": Model(resnet50, ((224, 224, 3),)),
    "MobileNetV3": Model(mobilenet_v3, ((224, 224, 3),)),
    "ViT-B/16": Model(vit_b16, ((224, 224, 3),)),
    "BERT-base": Model(partial(bert, width=768, layers=12, heads=12), ((128,),), 30522),
    "MiniLM": Model(partial(bert, width=384, layers=6, heads=12), ((128,),), 30522),
    "Whisper encoder": Model(whisper_encoder, ((80, 3000),)),
    "Whisper decoder": Model(whisper_decoder, ((32,), (1500, 384)), 51865),
    "MLP": Model(mlp, ((784,),)),
    "LSTM": Model(lstm, ((100, 256),)),
}
