"""Writes a GGUF file of random weights: a model of a real shape to measure, without the real one.

    python benchmarks/random_gguf.py 1b-f16.gguf --type f16
    python benchmarks/random_gguf.py 1b-Q4_K_M.gguf --type Q4_K_M --llama-quantize PATH

The shape is that of Llama 3.2 1B (`--shape`, a row of SHAPES). f32, f16, bf16 and the types that gguf-py quantises
(`GGUF_PY`) need nothing else: every matrix has that type, tensors are written as they are made, and the most memory is
that of the largest. Nor do the types of RANDOM: their blocks are random in every bit but the scale. Any other type is
`llama-quantize`'s (llama.cpp) of an f16 file written on the way, with its own mixture of types. Equal arguments give
equal files. docs/benchmarks.md says which files the suites are run with.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import dequantize, quant_shape_to_byte_shape, quantize

DEVIATION = 0.02  # of the weights: products of a width of 2048 keep about the size of their inputs
VALUES_AT_ONCE = 1 << 22  # values made at a time
CONTROL_TOKENS = 256  # the last ids of the vocabulary
FLOATS = ("f32", "f16", "bf16")
RANDOM = ("iq1_s", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_nl", "mxfp4", "q4_k")
GGUF_PY = (*FLOATS, "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "tq1_0", "tq2_0")


@dataclass(frozen=True)
class Shape:
    """The numbers of a Llama whose head is its embedding table."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    rope_base: float

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and NumPy shapes, in the file's order."""
        kv = self.width // self.heads * self.kv_heads
        yield "token_embd.weight", (self.vocabulary, self.width)
        for i in range(self.layers):
            yield f"blk.{i}.attn_norm.weight", (self.width,)
            yield f"blk.{i}.attn_q.weight", (self.width, self.width)
            yield f"blk.{i}.attn_k.weight", (kv, self.width)
            yield f"blk.{i}.attn_v.weight", (kv, self.width)
            yield f"blk.{i}.attn_output.weight", (self.width, self.width)
            yield f"blk.{i}.ffn_norm.weight", (self.width,)
            yield f"blk.{i}.ffn_gate.weight", (self.feed_forward, self.width)
            yield f"blk.{i}.ffn_up.weight", (self.feed_forward, self.width)
            yield f"blk.{i}.ffn_down.weight", (self.width, self.feed_forward)
        yield "output_norm.weight", (self.width,)


SHAPES = {
    "llama-3.2-1b": Shape(16, 2048, 8192, 32, 8, 128256, 131072, 500000.0),
    "llama-3.1-8b": Shape(32, 4096, 14336, 32, 8, 128256, 131072, 500000.0),
    "llama-3.2-3b": Shape(28, 3072, 8192, 24, 8, 128256, 131072, 500000.0),
    "smollm2-135m": Shape(30, 576, 1536, 9, 3, 49152, 8192, 100000.0),
}


def vocabulary(size: int) -> tuple[list[str], list[int], list[str]]:
    """Tokens, their types, and merges of a byte-level BPE: the shortest strings of bytes, each its parent and a byte.

    The strings in order of length make string n ≥ 256 of string n // 256 - 1 and byte n % 256.
    """
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # GPT-2 writes these as they are
    hidden = [b for b in range(256) if b not in shown]
    byte = {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(hidden)}
    tokens = [byte[b] for b in range(256)]
    merges = []
    for n in range(256, size - CONTROL_TOKENS):
        left, right = tokens[n // 256 - 1], tokens[n % 256]
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    types = [TokenType.NORMAL] * len(tokens) + [TokenType.CONTROL] * CONTROL_TOKENS
    tokens += ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_{i}|>" for i in range(CONTROL_TOKENS - 2))]
    return tokens, [int(t) for t in types], merges


def describe(writer: GGUFWriter, shape: Shape, name: str) -> None:
    """The file's metadata: hyperparameters and tokenizer."""
    head = shape.width // shape.heads
    writer.add_name(name)
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    tokens, types, merges = vocabulary(shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(shape.vocabulary - CONTROL_TOKENS)
    writer.add_eos_token_id(shape.vocabulary - CONTROL_TOKENS + 1)


def random_matrix(rng: np.random.Generator, shape: tuple[int, int], kind: GGMLQuantizationType) -> np.ndarray:
    """Normal values of DEVIATION as `kind`: f32, f16, or bytes uint8[rows, row bytes], made a few rows at a time."""
    rows, width = shape
    if kind.name.lower() in RANDOM:
        return random_blocks(rng, shape, kind)
    native = {GGMLQuantizationType.F32: np.float32, GGMLQuantizationType.F16: np.float16}.get(kind)
    made = np.empty(shape, native) if native else np.empty(quant_shape_to_byte_shape(shape, kind), np.uint8)
    step = max(1, VALUES_AT_ONCE // width)
    for start in range(0, rows, step):
        values = rng.standard_normal((min(step, rows - start), width), np.float32)
        values *= DEVIATION
        made[start : start + step] = values if native else quantize(values, kind)
    return made


def random_blocks(rng: np.random.Generator, shape: tuple[int, int], kind: GGMLQuantizationType) -> np.ndarray:
    """Bytes uint8[rows, row bytes] of DEVIATION whose blocks begin with a scale: an f16, or MXFP4's power of two; with
    Q4_K's follows that of the mins, which lets values be about zero."""
    rows, row = quant_shape_to_byte_shape(shape, kind)
    size = GGML_QUANT_SIZES[kind][1]
    made = np.frombuffer(rng.bytes(rows * row), np.uint8).reshape(rows, -1, size).copy()
    if kind == GGMLQuantizationType.MXFP4:
        made[..., 0] = 120
        return made.reshape(rows, row)
    scales = np.float16([1, 7.5] if kind == GGMLQuantizationType.Q4_K else [1])
    made[..., : scales.nbytes] = scales.view(np.uint8)
    scales *= DEVIATION / dequantize(made[:1].reshape(1, row), kind).std()
    made[..., : scales.nbytes] = scales.view(np.uint8)
    return made.reshape(rows, row)


def write(path: Path, shape: Shape, type: str, seed: int = 0, distinct: int | None = None) -> None:
    """Writes a model whose matrices are all of `type`, one of GGUF_PY or RANDOM, and whose norms are f32 near 1.

    At most `distinct` rows of a matrix differ, and are repeated: of large models, few rows are made in seconds. With 0
    the file has holes in place of all weights, for what reads their types alone.
    """
    kind = GGMLQuantizationType[type.upper()]
    writer = GGUFWriter(path, "llama")
    describe(writer, shape, path.stem)
    mostly = {"f32": "ALL_F32", "mxfp4": "MOSTLY_MXFP4_MOE", "q4_k": "MOSTLY_Q4_K_S"}
    writer.add_file_type(LlamaFileType[mostly.get(type, f"MOSTLY_{type.upper()}")])
    tensors = list(shape.tensors())
    for name, dims in tensors:
        if len(dims) == 1:
            writer.add_tensor_info(name, dims, np.dtype(np.float32), dims[0] * 4)
        elif kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            dtype = np.dtype(np.float32 if type == "f32" else np.float16)
            writer.add_tensor_info(name, dims, dtype, dims[0] * dims[1] * dtype.itemsize)
        else:
            stored = quant_shape_to_byte_shape(dims, kind)
            writer.add_tensor_info(name, stored, np.dtype(np.uint8), stored[0] * stored[1], raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if distinct == 0:
        assert writer.fout is not None
        pad = partial(GGUFWriter.ggml_pad, n=writer.data_alignment)
        sizes = [pad(info.nbytes) for info in writer.tensors[0].values()]
        writer.fout[0].truncate(pad(writer.fout[0].tell()) + sum(sizes))
        writer.close()
        return
    rng = np.random.default_rng(seed)
    for _, dims in tensors:
        if len(dims) == 1:
            data = 1 + rng.standard_normal(dims, np.float32) * np.float32(0.1)
        else:
            made = random_matrix(rng, (min(dims[0], distinct or dims[0]), dims[1]), kind)
            data = made if len(made) == dims[0] else np.resize(made, (dims[0], made.shape[1]))
        writer.write_tensor_data(data)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--type", default="f16", help=f"{', '.join((*GGUF_PY, *RANDOM))}, or one of llama-quantize's")
    parser.add_argument("--shape", default="llama-3.2-1b", choices=SHAPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--llama-quantize", type=Path, help="llama.cpp's program, for its own mixtures of types")
    arguments = parser.parse_args()
    shape, type = SHAPES[arguments.shape], arguments.type.lower()
    if arguments.llama_quantize is None:
        if type not in (*GGUF_PY, *RANDOM):
            sys.exit(f"{arguments.type} is made by llama-quantize: give its path with --llama-quantize")
        write(arguments.output, shape, type, arguments.seed)
        return
    plain = arguments.output.with_suffix(".f16.tmp")
    try:
        write(plain, shape, "f16", arguments.seed)
        subprocess.run([arguments.llama_quantize, plain, arguments.output, type.upper()], check=True)
    finally:
        plain.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
