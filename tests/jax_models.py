"""Small models with random weights, as each library writes them: (function, weights, examples, dynamic, inputs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax import lax

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Model:
    """`function(weights, *arrays)`, examples to compile it with, and arrays to run it on."""

    function: Callable[..., Any]
    weights: Any
    examples: tuple[Any, ...]
    arrays: tuple[np.ndarray, ...]
    dynamic: dict[str, tuple[int, int]] = field(default_factory=dict)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ids(*shape: int, high: int = 30) -> np.ndarray:
    return RNG.integers(0, high, shape).astype(np.int32)


def of_nnx(module: Any, *examples: Any, arrays: tuple[np.ndarray, ...], **rest: Any) -> Model:
    module.eval()
    graph, state = nnx.split(module)
    return Model(lambda state, *x: nnx.merge(graph, state)(*x), state, examples, arrays, **rest)


class Mlp(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first, self.second = nnx.Linear(20, 50, rngs=rngs), nnx.Linear(50, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return jax.nn.log_softmax(self.second(jax.nn.gelu(self.first(x), approximate=False)))


class TransformerBlock(nnx.Module):
    """As in BERT: attention and feed-forward, each with a residual and a norm after it; a mask of padding."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embedding = nnx.Embed(30, 32, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 32, 32, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(32, rngs=rngs) for _ in range(2)])
        self.up, self.down = nnx.Linear(32, 64, rngs=rngs), nnx.Linear(64, 32, rngs=rngs)

    def __call__(self, tokens: Any, real: Any) -> dict[str, Any]:
        x = self.embedding(tokens)
        x = self.norms[0](x + self.attention(x, mask=real[:, None, None, :]))
        x = self.norms[1](x + self.down(jax.nn.gelu(self.up(x))))
        return {"hidden": x, "pooled": jnp.tanh(x[:, 0])}


class Cnn(linen.Module):
    """As in ResNet and MobileNet: convolutions, norms of the batch, depthwise, pooling."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Conv(8, (3, 3), strides=2, use_bias=False)(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
        x = linen.max_pool(x, (3, 3), (2, 2), padding="SAME")
        y = linen.Conv(8, (3, 3), feature_group_count=8)(x)
        y = linen.hard_swish(linen.BatchNorm(use_running_average=True)(y))
        y = y * linen.sigmoid(linen.Dense(8)(y.mean((1, 2), keepdims=True)))
        x = linen.avg_pool(x + y, (2, 2), (2, 2))
        return linen.Dense(5)(linen.GroupNorm(num_groups=2)(x).reshape(x.shape[0], -1))


def cnn() -> Model:
    module, x = Cnn(), f(2, 16, 16, 3)
    weights = jax.tree.map(lambda w: w + 0.1 * jax.random.normal(KEY, w.shape), module.init(KEY, x))
    return Model(module.apply, weights, ("float32[batch, 16, 16, 3]",), (x,), {"batch": (1, 4)})


class Vit(eqx.Module):
    """Patches, a class token, blocks with the norm first; one image, mapped over a batch."""

    patch: eqx.nn.Conv2d
    token: jax.Array
    blocks: list[Any]
    head: eqx.nn.Linear

    def __init__(self, key: Any) -> None:
        keys = jax.random.split(key, 5)
        self.patch = eqx.nn.Conv2d(3, 24, 4, 4, key=keys[0])
        self.token = jax.random.normal(keys[1], (1, 24))
        self.blocks = [(eqx.nn.LayerNorm(24), eqx.nn.MultiheadAttention(3, 24, key=k), eqx.nn.RMSNorm(24),
                        eqx.nn.MLP(24, 24, 48, 1, activation=jax.nn.silu, key=k)) for k in keys[2:4]]  # fmt: skip
        self.head = eqx.nn.Linear(24, 7, key=keys[4])

    def __call__(self, image: Any) -> Any:
        x = jnp.concatenate([self.token, self.patch(image).reshape(24, -1).T])
        for norm, attention, second, mlp in self.blocks:
            h = jax.vmap(norm)(x)
            x = x + attention(h, h, h)
            x = x + jax.vmap(mlp)(jax.vmap(second)(x))
        return self.head(x[0])


def lstm() -> Model:
    """A scan over a dynamic number of steps, its weights read in every one."""
    names = {"x": (12, 64), "h": (16, 64), "b": (64,), "out": (16, 3)}
    weights = {k: 0.3 * f(*shape) for k, shape in names.items()}

    def run(w: Any, steps: Any, state: tuple[Any, Any]) -> Any:
        def step(state: tuple[Any, Any], x: Any) -> Any:
            h, c = state
            i, g, o, u = jnp.split(x @ w["x"] + h @ w["h"] + w["b"], 4, axis=-1)
            c = jax.nn.sigmoid(g) * c + jax.nn.sigmoid(i) * jnp.tanh(u)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h @ w["out"]

        return lax.scan(step, state, steps)

    state = f(2, 16), f(2, 16)
    return Model(run, weights, ("float32[steps, 2, 12]", ("f32[2, 16]", "f32[2, 16]")), (f(9, 2, 12), state),
                 {"steps": (1, 50)})  # fmt: skip


def mixture() -> Model:
    """Two of four experts for each token, by sorted gates."""
    weights = {"gate": f(16, 4), "up": 0.3 * f(4, 16, 24), "down": 0.3 * f(4, 24, 16)}

    def run(w: Any, x: Any) -> Any:
        scores, chosen = lax.top_k(jax.nn.softmax(x @ w["gate"]), 2)
        scores = scores / scores.sum(-1, keepdims=True)
        h = jax.nn.silu(jnp.einsum("td,tedf->tef", x, w["up"][chosen]))
        y = jnp.einsum("tef,tefd->ted", h, w["down"][chosen])
        return jnp.einsum("te,ted->td", scores, y), jnp.zeros(4).at[chosen].add(1.0)

    return Model(run, weights, ("float32[tokens, 16]",), (f(11, 16),), {"tokens": (1, 64)})


def sampling() -> Model:
    """A language model's loop: a while over steps, a draw from the logits in each, a cache that is updated."""
    weights = {"table": f(30, 16), "mix": 0.4 * f(16, 16)}

    def run(w: Any, seed: Any, first: Any) -> Any:
        def more(state: Any) -> Any:
            return (state[0] < 12) & (state[2] != 7)

        def step(state: Any) -> Any:
            n, tokens, last, cache, key = state
            cache = lax.dynamic_update_slice(cache, w["table"][last][None], (n, 0))
            seen = jnp.arange(12) <= n
            p = jax.nn.softmax(jnp.where(seen, cache @ w["table"][last], -jnp.inf))
            logits = jnp.tanh(p @ cache @ w["mix"]) @ w["table"].T
            key, own = jax.random.split(key)
            last = jax.random.categorical(own, logits).astype(jnp.int32)
            return n + 1, tokens.at[n].set(last), last, cache, key

        state = jnp.int32(0), jnp.full(12, -1, jnp.int32), first, jnp.zeros((12, 16)), jax.random.key(seed)
        n, tokens, *_ = lax.while_loop(more, step, state)
        return tokens, n

    return Model(run, weights, ("int32[]", "int32[]"), (np.array(5, np.int32), np.array(3, np.int32)))


def spectrogram() -> Model:
    """Whisper's features: frames of 400 samples, a transform, a filter bank, a logarithm."""
    weights = {"filters": abs(f(20, 201)), "window": np.hanning(400).astype(np.float32)}

    def run(w: Any, samples: Any) -> Any:
        count = (samples.shape[-1] - 400) // 160 + 1
        frames = jax.vmap(lambda i: lax.dynamic_slice(samples, (i * 160,), (400,)))(jnp.arange(count))
        power = jnp.abs(jnp.fft.rfft(frames * w["window"])) ** 2
        logs = jnp.log10(jnp.maximum(power @ w["filters"].T, 1e-10))
        return (jnp.maximum(logs, logs.max() - 8) + 4) / 4

    return Model(run, weights, ("float32[3200]",), (f(3200),))


def convolutional_text() -> Model:
    """As Whisper's encoder begins: convolutions along time, NCH, then a block; half-precision inside."""
    weights = {"a": 0.2 * f(16, 8, 3), "b": 0.2 * f(16, 16, 3), "norm": f(16)}

    def run(w: Any, x: Any) -> Any:
        y = jax.nn.gelu(lax.conv_general_dilated(x, w["a"], (1,), "SAME"), approximate=False)
        y = jax.nn.gelu(lax.conv_general_dilated(y, w["b"], (2,), ((1, 1),)), approximate=False)
        y = jnp.swapaxes(y, 1, 2)
        y = y * lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5) * w["norm"]
        return (y.astype(jnp.bfloat16) * 2).astype(jnp.float32)

    return Model(run, weights, ("float32[2, 8, frames]",), (f(2, 8, 30),), {"frames": (4, 64)})


MODELS: dict[str, Callable[[], Model]] = {
    "nnx_mlp": lambda: of_nnx(Mlp(nnx.Rngs(0)), "float32[batch, 20]", arrays=(f(7, 20),), dynamic={"batch": (1, 64)}),
    "nnx_block": lambda: of_nnx(TransformerBlock(nnx.Rngs(1)), "int32[batch, 9]", "bool[batch, 9]",
                                arrays=(ids(3, 9), np.arange(9) < np.array([[9], [4], [1]])),
                                dynamic={"batch": (1, 8)}),
    "linen_cnn": cnn,
    "equinox_vit": lambda: Model(lambda m, x: jax.vmap(m)(x), Vit(KEY), ("float32[2, 3, 16, 16]",), (f(2, 3, 16, 16),)),
    "lstm": lstm, "mixture": mixture, "sampling": sampling, "spectrogram": spectrogram,
    "convolutional_text": convolutional_text,
}  # fmt: skip
