"""The engine and the model over the C interface, with a library whose logits tell what its session holds."""

from __future__ import annotations

import glob
import os
import tempfile
import threading

import numpy as np
import pytest

from inferc.compiler.frontends import gguf_tokenizer
from inferc.errors import InfercError
from inferc.runtime import session as session_module
from inferc.runtime.artifact import Artifact
from inferc.runtime.model import Model, load
from inferc.runtime.session import Engine
from tests import fake_artifact
from tests.fake_artifact import CHUNK, CONTEXT, VOCAB

EOS = 1


def description() -> dict:
    """A tokenizer.json of one token a character, with "<s>" and "</s>", and a template that writes the former."""
    tokens = ["<s>", "</s>", *map(chr, range(ord(" "), ord(" ") + VOCAB - 2))]
    tokens[2] = "Ġ"
    return gguf_tokenizer.convert({
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": [*tokens, "AB"],
        "tokenizer.ggml.token_type": [3, 3] + [1] * (VOCAB - 1), "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": EOS, "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template":
            "{{ bos_token }}{% for m in messages %}{{ m.role | upper }}:{{ m.content }}{{ eos_token }}{% endfor %}",
    })  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return fake_artifact.write(tmp_path / "model.inferc", fake_artifact.library(), description())


@pytest.fixture
def model(path):
    with load(path, threads=2) as opened:
        yield opened


def expected(ids, salt=1) -> np.ndarray:
    """The fake model's logits after each of `ids`: f32[len(ids), VOCAB]."""
    rows, value = [], salt
    for id in ids:
        value = ((value ^ id) * 16777619 + 2654435761) % 2**32
        rows.append([(((value ^ v * 40503) * 2246822519) % 2**32 >> 16) / 4096 for v in range(VOCAB)])
    return np.array(rows, np.float32)


def greedy(ids, count, salt=1) -> list[int]:
    ids = list(ids)
    for _ in range(count):
        ids.append(int(expected(ids, salt)[-1].argmax()))
    return ids[-count:]


def evaluated(model: Model) -> int:
    return model._engine._library._library.model_evaluated(model._engine.handle)


def prompt_without_end(length: int, count: int) -> list[int]:
    """A prompt of that length whose greedy continuation of `count` ids does not meet the end of text."""
    return next(
        ids for seed in range(1000)
        if EOS not in greedy(ids := np.random.default_rng(seed).integers(2, VOCAB, length).tolist(), count)
    )  # fmt: skip


# ---- Logits ----


@pytest.mark.parametrize("count", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, CONTEXT])
def test_logits_in_chunks(model, count):
    ids = np.random.default_rng(count).integers(0, VOCAB, count)
    assert np.array_equal(model.logits(ids), expected(ids.tolist()))


def test_logits_from_a_position_on(model):
    ids = list(range(50))
    pieces = list(model.logits_from(ids, 5))
    assert [start for start, _ in pieces] == [5, 21, 37]
    assert np.array_equal(np.concatenate([logits for _, logits in pieces]), expected(ids)[5:])


def test_a_shared_beginning_is_not_evaluated_again(model):
    ids = list(range(40))
    model.logits(ids)
    assert evaluated(model) == 40
    assert np.array_equal(model._evaluate([*ids, 7, 8], 1), expected([*ids, 7, 8])[-1:])
    assert evaluated(model) == 42
    assert np.array_equal(model._evaluate([*ids[:30], 9], 1), expected([*ids[:30], 9])[-1:])
    assert evaluated(model) == 43
    assert np.array_equal(model._evaluate([*ids[:30], 9], 1), expected([*ids[:30], 9])[-1:])
    assert evaluated(model) == 44, "the last token is evaluated again for its logits"


def test_a_way_back_that_a_window_has_lost_starts_anew(model):
    ids = list(range(60))
    model.logits(ids)
    assert np.array_equal(model._evaluate([*ids[:20], 3], 1), expected([*ids[:20], 3])[-1:])
    assert evaluated(model) == 81


def test_an_interrupted_evaluation_is_made_good(model, monkeypatch):
    eval = model._session.eval

    def interrupted(ids, rows=1):
        eval(ids, rows)
        raise KeyboardInterrupt

    model._evaluate([1, 2, 3], 1)
    with monkeypatch.context() as patch:
        patch.setattr(model._session, "eval", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model._evaluate([1, 2, 3, 4, 5], 1)
    assert np.array_equal(model._evaluate([1, 2, 3, 6], 1), expected([1, 2, 3, 6])[-1:])


# ---- Generation ----


def test_greedy_ids_equal_one_evaluation_at_a_time(model):
    prompt = prompt_without_end(20, 30)
    assert list(model.generate_ids(prompt, max_tokens=30)) == greedy(prompt, 30)
    assert evaluated(model) == 20 + 29
    assert (model.timings.prompt_tokens, model.timings.tokens) == (20, 29)
    assert "prompt: 20 tokens" in str(model.timings)


def test_generation_ends_at_the_end_of_text(model):
    prompt = next([a, b] for a in range(2, VOCAB) for b in range(2, VOCAB) if EOS in greedy([a, b], 20)[1:])
    all_ids = greedy(prompt, 20)
    end = all_ids.index(EOS)
    assert list(model.generate_ids(prompt, max_tokens=20)) == all_ids[:end]
    assert list(model.generate_ids(prompt, max_tokens=20, ignore_eos=True)) == all_ids


def test_generation_ends_where_the_context_does(model):
    prompt = prompt_without_end(CONTEXT - 3, 4)
    assert list(model.generate_ids(prompt, max_tokens=50)) == greedy(prompt, 4)


def test_streams_that_alternate_do_not_disturb_each_other(model):
    a, b = prompt_without_end(5, 10), prompt_without_end(9, 10)
    both = zip(model.generate_ids(a, max_tokens=10), model.generate_ids(b, max_tokens=10))
    assert list(map(list, zip(*both))) == [greedy(a, 10), greedy(b, 10)]


def test_threads_that_share_a_model(model):
    prompts = [prompt_without_end(n, 12) for n in (3, 8, 17)]
    made: dict[int, list[int]] = {}

    def work(i: int) -> None:
        made[i] = list(model.generate_ids(prompts[i], max_tokens=12))

    workers = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert made == {i: greedy(prompt, 12) for i, prompt in enumerate(prompts)}


def test_sampling_is_repeatable(model):
    def text(seed):
        return model.generate("HELLO", max_tokens=20, temperature=5.0, seed=seed)

    assert text(1) == text(1) != text(2)


def test_text(model):
    ids = model.tokenize("HI THERE")
    assert ids[0] == 0 and model.detokenize(ids) == "HI THERE"
    pieces = list(model.generate("HI THERE", max_tokens=12, stream=True))
    assert "".join(pieces) == model.generate("HI THERE", max_tokens=12) == "".join(model.stream(ids, max_tokens=12))
    assert model.detokenize(greedy(ids, 12)).startswith("".join(pieces))


def test_chat(model):
    ids = model.chat_ids([{"role": "user", "content": "HI"}, {"role": "x", "content": "NO"}])
    assert model.detokenize(ids, skip_special=False) == "<s>USER:HI</s>X:NO</s>"
    assert ids.count(0) == 1, "the template writes the beginning of text, the tokenizer does not repeat it"
    answer = model.chat("HI", max_tokens=9)
    assert answer == "".join(model.chat([{"role": "user", "content": "HI"}], max_tokens=9, stream=True))


# ---- Errors ----


def test_prompts_that_cannot_be_evaluated(model):
    cases = (
        ([1] * (CONTEXT + 1), f"the prompt has {CONTEXT + 1} tokens and the context holds {CONTEXT}"),
        ([], "no tokens"),
        ([1, VOCAB], f"{VOCAB} is no token id"),
        ([-1], "-1 is no token id"),
    )
    for ids, message in cases:
        for call in (model.logits, model.generate_ids, model.generate):
            with pytest.raises(InfercError, match=message):
                call(ids)
    with pytest.raises(InfercError, match="top_p must be"):
        model.generate("A", top_p=2)


def test_a_failing_call_leaves_the_position(model):
    session = model._engine.session()
    session.eval([1, 2, 3])
    with pytest.raises(InfercError, match="the context is full: rewind"):
        for _ in range(CONTEXT):
            session.eval([1] * CHUNK)
    full = session.position
    assert CONTEXT - CHUNK < full < CONTEXT
    with pytest.raises(InfercError, match="invalid"):
        session.eval([1] * (CHUNK + 1))
    assert session.position == full


def test_a_closed_model(path):
    model = load(path)
    model.close()
    model.close()
    with pytest.raises(InfercError, match="closed"):
        model.generate("A")


def test_without_a_tokenizer(tmp_path):
    with load(fake_artifact.write(tmp_path / "a", fake_artifact.library())) as model:
        assert list(model.generate_ids([5], max_tokens=3)) == greedy([5], 3)
        with pytest.raises(InfercError, match="no tokenizer"):
            model.generate("A")


def test_without_a_chat_template(tmp_path):
    plain = {**description(), "chat_template": None}
    with (
        load(fake_artifact.write(tmp_path / "a", fake_artifact.library(), plain)) as model,
        pytest.raises(InfercError, match="no chat template"),
    ):
        model.chat("A")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"prefix": "other"}, "incomplete"), ({"vocab_size": 65}, "not the one"), ({"context": 601}, "not the one")],
)
def test_libraries_that_do_not_fit(tmp_path, changes, message):
    path = fake_artifact.write(tmp_path / "a", fake_artifact.library(), **changes)
    with pytest.raises(InfercError, match=message):
        load(path)


@pytest.mark.parametrize("code", [b"", b"\x7fELF", b"no library"])
def test_libraries_that_are_none(tmp_path, code):
    with pytest.raises(InfercError, match="cannot be loaded") as caught:
        load(fake_artifact.write(tmp_path / "a", code))
    assert "\n" not in str(caught.value)


def test_threads_below_one(path):
    with pytest.raises(InfercError, match="threads"):
        load(path, threads=-1)


# ---- The library ----


def test_models_after_another_have_their_own_code(tmp_path):
    for salt in (1, 2, 3, 1):
        path = fake_artifact.write(tmp_path / "a", fake_artifact.library(f"SALT={salt}"))
        with load(path) as model:
            assert list(model.generate_ids([7], max_tokens=4, ignore_eos=True)) == greedy([7], 4, salt)


def test_models_at_once_have_their_own_code(tmp_path):
    models = [load(fake_artifact.write(tmp_path / f"{s}", fake_artifact.library(f"SALT={s}"))) for s in (1, 2)]
    for salt, model in zip((1, 2), models):
        assert np.array_equal(model.logits([4, 5]), expected([4, 5], salt))
    for model in models:
        model.close()


@pytest.mark.parametrize("memfd", [True, False])
def test_nothing_is_left_behind(path, tmp_path, monkeypatch, memfd):
    if not memfd:
        monkeypatch.delattr(os, "memfd_create", raising=False)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
        (tmp_path / "temporary").mkdir()
    open_files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for _ in range(3):
        with load(path) as model:
            assert model.generate_ids([1], max_tokens=1)
        del model
    assert not glob.glob(str(tmp_path / "temporary/*"))
    if open_files is not None:
        assert len(os.listdir("/proc/self/fd")) == open_files


def test_sessions_of_one_engine_are_apart(path):
    engine = Engine(Artifact(path), threads=1)
    a, b = engine.session(), engine.session()
    a.eval([1, 2])
    b.eval([3])
    assert np.array_equal(a.eval([4]), expected([1, 2, 4])[-1:])
    assert np.array_equal(b.eval([4, 5], rows=2), expected([3, 4, 5])[-2:])
    assert (a.position, b.position) == (3, 3)
    engine.close()


def test_physical_cores():
    assert 1 <= session_module.physical_cores() <= (os.cpu_count() or 1)
