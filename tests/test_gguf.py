"""GGUF files as they should not be: every defect is one line that names the file, the cause and the remedy."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf as gguf_py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferc.compiler.frontends import gguf, gguf_tokenizer, language
from inferc.errors import InfercError
from tests.tiny_models import MODELS, VOCABULARY, write_model

SMALL = {"layers": 1, "width": 32, "types": "q8_0"}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "model.gguf"


def refuses(path: Path, *words: str) -> None:
    """Loading fails with one line that has the file's name and these words."""
    with pytest.raises(InfercError) as caught:
        gguf.load(path)
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    for word in words:
        assert word in message


# --- Reading ---


@pytest.mark.parametrize("model", MODELS)
def test_reads_what_was_written(model, path):
    source = gguf.load(write_model(path, model))
    config = source.config
    assert (source.name, source.architecture) == (f"tiny {model}", MODELS[model][0])
    assert (config.layers, config.width, config.heads, config.kv_heads) == (2, 64, 4, 2)
    assert config.vocabulary == VOCABULARY and config.context == 128
    reader = {t.name: t for t in gguf_py.GGUFReader(path).tensors}
    assert source.weights.keys() == reader.keys() - {"rope_freqs.weight"}
    for name, weight in source.weights.items():
        assert weight.type.shape == tuple(reversed(reader[name].shape.tolist()))
        assert np.array_equal(weight.load(), reader[name].data)


def test_metadata_equal_what_gguf_py_reads(path):
    metadata = gguf.load(write_model(path, "gemma3")).metadata
    fields = gguf_py.GGUFReader(path).fields
    assert set(metadata) == {key for key in fields if not key.startswith("GGUF.")}
    for key in metadata:
        assert metadata[key] == fields[key].contents()


def test_weights_are_views_of_the_file(path):
    source = gguf.load(write_model(path, "llama", {"attn_v": "bf16", "ffn_up": "f16", "": "q4_0"}))
    for name, kind in (("attn_q", np.uint8), ("attn_v", np.uint16), ("ffn_up", np.float16), ("attn_norm", np.float32)):
        array = source.weights[f"blk.0.{name}.weight"].load()
        assert array.dtype == kind
        while not isinstance(array, np.memmap) or isinstance(array.base, np.ndarray):
            array = array.base
        assert isinstance(array, np.memmap)


def test_a_number_per_layer_is_taken_where_layers_agree(path):
    assert gguf.load(write_model(path, metadata={"attention.head_count_kv": [2, 2]})).config.kv_heads == 2
    refuses(write_model(path, metadata={"attention.head_count_kv": [2, 1]}), "attention.head_count_kv", "[2, 1]")


def test_window_patterns(path):
    """A period, flags per layer, or the architecture's own default."""
    for pattern, local in ((2, (True, False, True)), (3, (True, True, False)), (None, (True, True, True))):
        write_model(path, "gemma3", layers=3, metadata={"attention.sliding_window_pattern": pattern})
        assert gguf.load(path).config.local == local
    flags = {"attention.sliding_window_pattern": [False, True, False]}
    assert gguf.load(write_model(path, "gemma3", layers=3, metadata=flags)).config.local == (False, True, False)
    refuses(write_model(path, "gemma3", layers=2, metadata=flags), "sliding_window_pattern", "2 flags")


# --- What contradicts itself ---


def test_no_model(path, tmp_path):
    refuses(path, "No such file", ".gguf")
    refuses(tmp_path, "directory")
    path.write_bytes(b"")
    refuses(path, "not a GGUF file")
    path.write_bytes(b"PK\3\4" + bytes(100))
    refuses(path, "not a GGUF file", ".gguf")
    for name, remedy in (("m.py", "FILE.py:NAME"), ("m.safetensors", "the folder"), ("m.pth", "torch.export.save")):
        (tmp_path / name).write_bytes(b"0" * 30)
        refuses(tmp_path / name, "not a GGUF file", remedy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metadata": {"general.architecture": "mamba"}}, ("'mamba'", "gemma3, llama, qwen2")),
        ({"metadata": {"block_count": 3}}, ("blk.2.attn_norm.weight", "missing")),
        ({"metadata": {"block_count": 1}}, ("blk.1.", "no part of the architecture")),
        ({"metadata": {"block_count": 4_000_000_000}}, ("block_count", "1 to 4096")),
        ({"metadata": {"block_count": None}}, ("llama.block_count", "missing")),
        ({"metadata": {"block_count": "two"}}, ("llama.block_count", "'two'")),
        ({"metadata": {"embedding_length": 96}}, ("token_embd.weight", "[320, 64]", "[320, 96]")),
        ({"metadata": {"feed_forward_length": 64}}, ("blk.0.ffn_gate.weight", "[128, 64]", "[64, 64]")),
        ({"metadata": {"attention.head_count": 0}}, ("attention.head_count", "is 0")),
        ({"metadata": {"attention.head_count_kv": 3}}, ("no multiple", "3 key-value heads")),
        ({"metadata": {"attention.head_count_kv": 4}}, ("blk.0.attn_k.weight",)),
        ({"metadata": {"attention.layer_norm_rms_epsilon": float("nan")}}, ("epsilon", "finite")),
        ({"metadata": {"rope.dimension_count": 7}}, ("rope.dimension_count", "even")),
        ({"metadata": {"rope.dimension_count": 32}}, ("rope.dimension_count", "2 to 16")),
        ({"metadata": {"rope.freq_base": 0.0}}, ("rope.freq_base",)),
        ({"metadata": {"rope.scaling.type": "longrope"}}, ("'longrope'", "linear and yarn")),
        ({"metadata": {"expert_count": 8}}, ("mixture-of-experts", "dense")),
        ({"metadata": {"split.count": 2}}, ("split", "merge")),
        ({"metadata": {"tokenizer.ggml.tokens": ["a", "b"]}}, ("2 tokens", "320 rows")),
        ({"drop": ("token_embd.weight",)}, ("token_embd.weight", "missing")),
        ({"drop": ("blk.1.ffn_up.weight",)}, ("blk.1.ffn_up.weight", "missing")),
        ({"model": "qwen2", "drop": ("blk.0.attn_k.bias",)}, ("blk.0.attn_k.bias", "missing")),
    ],
)
def test_metadata_and_tensors_that_contradict(change, words, path):
    refuses(write_model(path, **change), *words)


def test_a_tensor_of_no_weight_type(path):
    write_model(path)
    data = path.read_bytes()
    at = data.index(b"blk.0.attn_q.weight") + len(b"blk.0.attn_q.weight") + 4 + 16
    path.write_bytes(data[:at] + struct.pack("<I", int(gguf_py.GGMLQuantizationType.I32)) + data[at + 4 :])
    refuses(path, "blk.0.attn_q.weight", "I32")


# --- What is cut, corrupt, or lies ---


def patched(path: Path, at: int, form: str, value: int) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + form, data, at, value)
    path.write_bytes(data)
    return path


def after(path: Path, text: bytes) -> int:
    return path.read_bytes().index(text) + len(text)


def test_every_truncation_is_seen(path):
    data = write_model(path, **SMALL).read_bytes()
    for size in [*range(4, 64), *range(64, len(data), 997), len(data) - 1]:
        path.write_bytes(data[:size])
        refuses(path)


HUGE = 1 << 60
LIES = {
    "version": (lambda p: 4, "I", 1, "version 1"),
    "byte order": (lambda p: 4, "I", 3 << 24, "big-endian"),
    "tensor count": (lambda p: 8, "Q", HUGE, "cannot fit"),
    "more tensors": (lambda p: 8, "Q", 40, ""),
    "key count": (lambda p: 16, "Q", HUGE, "cannot fit"),
    "more keys": (lambda p: 16, "Q", 60, ""),
    "key length": (lambda p: 24, "Q", HUGE, "metadata key 0"),
    "key length at most": (lambda p: 24, "Q", 70000, "65535"),
    "text length": (lambda p: after(p, b"general.name") + 4, "Q", HUGE, "general.name"),
    "value type": (lambda p: after(p, b"general.name"), "I", 77, "unknown type 77"),
    "array length": (lambda p: after(p, b"tokenizer.ggml.tokens") + 8, "Q", HUGE, "tokenizer.ggml.tokens"),
    "array of arrays": (lambda p: after(p, b"tokenizer.ggml.tokens") + 4, "I", 9, "array of type 9"),
    "number array length": (lambda p: after(p, b"tokenizer.ggml.token_type") + 8, "Q", HUGE, "token_type"),
    "flag": (lambda p: after(p, b"tokenizer.ggml.add_bos_token") + 4, "B", 7, "0 or 1"),
    "tensor name length": (lambda p: after(p, b"output_norm.weight") - 26, "Q", HUGE, "tensor 1"),
    "rank": (lambda p: after(p, b"output_norm.weight"), "I", 9, "9 dimensions"),
    "no extent": (lambda p: after(p, b"output_norm.weight") + 4, "Q", 0, "[0]"),
    "extent": (lambda p: after(p, b"output_norm.weight") + 4, "Q", HUGE, "output_norm.weight"),
    "type": (lambda p: after(p, b"output_norm.weight") + 12, "I", 200, "unknown type 200"),
    "offset": (lambda p: after(p, b"output_norm.weight") + 16, "Q", HUGE, "output_norm.weight"),
    "alignment of offset": (lambda p: after(p, b"output_norm.weight") + 16, "Q", 4, "alignment"),
    "overlap": (lambda p: after(p, b"output_norm.weight") + 16, "Q", 0, "overlap"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie, path):
    place, form, value, word = LIES[lie]
    write_model(path, **SMALL)
    refuses(patched(path, place(path), form, value), word)


def test_names_said_twice(path):
    data = write_model(path, **SMALL).read_bytes()
    path.write_bytes(data.replace(b"blk.0.attn_k.weight", b"blk.0.attn_q.weight"))
    refuses(path, "blk.0.attn_q.weight", "repeated")
    path.write_bytes(data.replace(b"tokenizer.ggml.eos_token_id", b"tokenizer.ggml.bos_token_id"))
    refuses(path, "tokenizer.ggml.bos_token_id", "repeated")


# --- What nobody thought of ---

INTERESTING = (0, 1, 2, 7, 8, 9, 31, 127, 255, 256, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, (1 << 64) - 1)
MUTATIONS = 3000


@st.composite
def mutations(draw, size: int, header: int):
    """Edits of a file: (kind, place, value), most of them in the header."""
    place = st.one_of(st.integers(0, header - 1), st.integers(0, header - 1), st.integers(0, size - 1))
    value = st.one_of(st.integers(0, 255), st.sampled_from(INTERESTING))
    kind = st.sampled_from(("byte", "u32", "u64", "insert", "remove", "swap", "cut"))
    return draw(st.lists(st.tuples(kind, place, value), min_size=1, max_size=3))


def mutate(data: bytes, edits: list[tuple[str, int, int]]) -> bytes:
    out = bytearray(data)
    for kind, at, value in edits:
        at = min(at, len(out) - 1) if out else 0
        match kind:
            case "byte":
                out[at : at + 1] = bytes([value & 0xFF])
            case "u32":
                out[at : at + 4] = struct.pack("<I", value & 0xFFFFFFFF)
            case "u64":
                out[at : at + 8] = struct.pack("<Q", value)
            case "insert":
                out[at:at] = bytes([value & 0xFF] * (1 + value % 9))
            case "remove":
                del out[at : at + 1 + value % 17]
            case "swap":
                out[at : at + 8], out[at + 8 : at + 16] = out[at + 8 : at + 16], out[at : at + 8]
            case "cut":
                del out[at:]
    return bytes(out)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama3", "gemma3"])
def test_only_our_own_error_comes_out_of_mutated_files(model, tmp_path):
    path = tmp_path / "model.gguf"
    data = write_model(path, model, **SMALL).read_bytes()
    header = min(t.data_offset for t in gguf_py.GGUFReader(path).tensors)
    traced: set[object] = set()
    outcomes: dict[bool, int] = {True: 0, False: 0}

    @settings(max_examples=MUTATIONS, deadline=None, database=None, derandomize=True,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(mutations(len(data), header))
    def run(edits):
        path.write_bytes(mutate(data, edits))
        try:
            source = gguf.load(path)
            gguf_tokenizer.convert(source.metadata)
            shapes = source.config, tuple(w.type for w in source.weights.values())
            if shapes not in traced:
                traced.add(shapes)
                language.build_module(source, min(source.config.context, 64), 16)
            outcomes[True] += 1
        except InfercError as error:
            assert "\n" not in str(error) and len(str(error)) < 600
            outcomes[False] += 1

    run()
    assert sum(outcomes.values()) >= MUTATIONS // 2 and min(outcomes.values()) > MUTATIONS // 50
