"""Continues a text with Python's own ctypes: python main.py ./libmodel.so "Once upon a time" """

import ctypes
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int32, c_size_t, c_uint64, c_void_p, sizeof

MOST = 32  # tokens to make


class Item(Structure):
    _fields_ = [("session", c_void_p), ("ids", POINTER(c_int32)), ("id_count", c_int32), ("rows", c_int32),
                ("logits", POINTER(c_float))]  # fmt: skip


class Sampling(Structure):
    _fields_ = [("size", c_size_t), ("penalty", c_double), ("window", c_int32), ("top_k", c_int32), ("top_p", c_double),
                ("min_p", c_double), ("temperature", c_double), ("seed", c_uint64), ("draws", c_uint64)]  # fmt: skip


lib = ctypes.CDLL(sys.argv[1])
prompt = (sys.argv[2] if len(sys.argv) > 2 else "The capital of France is").encode()
for name in ("session_bytes", "workspace_bytes", "tokenize_workspace_bytes"):
    getattr(lib, f"model_{name}").restype = c_size_t
lib.model_message.restype, lib.model_describe.restype = c_char_p, POINTER(c_int32)


def call(name, *arguments):
    if status := getattr(lib, f"model_{name}")(*arguments):
        sys.exit(lib.model_message(status).decode())


def take(size):  # memory at a multiple of 64
    raw = ctypes.create_string_buffer(size + 64)
    kept.append(raw)
    return c_void_p(ctypes.addressof(raw) + -ctypes.addressof(raw) % 64)


kept, model, session, count = [], c_void_p(), c_void_p(), c_size_t()
call("open", (c_size_t * 7)(56), byref(model))  # model_open_options: its size, then zeros
vocabulary = lib.model_describe(model)[1]
ids, size = (c_int32 * (512 + MOST))(), lib.model_tokenize_workspace_bytes(model, c_size_t(len(prompt)))
call("tokenize", model, prompt, c_size_t(len(prompt)), 0, take(size), c_size_t(size), ids, c_size_t(512), byref(count))
total, fed = count.value, 0
size, work = lib.model_session_bytes(total + MOST), lib.model_workspace_bytes(model, total, 1)
call("session_init", model, take(size), c_size_t(size), byref(session))
workspace, choosing, logits = take(work), take(16 * vocabulary), (c_float * vocabulary)()
how, decoder, piece = Sampling(sizeof(Sampling)), (c_int32 * 4)(), ctypes.create_string_buffer(256)
while fed < count.value + MOST - 1:
    item = Item(session, ctypes.cast(byref(ids, 4 * fed), POINTER(c_int32)), total - fed, 1, logits)
    call("eval", model, workspace, c_size_t(work), byref(item), c_size_t(1))
    fed, id, used = total, c_int32(), c_size_t()
    call("sample", logits, byref(how), ids, c_size_t(total), choosing, c_size_t(16 * vocabulary), byref(id))
    if lib.model_is_end(model, id):
        break
    ids[total], total = id.value, total + 1
    call("detokenize", model, byref(decoder), byref(id), c_size_t(1), piece, c_size_t(256), byref(used))
    print(piece.raw[: used.value].decode(), end="", flush=True)
print()
lib.model_close(model)
