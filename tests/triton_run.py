"""Triton's IR in NumPy, as far as our kernels use it: every program of a grid, one after another.

Written from what the operations mean, apart from the code that writes kernels, so that a kernel's numbers can be
checked where there is no GPU. A load outside its array, or a store twice to one element, is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {
    "i1": np.bool_, "i8": np.uint8, "i32": np.int32, "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f32": np.float32,
}  # fmt: skip
SIGNED = {"i8": np.int8, "i32": np.int32}
COMPARE: Mapping[str, Callable[..., np.ndarray]] = {
    "eq": np.equal, "ne": np.not_equal, "slt": np.less, "ult": np.less, "sgt": np.greater, "ugt": np.greater,
    "sge": np.greater_equal, "sle": np.less_equal,
}  # fmt: skip
ARITH: Mapping[str, Callable[..., np.ndarray]] = {
    "addf": np.add, "addi": np.add, "subf": np.subtract, "subi": np.subtract, "mulf": np.multiply, "muli": np.multiply,
    "maxnumf": np.fmax, "minnumf": np.fmin, "maxsi": np.maximum, "minsi": np.minimum, "negf": np.negative,
    "andi": np.bitwise_and, "ori": np.bitwise_or, "shli": np.left_shift, "shrui": np.right_shift,
}  # fmt: skip
LINE = re.compile(r"(?:(%\d+) = )?([\w.]+)(.*)")


def parsed(text: str) -> tuple[tuple[int, ...], str]:
    """Shape and element of a type; of pointers, the element is theirs."""
    inside = text.strip()
    if inside.startswith("tensor<"):
        inside = inside[len("tensor<") : -1]
        *sizes, element = re.split(r"x(?![^<]*>)", inside)
        return tuple(map(int, sizes)), element.removeprefix("!tt.ptr<").rstrip(">")
    return (), inside.removeprefix("!tt.ptr<").rstrip(">")


class Program:
    """One program of a grid: the values of names, and the arrays that pointers point to."""

    def __init__(self, at: Mapping[str, int], pointers: Mapping[str, np.ndarray], written: np.ndarray) -> None:
        self.at, self.written = at, written
        self.values: dict[str, Any] = {name: (array, np.int64(0)) for name, array in pointers.items()}

    def run(self, lines: Sequence[str]) -> Any:
        """The value of the last line's `scf.yield`, if it is one."""
        i = 0
        while i < len(lines):
            line = lines[i]
            if "scf.for" in line:
                depth, end = 1, i
                while depth:
                    end += 1
                    depth += lines[end].endswith("{") - (lines[end] == "}")
                self._loop(line, lines[i + 1 : end])
                i = end + 1
                continue
            if line.startswith("scf.yield"):
                return self.values[line.split()[1]]
            self._operation(line)
            i += 1
        return None

    def _loop(self, line: str, body: Sequence[str]) -> None:
        result, index, low, high, step, carried, first = re.findall(r"%\d+", line)
        start, stop, by = (int(self.values[n]) for n in (low, high, step))
        value = self.values[first]
        for i in range(start, stop, by):
            self.values[index], self.values[carried] = np.int32(i), value
            value = self.run(body)
        self.values[result] = value

    def _operation(self, line: str) -> None:
        match = LINE.fullmatch(line)
        assert match, line
        name, op, rest = match.groups()
        types = rest[rest.rindex(" : ") + 3 :] if " : " in rest else ""
        operands = [self.values[n] for n in re.findall(r"%\d+", rest)]
        value = self._value(op, rest, types, operands)
        if name:
            self.values[name] = value

    def _value(self, op: str, rest: str, types: str, operands: Sequence[Any]) -> Any:
        family, word = op.split(".")
        if family == "arith":
            return self._arith(word, rest, types, operands)
        result = types.split("->")[-1]
        match word:
            case "get_program_id":
                return np.int32(self.at[rest.split()[0]])
            case "make_range":
                return np.arange(parsed(result)[0][0], dtype=np.int32)
            case "splat" if isinstance(operands[0], tuple):
                return operands[0][0], np.full(parsed(result)[0], operands[0][1])
            case "splat":
                return np.full(parsed(result)[0], operands[0])
            case "expand_dims" | "reshape":
                return operands[0].reshape(parsed(result)[0])
            case "broadcast":
                return np.broadcast_to(operands[0], parsed(result)[0])
            case "trans":
                return operands[0].T
            case "bitcast":
                return np.ascontiguousarray(operands[0]).view(DTYPES[parsed(result)[1]])
            case "dot":
                a, b, total = (x.astype(np.float32) for x in operands)
                assert a.shape[1] == b.shape[0] >= 16 and min(a.shape[0], b.shape[1]) >= 16
                return total + a @ b
            case "addptr":
                (array, offset), index = operands
                return array, offset + index.astype(np.int64)
            case "load":
                array, index = operands[0]
                assert index.min() >= 0 and index.max() < array.size, "a load outside of its array"
                return array[index]
            case "store":
                (array, index), value, where = operands
                chosen = index[where]
                assert np.unique(chosen).size == chosen.size and not self.written[chosen].any(), "stored twice"
                array[chosen], self.written[chosen] = value[where], True
                return None
            case "return":
                return None
        raise AssertionError(f"no meaning for {op}")

    def _arith(self, word: str, rest: str, types: str, operands: Sequence[Any]) -> Any:
        if word == "constant":
            shape, element = parsed(types)
            number = rest.split(" : ")[0].strip().removeprefix("dense<").rstrip(">")
            return np.full(shape, float(number), np.float64).astype(DTYPES[element])
        if word == "select":
            return np.where(*operands)
        if word == "cmpi":
            return COMPARE[rest.split(",")[0].strip()](*operands)
        if word in ARITH:
            result = ARITH[word](*operands)
            assert result.dtype == operands[0].dtype, rest
            return result
        source, target = (parsed(t)[1] for t in types.split(" to "))
        x = operands[0].view(SIGNED[source]) if word in ("sitofp", "extsi") and source in SIGNED else operands[0]
        assert word in ("extf", "truncf", "uitofp", "sitofp", "extsi", "extui", "trunci"), word
        return x.astype(DTYPES[target])


def run(text: str, grid: tuple[int, int], inputs: Sequence[np.ndarray], result: tuple[int, ...]) -> np.ndarray:
    """What a kernel makes: f32 of shape `result`, every element of which it must write."""
    lines = [line.strip() for line in text.splitlines()]
    head = next(i for i, line in enumerate(lines) if line.startswith("tt.func"))
    names = re.findall(r"(%\d+): ", lines[head])
    made, written = np.zeros(np.prod(result), np.float32), np.zeros(np.prod(result), bool)
    arrays = dict(zip(names, [*(np.ascontiguousarray(a).reshape(-1) for a in inputs), made], strict=True))
    body = lines[head + 1 : lines.index("tt.return")]
    for x in range(grid[0]):
        for y in range(grid[1]):
            Program({"x": x, "y": y}, arrays, written).run(body)
    assert written.all(), "not all was written"
    return made.reshape(result)
