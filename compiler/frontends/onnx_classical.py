"""ONNX operators of classical machine learning: ensembles of trees, n-grams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import numpy_helper

from ...ir.types import boolean, f32, i64
from .arrays import Array, stack, where
from .onnx_import import Call, Rule
from .products import matmul

MODES = ("le", "lt", "ge", "gt", "eq", "ne")  # of a tree's nodes, by number; 6 asks whether a value is of a set
MEMBER = 6


def _tensor(c: Call, name: str) -> np.ndarray:
    return np.asarray(numpy_helper.to_array(c.attr(name)))


# ---- Trees ----------------------------------------------------------------------------------------------------------


def _conditions(c: Call, x: Array) -> Array:
    """[rows, nodes]: whether each node sends each row to its true branch."""
    modes, splits = _tensor(c, "nodes_modes"), _tensor(c, "nodes_splits")
    values = x.take(c.body.constant(np.array(c.attr("nodes_featureids"), np.int64)), 1)
    result = c.body.full(values.shape, False, boolean)
    for number, direction in enumerate(MODES):
        if (modes == number).any():
            own = c.body.constant(modes == number).unsqueeze(0)
            result = where(own, values.compare(direction, c.body.constant(splits, x.dtype).unsqueeze(0)), result)
    sets = _sets(c) if (modes == MEMBER).any() else []
    for node, members in zip(np.flatnonzero(modes == MEMBER), sets):
        inside = values.at(1, int(node)).unsqueeze(1).compare("eq", c.body.constant(members, x.dtype).unsqueeze(0))
        own = c.body.constant(np.arange(len(modes)) == node).unsqueeze(0)
        result = where(own, inside.reduce("or", [1], True), result)
    missing = np.array(c.attr("nodes_missing_value_tracks_true") or [0] * len(modes), bool)
    return where(values.compare("ne", values), c.body.constant(missing).unsqueeze(0), result)


def _sets(c: Call) -> list[np.ndarray]:
    """The members of each node that has a set: one after another, a NaN behind each."""
    found: list[list[float]] = [[]]
    for value in _tensor(c, "membership_values").reshape(-1):
        if np.isnan(value):
            found.append([])
        else:
            found[-1].append(float(value))
    return [np.array(members) for members in found if members]


def _paths(c: Call, root: int) -> list[tuple[int, dict[int, bool]]]:
    """(leaf, {node: the branch taken}) of every leaf of a tree."""
    follow = [(c.attr(f"nodes_{way}nodeids"), c.attr(f"nodes_{way}leafs"), way == "true") for way in ("true", "false")]
    ways: list[tuple[int, dict[int, bool]]] = []
    waiting: list[tuple[int, dict[int, bool]]] = [(root, {})]
    while waiting:
        node, path = waiting.pop()
        for ids, leaves, taken in follow:
            longer = path | {node: taken}
            (ways if leaves[node] else waiting).append((ids[node], longer))
        if all(ids[node] == follow[0][0][node] and leaves[node] for ids, leaves, _ in follow):
            ways = [*ways[:-2], (ids[node], path)]  # a tree that is one leaf is a node whose branches are the same
    return ways


def tree_ensemble(c: Call) -> Array:
    """A leaf is reached where all conditions on its path hold: those that do are counted by one product."""
    x = c.x(0)
    holds = _conditions(c, x).astype(x.dtype)
    ways = [w for root in c.attr("tree_roots") for w in _paths(c, root)]
    signs, constant = np.zeros((len(c.attr("nodes_featureids")), len(ways))), np.zeros(len(ways))
    for i, (_, path) in enumerate(ways):
        for node, taken in path.items():
            signs[node, i] = 1 if taken else -1
            constant[i] += not taken
    depth = np.array([len(path) for _, path in ways])
    count = matmul(holds, c.body.constant(signs, x.dtype)) + c.body.constant(constant, x.dtype)
    reached = count.compare("eq", c.body.constant(depth, x.dtype).broadcast_to(count.shape))
    leaves = [leaf for leaf, _ in ways]
    weights = _tensor(c, "leaf_weights").astype(np.float64)[leaves]
    targets = np.array(c.attr("leaf_targetids"))[leaves]
    return _transformed(c, _aggregated(c, reached, weights, targets, x))


def _aggregated(c: Call, reached: Array, weights: np.ndarray, targets: np.ndarray, x: Array) -> Array:
    kind, count = ("average", "sum", "min", "max")[c.attr("aggregate_function", 1)], c.attr("n_targets") or 1
    if kind in ("average", "sum"):
        table = np.where(targets[:, None] == np.arange(count), weights[:, None], 0)
        total = matmul(reached.astype(x.dtype), c.body.constant(table, x.dtype))
        return total / float(len(c.attr("tree_roots"))) if kind == "average" else total
    columns = []
    for target in range(count):
        own = np.flatnonzero(targets == target)
        if not len(own):
            columns.append(c.body.full(reached.shape[:1], 0, x.dtype))
            continue
        chosen = reached.take(c.body.constant(own.astype(np.int64)), 1)
        values = c.body.constant(weights[own], x.dtype).broadcast_to(chosen.shape)
        columns.append(where(chosen, values, np.inf if kind == "min" else -np.inf).reduce(kind, [1]))
    return stack(columns, 1)


def _transformed(c: Call, y: Array) -> Array:
    kind = c.attr("post_transform", 0)
    if kind not in (0, 1, 2):
        raise c.error("only the transforms none, softmax and logistic are supported; apply another after the model")
    return y if kind == 0 else y.softmax(1) if kind == 1 else y.logistic()


# ---- n-grams --------------------------------------------------------------------------------------------------------


def _grams(c: Call) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(length, [grams, length], where each is counted) of the pool: grams of one item first, then of two, …"""
    pool, starts = np.array(c.attr("pool_int64s"), np.int64), [*c.attr("ngram_counts"), len(c.attr("pool_int64s"))]
    places, found, first = np.array(c.attr("ngram_indexes")), [], 0
    for length, (begin, end) in enumerate(zip(starts, starts[1:]), 1):
        count = (end - begin) // length
        found.append((length, pool[begin:end].reshape(count, length), places[first : first + count]))
        first += count
    return found


def count_grams(c: Call) -> Array:
    """How often each n-gram of the pool stands in a row, or whether it does, times its weight."""
    if not c.attr("pool_int64s"):
        raise c.error("strings are not computed with: give it numbers, and a pool of numbers")
    x = c.x(0).astype(i64)
    rows = x if x.rank == 2 else x.reshape(1, -1)
    size = rows.shape[1]
    if not isinstance(size, int):
        raise c.error("the number of items in a row must be fixed; export with a fixed one")
    width = max(c.attr("ngram_indexes")) + 1
    total = c.body.full((rows.shape[0], width), 0, f32)
    for length, grams, places in _grams(c):
        if not c.attr("min_gram_length") <= length <= c.attr("max_gram_length") or not len(grams):
            continue
        spread = (places[:, None] == np.arange(width)).astype(np.float32)
        for step in range(1, 2 if length == 1 else c.attr("max_skip_count") + 2):
            if (count := size - step * (length - 1)) < 1:
                break
            total = total + matmul(_counted(rows, grams, step, count), c.body.constant(spread))
    if c.attr("mode") != "TF":
        total = where(total > 0, total.like(1.0), total) if c.attr("mode") == "IDF" else total
        weights = c.attr("weights")
        total = total * c.body.constant(np.array(weights, np.float32)[_by_place(c)]) if weights else total
    return total if x.rank == 2 else total.reshape(width)


def _counted(rows: Array, grams: np.ndarray, step: int, count: int) -> Array:
    """[rows, grams]: in how many places the items of a gram stand, `step` apart."""
    same: Any = None
    for k in range(grams.shape[1]):
        items = rows.slice(1, k * step, k * step + count).unsqueeze(2)
        equal = items.compare("eq", rows.body.constant(grams[:, k]).reshape(1, 1, -1))
        same = equal if same is None else same & equal
    return same.astype(f32).sum(1)  # type: ignore[no-any-return]


def _by_place(c: Call) -> Sequence[int]:
    """For each place of the result, the weight's number."""
    indexes = list(c.attr("ngram_indexes"))
    return [indexes.index(i) if i in indexes else 0 for i in range(max(indexes) + 1)]


CLASSICAL: Mapping[str, Rule] = {
    "Binarizer": lambda c: (c.x() > c.attr("threshold")).astype(c.x().dtype),
    "ArrayFeatureExtractor": lambda c: c.x(0).take(c.x(1).reshape(-1), -1),
    "TreeEnsemble": tree_ensemble,
}  # of the domain ai.onnx.ml
GRAMS: Mapping[str, Rule] = {"TfIdfVectorizer": count_grams}
