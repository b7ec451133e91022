"""The file `text` of an artifact: numbered sections, and the hash tables in them. docs/text.md describes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

MAGIC, VERSION = b"infertxt", 1
HEADER, ALIGNMENT = 64, 64
EMPTY = 0xFFFFFFFF  # a slot that holds nothing

# In the order of the enum in runtime/c/text_tables.h.
SECTIONS = (
    "facts", "token_offsets", "token_bytes", "token_kinds", "added", "steps", "map_rows", "strings", "decomposed",
    "code_points", "composed", "combining", "class_pages", "classes", "splits", "transitions", "merges", "merge_slots",
    "bytes", "characters", "piece_slots", "piece_ids", "piece_offsets", "piece_bytes", "scores", "byte_ids",
    "chat_roles", "chat_gaps", "chat_guards", "chat_strings",
)  # fmt: skip


def pack(sections: Mapping[str, np.ndarray | bytes]) -> bytes:
    """The whole file. Arrays are written little-endian; sections that are not given are empty."""
    if unknown := sections.keys() - set(SECTIONS):
        raise ValueError(f"no such sections: {unknown}")
    directory, body = [], bytearray()
    start = HEADER + 8 * len(SECTIONS)
    for name in SECTIONS:
        value = sections.get(name, b"")
        data = value if isinstance(value, bytes) else value.astype(value.dtype.newbyteorder("<")).tobytes()
        body += bytes(-(start + len(body)) % ALIGNMENT)
        directory += [start + len(body), len(data)]
        body += data
    rest = np.array(directory, "<u4").tobytes() + bytes(body)
    head = MAGIC + np.array([VERSION, len(SECTIONS)], "<u4").tobytes()
    head += np.array([HEADER + len(rest), checksum(rest)], "<u8").tobytes()
    return head.ljust(HEADER, b"\0") + rest


def checksum(data: bytes) -> int:
    """The sum of runtime/c/sum.h."""
    words = np.frombuffer(data + bytes(-len(data) % 8), "<u8")
    low = np.uint64(EMPTY)
    keys = np.arange(1, words.size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    products = ((words + keys) & low) * (((words >> np.uint64(32)) + (keys >> np.uint64(32))) & low)
    return int(products.sum(dtype=np.uint64))


def slots(hashes: np.ndarray) -> np.ndarray:
    """u32[2^n]: item i at the first free place from its hash on, for less than two thirds of the places taken."""
    size = 1 << max(1, int(np.ceil(np.log2(1.5 * hashes.size + 1))))
    table = np.full(size, EMPTY, np.uint32)
    waiting = np.arange(hashes.size, dtype=np.uint32)
    at = hashes.astype(np.int64) & (size - 1)
    while waiting.size:
        free = table[at] == EMPTY
        places, first = np.unique(at[free], return_index=True)
        placed = np.flatnonzero(free)[first]
        table[places] = waiting[placed]
        keep = np.ones(waiting.size, bool)
        keep[placed] = False
        waiting, at = waiting[keep], (at[keep] + 1) & (size - 1)
    return table


def pair_hash(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`pair_hash` of runtime/c/bpe.h."""
    h = left.astype(np.uint32) * np.uint32(0x9E3779B1) ^ right.astype(np.uint32) * np.uint32(0x85EBCA77)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x2C1B3C6D)
    return h ^ (h >> np.uint32(13))


def text_hash(texts: Sequence[bytes]) -> np.ndarray:
    """FNV-1a of each text, 32 bits."""
    found = np.full(len(texts), 0x811C9DC5, np.uint32)
    sizes = np.array([len(t) for t in texts], np.int64)
    joined = np.frombuffer(b"".join(texts), np.uint8)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64) if len(texts) else sizes
    for i in range(int(sizes.max(initial=0))):
        longer = np.flatnonzero(sizes > i)
        found[longer] = (found[longer] ^ joined[starts[longer] + i]) * np.uint32(0x01000193)
    return found


def offsets(texts: Sequence[bytes]) -> np.ndarray:
    """u32[texts + 1]: where each begins and the last ends when they are joined."""
    return np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.uint32)
