"""The text functions in C against the Python packages they replace, on every kind of tokenizer."""

from __future__ import annotations

import ctypes
import random
import struct
import subprocess
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from inferc.compiler.text import patterns, unicode, unicode_data
from inferc.compiler.text.chat import chat_table
from inferc.compiler.text.patterns import Unsupported
from inferc.compiler.text.tables import text_tables
from inferc.errors import InfercError
from inferc.runtime.chat import render
from inferc.runtime.tokenizer import StreamDecoder, Tokenizer

from .fuzz import run
from .test_chat import GEMMA
from .text_cases import ALPHABET, CASES, CHATML, TEXTS, case
from .text_library import (
    BARE,
    CHAT_FORMAT,
    ENCODING,
    INVALID,
    NO_TEXT,
    OK,
    PARSE_SPECIAL,
    SIZE,
    TABLES,
    TEMPLATE,
    Decoder,
    Failed,
    Text,
    aligned,
    compiler,
)


@pytest.fixture(scope="module", params=CASES)
def pair(request) -> tuple[Text, Tokenizer]:
    """A tokenizer in C and in Python."""
    description = case(request.param)
    return Text(text_tables(description).data), Tokenizer(description)


def same_ids(pair: tuple[Text, Tokenizer], text: str) -> None:
    c, python = pair
    ids = c.tokenize(text)
    assert ids == python.encode(text)
    assert c.tokenize(text, BARE) == python.encode(text, add_bos=False, add_eos=False, parse_special=False)
    assert c.detokenize(ids) == python.decode(ids)
    assert c.detokenize(ids, keep_special=True) == python.decode(ids, skip_special=False)


# ---- Tokenizing ----


def test_ids_equal_the_package(pair):
    for text in TEXTS:
        same_ids(pair, text)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40) | st.text(alphabet=ALPHABET, max_size=40))
def test_ids_equal_the_package_on_any_text(pair, text):
    same_ids(pair, text)


def test_long_words_are_joined_as_short_ones(pair):
    """Beyond SHORT_WORD symbols another algorithm joins."""
    generator = random.Random(5)
    for alphabet in ("ab", "the quick", "aé漢", " \n"):
        for size in (47, 48, 49, 50, 97, 700):
            same_ids(pair, "".join(generator.choice(alphabet) for _ in range(size)))


def test_text_that_is_no_utf8_is_refused(pair):
    surrogate, beyond, overlong = b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\x80"
    for bad in (b"\xff", b"a\x80", b"\xc3", surrogate, beyond, b"\xc0\x80", overlong, b"ok\xf0\x9f"):
        with pytest.raises(Failed) as caught:
            pair[0].tokenize(bad)
        assert caught.value.status == ENCODING


def test_only_the_room_that_was_given_is_written(pair):
    c = pair[0]
    text = b"Hello, world! 123"
    workspace = aligned(c.c.model_tokenize_workspace_bytes(c.handle, len(text)))
    ids, count = np.full(50, -7, np.int32), a_size()
    wanted = c.tokenize(text)
    status = c.c.model_tokenize(c.handle, text, len(text), PARSE_SPECIAL, workspace.ctypes.data, workspace.size,
                                ids.ctypes.data, len(wanted) - 1, count)  # fmt: skip
    assert status == SIZE and count.contents.value == len(wanted) and (ids[len(wanted) - 1 :] == -7).all()
    assert c.c.model_tokenize(c.handle, text, len(text), 0, workspace.ctypes.data, workspace.size - 64, None, 0, count)
    assert c.c.model_tokenize(c.handle, b"", 0, BARE, workspace.ctypes.data, workspace.size, None, 0, count) == OK


def a_size() -> Any:
    return ctypes.pointer(ctypes.c_size_t())


# ---- Detokenizing ----


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_streams_equal_pythons(pair, data):
    c, python = pair
    ids = data.draw(st.lists(st.integers(-2, python.vocab_size + 1), max_size=30))
    keep, start = data.draw(st.booleans()), data.draw(st.booleans())
    ours, theirs = Decoder(keep, start), StreamDecoder(python, skip_special=not keep, from_start=start)
    pieces = [c.push(ours, [id]).decode() for id in ids]  # each of whole characters
    # Python waits for a third byte after those of a surrogate, so only what is written in all is compared.
    assert "".join(pieces) + c.push(ours, None).decode() == "".join([*map(theirs.push, ids), theirs.finish()])


@pytest.fixture(scope="module")
def byte_tokens() -> tuple[Text, dict[bytes, int]]:
    """A byte-level tokenizer and the ids of its tokens by their bytes."""
    description = case("gpt-2")
    python = Tokenizer(description)
    return Text(text_tables(description).data), {python.token_bytes(id): id for id in range(python.vocab_size)}


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=12) | st.lists(st.sampled_from(b"\xe2\x82\xac\xf0\x9f\xed\xa0A")).map(bytes))
def test_any_bytes_become_what_python_makes_of_them(byte_tokens, data):
    c, token = byte_tokens
    assert c.detokenize([token[bytes([byte])] for byte in data]) == data.decode("utf-8", "replace")


def test_ends_are_told(pair):
    c, python = pair
    ends = {id for id in range(-1, python.vocab_size + 1) if c.c.model_is_end(c.handle, id)}
    assert ends == set(python.eos_ids)


# ---- Chat ----

ALTERNATING = [("user", " Hi, <b>you</b>\n"), ("assistant", "é"), ("user", "\u2003bye\u2003")]


@pytest.mark.parametrize("template", [CHATML, GEMMA])
@pytest.mark.parametrize("answer", [True, False])
def test_chat_equals_the_template(template, answer):
    description = {**case("llama-bpe"), "chat_template": template}
    tables, python = text_tables(description), Tokenizer(description)
    c = Text(tables.data)
    bos = python.token_text(python.bos_id)
    assert tables.no_chat is None
    for count in (0, 1, 2, 3):
        messages = [{"role": role, "content": content} for role, content in ALTERNATING[:count]]
        expected = render(template, messages, add_generation_prompt=answer, bos_token=bos)
        assert c.chat(ALTERNATING[:count], answer) == expected
        ids = python.encode(expected, add_bos=False if expected.startswith(bos) else None, add_eos=False)
        assert c.tokenize(expected, CHAT_FORMAT) == ids
    system = [("system", "Be brief."), *ALTERNATING]
    try:
        expected = render(template, [{"role": r, "content": m} for r, m in system], bos_token=bos)
        assert c.chat(system) == expected
    except InfercError:
        with pytest.raises(Failed):
            c.chat(system)


THINKING = (
    "{% for m in messages %}{% set c = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content %}"
    "[{{ m.role }}]{{ c }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


def test_contents_that_the_template_treats_in_its_own_ways_are_refused():
    c = Text(text_tables({**case("gpt-2"), "chat_template": THINKING}).data)
    assert c.chat([("user", "</think>x"), ("assistant", "yes")]) == "[user]</think>x[assistant]yes[assistant]"
    for refused in ([("assistant", "a</think>b")], [("tool", "x")], [("user", "x"), ("", "y")]):
        with pytest.raises(Failed) as caught:
            c.chat(refused)
        assert caught.value.status == TEMPLATE
    assert c.c.model_chat(c.handle, None, 1, 1, None, 0, a_size()) == INVALID


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}", "date"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "farther away"),
        ("{% for m in messages %}{{ loop.length }}{{ m.content }}{% endfor %}", "farther away"),
        ("{{ raise_exception('no') }}", "farther away"),
        ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "farther away"),
        ("{% if %}", "farther away|read"),
        ("{% for m in messages %}{{ m.content | replace('x', 'y') }}{% endfor %}", "changes the contents"),
    ],
)
def test_templates_that_no_table_expresses_are_refused(template, reason):
    with pytest.raises(Unsupported, match=reason):
        chat_table(template, "<s>", "</s>")


def test_a_model_without_a_template_has_no_chat():
    tables = text_tables(case("unigram"))
    assert tables.no_chat and "no chat template" in tables.no_chat
    with pytest.raises(Failed) as caught:
        Text(tables.data).chat([("user", "hi")])
    assert caught.value.status == NO_TEXT


# ---- Patterns ----

PATTERNS = [
    r"(?i:'s|'t)|\p{L}+|\s+(?!\S)|\s+", r"[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}", r"\s+$", r"[^\n]+|[\n]+",
    r"\s{4}(?!\S)|\s{1,2}(?!\S)|\s", r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", r"a(?=b)|ab+", r"[a-c-]|x{2}",
    r"\P{L}+|[\p{Lu}\d]", r" ?[^(\s|[.,!?…。，、।۔،])]+", r"\p{Han}+|(ab|a)(c|bcd)|A\.b",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_matches_equal_the_packages(pattern):
    program = patterns.compile_tree(patterns.parse(pattern))
    classes = patterns.classes_of(program.sets)
    table = patterns.automaton(program, classes, classes.members)
    theirs = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    generator = random.Random(1)
    for _ in range(600):
        text = "".join(generator.choice(ALPHABET + "abcdab  \n") for _ in range(generator.randint(1, 24)))
        cuts = {0, len(text), *(i for match in patterns.matches(table, classes, text) for i in match)}
        assert cuts == {0, len(text), *(i for _, span in theirs.pre_tokenize_str(text) for i in span)}, text


@pytest.mark.parametrize(
    "pattern", [r"a*", r"(a", r"a)", r"a+?", r"^a", r"(?<=a)b", r"(?=ab)c", r"\bx", r"\p{X}", r"[a", r"a{9999}", r"\p",
                r"\w", r"[[:alpha:]]", r"a++a"],
)  # fmt: skip
def test_patterns_that_no_table_expresses_are_refused(pattern):
    with pytest.raises(Unsupported):
        patterns.compile_tree(patterns.parse(pattern))


def test_the_unicode_data_is_the_packages():
    for name in ("Lu", "Nd", "Mn", "s"):
        pattern = r"\s+" if name == "s" else rf"\p{{{name}}}+"
        assert unicode.data()["regex"][name] == unicode_data.matching(pattern)


# ---- The file ----

def test_altered_files_are_refused(pair):
    """A changed byte is seen by the sum."""
    c = pair[0]
    data, model = c._data.copy(), aligned(c.c.model_text_bytes())
    generator = random.Random(2)
    for _ in range(60):
        at = generator.randrange(data.size)
        data[at] ^= 1 << generator.randrange(8)
        changed = aligned(data.size)
        changed[:] = data
        reserved = 32 <= at < 64
        status = c.c.model_text_open(changed.ctypes.data, changed.size, model.ctypes.data)
        assert status == (OK if reserved else TABLES)
        data[:] = c._data
    for size in (0, 1, 63, 64, 300, data.size - 1):
        assert c.c.model_text_open(c._data.ctypes.data, size, model.ctypes.data) == TABLES


def mutated(data: bytes, generator: random.Random) -> bytes:
    """A file with some of its numbers changed; the harness sets its sum right."""
    changed = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        at = generator.randrange(64, generator.choice([400, 2000, len(data)]) - 4)
        value = generator.choice([0, 1, 255, 65535, 2**31 - 1, 2**32 - 1, generator.randrange(2**16), len(data)])
        struct.pack_into("<I" if value >= 2**16 or generator.random() < 0.5 else "<H", changed, at, value)
    return bytes(changed)


@pytest.mark.parametrize("name", ["qwen2", "sentencepiece", "wordpiece", "unigram with bytes"])
def test_nothing_outside_is_read_or_written(name, tmp_path):
    """The fuzzers' harness under sanitizers on fixed inputs: altered tables, bytes as text, ids, conversations."""
    generator = random.Random(name)
    data = text_tables(case(name)).data
    inputs = [*run.seeds(name), *(b"\0\0" + mutated(data, generator) for _ in range(60))]
    inputs += [b"\0\0" + data[: generator.randrange(len(data))] for _ in range(5)]
    for _ in range(300):
        text = "".join(generator.choice(ALPHABET) for _ in range(generator.randint(0, 80))).encode()
        garbled = bytearray(text or b"x")
        garbled[generator.randrange(len(garbled))] = generator.randrange(256)
        kind = generator.randrange(1, 4)
        inputs.append(bytes([kind, generator.randrange(16)]) + (garbled if generator.random() < 0.5 else text))
    packed = tmp_path / "inputs"
    packed.write_bytes(b"".join(struct.pack("<I", len(i)) + i for i in inputs))
    program = run.build(tmp_path, name, compiler(), "-DREPLAY")
    done = subprocess.run([program, packed], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == f"{len(inputs)} inputs\n"
