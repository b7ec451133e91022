"""Ids equal those of other tokenizers: transformers, sentencepiece, and the textbook algorithms on the real models."""

from __future__ import annotations

import heapq
import inspect
import json
from pathlib import Path

import gguf
import pytest
import regex
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges

from inferc.compiler.frontends import gguf_tokenizer
from inferc.compiler.frontends.gguf_tokenizer import TokenType
from inferc.errors import InfercError
from inferc.runtime.tokenizer import StreamDecoder, Tokenizer

DATA = Path(__file__).parent / "data"
CORPUS = [
    "The capital of France is Paris.",
    "Hello,  world!   Three spaces,\ttab.",
    " leading space",
    "trailing space  ",
    "",
    " ",
    "  ",
    "\n",
    "\n\n\n",
    " \n \n",
    "\r\n\r\n",
    "a\u00a0b\u2003c\u3000d",
    "x" * 70,
    " " * 37,
    "\n" * 35,
    "I'm, you're, we'll, they'd've; I'M, YOU'RE WE'LL; 'ſ 'S",
    "l’été déjà vu: œuvre, naïve coöperation",
    "1 12 123 1234 12345 3.14159 1,000,000 ½ ² Ⅷ ٣٤٥ १२३ 一二三",
    "def f(n):\n    if n < 2:\n\t\treturn n  # base\n",
    "for (int i=0;i<10;++i){a[i]+=b[i]*c;} //\\ \\n \"q\" 'c'",
    '<div class="a">&amp;</div><!-- x -->',
    "=== --- *** ___ ...",
    "Привет, мир! Съешь ещё этих мягких французских булок",
    "你好，世界。今天天气很好！",
    "日本語のテキスト：カタカナとひらがな",
    "안녕하세요 세계",
    "مرحبا بالعالم، كيف حالك؟",
    "שלום עולם",
    "नमस्ते दुनिया क्षत्रिय",
    "สวัสดีชาวโลก",
    "Γειά σου Κόσμε",
    "Tiếng Việt có dấu",
    "😀👍🏽 👨‍👩‍👧‍👦 🇫🇷 ❤️ 🧑🏿‍🚀!",
    "e\u0301 vs \u00e9, \u1e9b\u0323, \ufb01",
    "\u0000\u0001\u0007\u001b[0m\u007f\u0085\u009f",
    "\ufeffBOM \u200bzero\u200dwidth\u2028line\u2029para",
    "\U0001d400\U0001d49c \U00020000 \U0010ffff \ufffd",
    "▁under▁score ▁ ▁▁",
    "<0x41> <0xZZ> <s> </s> <unk> <|endoftext|>",
    "SELECT * FROM t WHERE x='it''s' AND y>=10e-5;",
    "https://example.org/a?b=c&d=%20#e user@example.com",
    "CamelCaseWord snake_case_word ALLCAPS",
    "aaaa aaaaa aaaaaa abababab ababa babab",
    "mixed英文and中文123テスト456 русский7",
    "$100 €200 £300 ¥400 50% §7 ©®™",
]
TRAINING = [
    *CORPUS,
    *(s.lower() for s in CORPUS),
    "the quick brown fox jumps over the lazy dog " * 5,
    "ab aba abab" * 9,
]


def metadata_of(path: Path) -> dict:
    """The tokenizer's keys of a GGUF file."""
    fields = gguf.GGUFReader(path).fields
    return {name: field.contents() for name, field in fields.items() if name.startswith("tokenizer.")}


def loaded(metadata: dict) -> Tokenizer:
    """The tokenizer as an artifact carries it."""
    return Tokenizer(json.loads(json.dumps(gguf_tokenizer.convert(metadata))))


def write_gguf(path: Path, model: str, tokens, kinds, **arrays) -> dict:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for name, value in arrays.items():
        getattr(writer, f"add_{name}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return metadata_of(path)


# ---- Byte-level BPE against transformers ----

LLAMA3_PATTERN = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default


def smollm(vocab, merges):
    reference = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    reference.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=reference)


def llama3(vocab, merges):
    reference = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_PATTERN), "isolated")
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    reference.pre_tokenizer = pre_tokenizers.Sequence([split, words])
    reference.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=reference)


def gpt2(vocab, merges):
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges)


def qwen2(vocab, merges):
    return transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)


REFERENCES = {"smollm": smollm, "gpt-2": gpt2, "llama-bpe": llama3, "qwen2": qwen2}


@pytest.fixture(scope="module", params=REFERENCES)
def byte_level(request, tmp_path_factory):
    """(our tokenizer, transformers' one) of a small vocabulary trained with the pre-tokenizer's own words."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = REFERENCES[request.param]({"<|endoftext|>": 0}, [])._tokenizer.pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        TRAINING, trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
    )
    body = json.loads(trained.to_str())["model"]
    vocab, merges = body["vocab"], [tuple(m) for m in body["merges"]]
    kinds = [TokenType.CONTROL if t in special else TokenType.NORMAL for t in sorted(vocab, key=vocab.get)]
    metadata = write_gguf(
        tmp_path_factory.mktemp("gguf") / "model.gguf", "gpt2", sorted(vocab, key=vocab.get), kinds,
        token_merges=[" ".join(m) for m in merges], tokenizer_pre=request.param, eos_token_id=0, add_bos_token=False,
    )  # fmt: skip
    reference = REFERENCES[request.param](vocab, merges)
    reference.add_special_tokens({"additional_special_tokens": special})
    return loaded(metadata), reference


@pytest.mark.parametrize("text", [*CORPUS, "<|im_start|>user\nhi <|im_end|> \n", "\n".join(CORPUS)])
def test_byte_level_ids_equal_transformers(byte_level, text):
    ours, reference = byte_level
    ids = ours.encode(text)
    assert ids == reference.encode(text, add_special_tokens=False)
    assert ours.decode(ids, skip_special=False) == reference.decode(ids, clean_up_tokenization_spaces=False)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_byte_level_ids_equal_transformers_on_any_text(byte_level, text):
    ours, reference = byte_level
    assert ours.encode(text) == reference.encode(text, add_special_tokens=False)


def test_special_tokens_are_text_when_not_parsed(byte_level):
    ours, _ = byte_level
    text = "<|im_start|>user"
    assert ours.encode(text)[0] in ours.special_ids
    plain = ours.encode(text, parse_special=False)
    assert not ours.special_ids.intersection(plain) and ours.decode(plain) == text
    assert ours.decode(ours.encode(text)) == "user"


# ---- SentencePiece ----

USER_DEFINED = ["[tag]", "  ", "\n\n"]


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def sentencepiece_pair(request, tmp_path_factory):
    """(our tokenizer, the sentencepiece processor, the GGUF metadata) of a small BPE model with byte fallback."""
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t for s in TRAINING for t in s.split("\n") if "\0" not in t]),
        model_prefix=str(folder / "m"), model_type="bpe", vocab_size=800, byte_fallback=True, character_coverage=0.98,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=request.param,
        split_digits=True, user_defined_symbols=USER_DEFINED[:1], minloglevel=2,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "m.model"))
    size = processor.get_piece_size()
    kinds = [
        TokenType.UNKNOWN if processor.is_unknown(i)
        else TokenType.CONTROL if processor.is_control(i)
        else TokenType.BYTE if processor.is_byte(i)
        else TokenType.USER_DEFINED if processor.id_to_piece(i) in USER_DEFINED
        else TokenType.NORMAL
        for i in range(size)
    ]  # fmt: skip
    metadata = write_gguf(
        folder / "model.gguf", "llama", [processor.id_to_piece(i) for i in range(size)], kinds,
        token_scores=[processor.get_score(i) for i in range(size)], add_space_prefix=request.param,
        bos_token_id=processor.bos_id(), eos_token_id=processor.eos_id(),
    )  # fmt: skip
    return loaded(metadata), processor, metadata


def is_plain(text: str) -> bool:
    """Whether sentencepiece reads the text as it stands: it takes "▁" in a text for a space."""
    return "▁" not in text


@pytest.mark.parametrize("text", [*CORPUS, "x".join(CORPUS)])
def test_sentencepiece_ids_equal(sentencepiece_pair, text):
    ours, processor, _ = sentencepiece_pair
    ids = ours.encode(text, add_bos=False, parse_special=False)
    assert ids == processor.encode(text)
    if is_plain(text):
        assert ours.decode(ids) == text


@settings(max_examples=500, deadline=None)
@given(text=st.text(max_size=40) | st.text(alphabet="ab ▁\n", max_size=40))
def test_sentencepiece_ids_equal_on_any_text(sentencepiece_pair, text):
    ours, processor, _ = sentencepiece_pair
    assert ours.encode(text, add_bos=False, parse_special=False) == processor.encode(text)


def test_sentencepiece_ids_equal_transformers(sentencepiece_pair):
    ours, processor, metadata = sentencepiece_pair
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocab = {token: i for i, token in enumerate(tokens)}
    pieces = [(t, s) for t, s, k in zip(tokens, scores, metadata["tokenizer.ggml.token_type"]) if k == TokenType.NORMAL]
    reference = transformers.LlamaTokenizer(
        vocab=vocab, merges=generate_merges(vocab, pieces), add_prefix_space=ours.space_prefix, legacy=False
    )
    for text in CORPUS:
        # transformers adds no second space before a text that begins with one
        if not text.startswith((" ", "▁")) and "<" not in text:
            assert ours.encode(text, add_bos=False) == reference.encode(text, add_special_tokens=False), text


def test_sentencepiece_user_defined_and_special_tokens(sentencepiece_pair):
    ours, processor, _ = sentencepiece_pair
    tag = processor.piece_to_id("[tag]")
    ids = ours.encode("a[tag]b<s>c")
    assert ids[0] == ours.bos_id and tag in ids and ids.count(processor.bos_id()) == 2
    assert ours.encode("a[tag]b<s>c", parse_special=False).count(processor.bos_id()) == 1
    assert ours.decode([tag], skip_special=True) == "[tag]"


def test_overlapping_repeats_join_leftmost(tmp_path):
    """Two ways to cut one token ("aba": ab|a, a|ba) must not be tried in another order than sentencepiece's."""
    tokens = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "ba", "ab", "aba", "aa", "aaa", "abaab"]
    kinds = [TokenType.UNKNOWN] + [TokenType.BYTE] * 256 + [TokenType.NORMAL] * 9
    for order in range(6):
        ranked = sorted(range(260, 266), key=lambda i: (i * 7 + order * 5) % 11)
        scores = [-float(ranked.index(i)) if i in ranked else 0.0 for i in range(len(tokens))]
        metadata = write_gguf(
            tmp_path / f"{order}.gguf", "llama", tokens, kinds, token_scores=scores, add_space_prefix=False
        )
        ours = loaded(metadata)
        for text in ("abaaba", "aaaaaaa", "abaabaab", "babababa", "aababbaaab"):
            expected = sentencepiece_textbook(text, dict(zip(tokens, range(len(tokens)))), scores, set(range(257, 266)))
            assert ours.encode(text, add_bos=False) == expected, (text, scores[257:])


# ---- Decoding ----


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_streamed_pieces_join_to_the_decoded_text(byte_level, data):
    ours, _ = byte_level
    ids = data.draw(st.lists(st.integers(0, ours.vocab_size - 1), max_size=30))
    decoder = StreamDecoder(ours)
    pieces = [*map(decoder.push, ids), decoder.finish()]
    assert "".join(pieces) == ours.decode(ids)


def test_streaming_never_splits_a_character(sentencepiece_pair):
    ours, _, _ = sentencepiece_pair
    text = "é 😀 \U0010ffff 語"
    decoder = StreamDecoder(ours, from_start=True)
    pieces = [*map(decoder.push, ours.encode(text)), decoder.finish()]
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)
    assert "😀" in pieces


def test_a_space_before_generated_text_stays(sentencepiece_pair):
    ours, _, metadata = sentencepiece_pair
    the = metadata["tokenizer.ggml.tokens"].index("▁the")
    assert StreamDecoder(ours).push(the) == " the"
    assert ours.decode([the]) == ("the" if ours.space_prefix else " the")


def test_bytes_that_are_no_character_become_the_replacement_character(sentencepiece_pair):
    ours, _, metadata = sentencepiece_pair
    lead = metadata["tokenizer.ggml.tokens"].index("<0xE2>")
    assert ours.decode([lead]) == "\ufffd"
    assert ours.decode([10**9, -1]) == ""


def test_lone_surrogate_is_refused(byte_level):
    with pytest.raises(InfercError, match="surrogate"):
        byte_level[0].encode("a\ud800")


# ---- Bad metadata ----

GOOD = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.token_type": [1, 1, 1], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.eos_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "rwkv"}, "'rwkv' is not supported"),
        ({"pre": "chatglm-bpe"}, "pre-tokenizer 'chatglm-bpe'"),
        ({"pre": None}, "pre-tokenizer None"),
        ({"tokens": []}, "tokens is missing"),
        ({"tokens": [1, 2]}, "no array of str"),
        ({"token_type": [1]}, "1 entries for 3 tokens"),
        ({"merges": ["a c"]}, "'a c' is not of two tokens"),
        ({"merges": ["ab"]}, "'ab' is not of two tokens"),
        ({"merges": []}, "merges is missing"),
        ({"eos_token_id": "x"}, "eos_token_id is no integer"),
        ({"model": "llama"}, "scores is missing"),
        ({"model": "llama", "scores": [0.0, 0.0, float("nan")]}, "not numeric"),
    ],
)
def test_bad_metadata_is_explained_in_one_line(change, message):
    with pytest.raises(InfercError, match=regex.escape(message)) as caught:
        gguf_tokenizer.convert(GOOD | {f"tokenizer.ggml.{key}": value for key, value in change.items()})
    assert "\n" not in str(caught.value)


def test_a_file_without_a_tokenizer():
    assert gguf_tokenizer.convert({}) is None
    assert gguf_tokenizer.convert({"tokenizer.ggml.model": "no_vocab"}) is None


@settings(max_examples=300, deadline=None)
@given(
    key=st.sampled_from(sorted(GOOD)),
    value=st.none() | st.integers() | st.text() | st.lists(st.text(max_size=3) | st.integers(-9, 9), max_size=4),
    model=st.sampled_from(["gpt2", "llama"]),
)
def test_mutated_metadata_gives_only_our_error(key, value, model):
    metadata = GOOD | {"tokenizer.ggml.model": model, "tokenizer.ggml.scores": [0.0, -1.0, -2.0], key: value}
    try:
        description = gguf_tokenizer.convert(metadata)
        if description is not None:
            Tokenizer(description).encode("abc")
    except InfercError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["tokenizer", "bos_id", "eos_ids", "special_ids", "add_bos", "chat_template"])
def test_a_damaged_description_is_refused(name):
    good = gguf_tokenizer.convert(GOOD)
    for bad in ({**good, name: 1.5}, {k: v for k, v in good.items() if k != name}, [], {**good, "tokenizer": "{}"}):
        with pytest.raises(InfercError):
            Tokenizer(bad)


# ---- The real models, against llama.cpp's ids and the textbook algorithms ----


def byte_level_textbook(text: str, vocab: dict[str, int], ranks: dict[tuple[str, str], int], pattern: str) -> list[int]:
    """GPT-2's encoder as published: words by a regular expression, the best-ranked pair joined until none is left."""
    shown = {b: c for c, b in bytes_of_characters().items()}
    ids = []
    for word in regex.findall(pattern, text):
        parts = [shown[b] for b in word.encode()]
        while len(parts) > 1:
            rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == len(ranks):
                break
            joined, new, i = (parts[at], parts[at + 1]), [], 0
            while i < len(parts):
                pair = tuple(parts[i : i + 2]) == joined
                new.append("".join(joined) if pair else parts[i])
                i += 2 if pair else 1
            parts = new
        ids += [vocab[p] for p in parts]
    return ids


def bytes_of_characters() -> dict[str, int]:
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in visible}
    for b in range(256):
        if b not in visible:
            table[chr(256 + len(table) - len(visible))] = b
    return table


def sentencepiece_textbook(text: str, vocab: dict[str, int], scores: list[float], mergeable: set[int]) -> list[int]:
    """SentencePiece's BPE encoder: a queue of neighbours by score, then place; what is no token becomes bytes."""
    parts: list[str | None] = list(text.replace(" ", "▁"))
    following = [*range(1, len(parts)), -1] if parts else []
    preceding = list(range(-1, len(parts) - 1))
    queue: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        if left >= 0 and right >= 0:
            joined = parts[left] + parts[right]
            if vocab.get(joined) in mergeable:
                heapq.heappush(queue, (-scores[vocab[joined]], left, right, joined))

    for i in range(len(parts) - 1):
        consider(i, i + 1)
    while queue:
        _, left, right, joined = heapq.heappop(queue)
        if parts[left] is None or parts[right] is None or parts[left] + parts[right] != joined:
            continue
        parts[left], parts[right] = joined, None
        following[left] = following[right]
        if following[left] >= 0:
            preceding[following[left]] = left
        consider(preceding[left], left)
        consider(left, following[left])
    ids = []
    for part in parts:
        if part is not None:
            ids += [vocab[part]] if part in vocab else [vocab[f"<0x{b:02X}>"] for b in part.encode()]
    return ids


@pytest.fixture(scope="module")
def smollm2():
    metadata = metadata_of(pulled("smollm2"))
    return loaded(metadata), metadata


@pytest.fixture(scope="module")
def gemma3():
    metadata = metadata_of(pulled("gemma3-270m"))
    return loaded(metadata), metadata


def pulled(name: str) -> Path:
    from inferc.compiler import hub

    return hub.pull(name)


# llama.cpp's ids (llama-cpp-python 0.3.36) of three prompts.
LLAMA_CPP_IDS = json.loads((DATA / "llama_cpp_ids.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "gemma3"])
def test_real_models_ids_equal_llama_cpp(model, request):
    ours, _ = request.getfixturevalue(model)
    for prompt, ids in zip(LLAMA_CPP_IDS["prompts"], LLAMA_CPP_IDS[model]):
        assert ours.encode(prompt) == ids
        assert ours.decode(ids) == prompt


@pytest.mark.slow
def test_smollm2_ids_equal_the_textbook(smollm2):
    ours, metadata = smollm2
    vocab = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    ranks = {tuple(m.split(" ")): i for i, m in enumerate(metadata["tokenizer.ggml.merges"])}
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    for text in CORPUS:
        expected = []
        for piece in regex.findall(r"\p{N}|\P{N}+", text.replace("<|endoftext|>", "")):
            expected += byte_level_textbook(piece, vocab, ranks, words)
        assert ours.encode(text.replace("<|endoftext|>", "")) == expected, text
    assert ours.eos_ids[0] == vocab["<|im_end|>"] and ours.add_bos is False


@pytest.mark.slow
def test_gemma_ids_equal_the_textbook(gemma3):
    ours, metadata = gemma3
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens)}
    mergeable = {i for i, kind in enumerate(kinds) if kind == TokenType.NORMAL}
    matched = [i for i, kind in enumerate(kinds) if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)]
    whole = regex.compile("|".join(regex.escape(tokens[i]) for i in sorted(matched, key=lambda i: -len(tokens[i]))))
    for text in [*CORPUS, "\n".join(CORPUS), "<start_of_turn>user\nhi<end_of_turn>\n"]:
        expected, at = [vocab["<bos>"]], 0
        for match in [*whole.finditer(text), None]:
            end = match.start() if match else len(text)
            expected += sentencepiece_textbook(text[at:end], vocab, metadata["tokenizer.ggml.scores"], mergeable)
            if match:
                expected.append(vocab[match[0]])
                at = match.end()
        assert ours.encode(text) == expected, text
    assert set(ours.eos_ids) == {vocab["<eos>"], vocab["<end_of_turn>"]} and ours.add_bos is True
