"""Products of packed weights for up to 64 tokens on GPUs: kernels in Triton's IR, compiled with a program.

XLA's own form for more than 8 tokens writes the widened weight to memory, and for formats with small scales, code books
or several planes it writes pieces of it for fewer tokens too. Here each program of a kernel takes ROWS rows of
the weight: it reads their packed bytes once, widens them in registers and multiplies them by all tokens. Where rows are
few, a row's blocks are shared among several programs, whose sums are added afterwards. `blocks.run_values` says what a
format's bits mean, here as everywhere: `Kernel` has the words that it uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...ir import quant
from ...ir.types import Type
from .blocks import run_values, runs_of
from .context import Value
from .parts import part_names, part_types
from .text import Shape, Tensor, Writer, literal

PLATFORMS = ("cuda", "rocm")  # whose XLA compiles them
MOST = 64  # tokens of a product
ROWS = 64  # of a program: what a warp group's matrix instruction takes
WIDTH, LEAST = 64, 16  # values of a row that are widened together, at most, and what a matrix instruction needs
PROGRAMS = 256  # at least so many where a row's blocks can be shared: two for each multiprocessor of an H100
SHARES = 8  # programs that share a row, at most
WARPS, STAGES = 4, 3
INDEX = 1 << 31  # addresses are i32

POINTER = "!tt.ptr<{}>"
# An elementwise operation of StableHLO by the dialect `arith`: of floats, and of integers.
ARITH = {
    "add": ("addf", "addi"), "subtract": ("subf", "subi"), "multiply": ("mulf", "muli"),
    "maximum": ("maxnumf", "maxsi"), "minimum": ("minnumf", "minsi"), "negate": ("negf", ""), "and": ("", "andi"),
    "or": ("", "ori"), "shift_left": ("", "shli"), "shift_right_logical": ("", "shrui"),
}  # fmt: skip
BITS = {"i1": 1, "i8": 8, "ui8": 8, "f16": 16, "bf16": 16, "i32": 32, "f32": 32}
PRECISION = {"f32": ", inputPrecision = tf32x3"}  # three products of halves of f32, which sum to f32's own precision


def spelled(element: str) -> str:
    """MLIR's integers of `arith` have no sign."""
    return element[1:] if element.startswith("u") else element


def kind(shape: Sequence[int], element: str) -> str:
    """A tensor's type, or that of a number alone."""
    return f"tensor<{''.join(f'{d}x' for d in shape)}{spelled(element)}>" if shape else spelled(element)


def typed(x: Tensor) -> str:
    return kind(x.shape, x.element)


class Kernel(Writer):
    """The body of a kernel: the methods of `Writer` that unpacking uses, in Triton's IR."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks: dict[str, tuple[Tensor, Tensor]] = {}  # packed parts by name: pointer, and index of each block
        self._loaded: dict[tuple[str, int, int], Tensor] = {}

    def constant(self, value: float | int | bool, element: str, shape: Shape = ()) -> Tensor:
        number = literal(value, element)
        text = f"dense<{number}>" if shape else number
        return self._once(f"arith.constant {text} : {kind(shape, element)}", shape, element)

    def map(self, name: str, *operands: Tensor, element: str = "") -> Tensor:
        first = operands[0]
        word = ARITH[name][0 if first.is_float else 1]
        text = f"arith.{word} {', '.join(map(str, operands))} : {typed(first)}"
        return self.assign(text, first.shape, first.element)

    def compare(self, a: Tensor, b: Tensor, direction: str) -> Tensor:
        prefix = "" if direction in ("EQ", "NE") else "u" if a.element[0] == "u" else "s"
        text = f"arith.cmpi {prefix}{direction.lower()}, {a}, {b} : {typed(a)}"
        return self.assign(text, a.shape, "i1")

    def select(self, pred: Tensor, on_true: Tensor, on_false: Tensor) -> Tensor:
        text = f"arith.select {pred}, {on_true}, {on_false} : {typed(pred)}, {typed(on_true)}"
        return self.assign(text, on_true.shape, on_true.element)

    def convert(self, x: Tensor, element: str) -> Tensor:
        if x.element == element:
            return x
        wider = BITS[element] > BITS[x.element]
        floats = x.is_float, element.startswith(("f", "bf"))
        if floats == (True, True):
            word = "extf" if wider else "truncf"
        elif floats == (False, True):
            word = "uitofp" if x.element[0] == "u" else "sitofp"
        else:
            word = "trunci" if not wider else "extui" if x.element[0] == "u" else "extsi"
        text = f"arith.{word} {x} : {typed(x)} to {kind(x.shape, element)}"
        return self.assign(text, x.shape, element)

    def bitcast(self, x: Tensor, element: str) -> Tensor:
        if spelled(x.element) == spelled(element):
            return Tensor(x.name, x.shape, element)
        return self._to("bitcast", x, x.shape, element)

    def _to(self, name: str, x: Tensor, shape: Shape, element: str, options: str = "") -> Tensor:
        return self.assign(f"tt.{name} {x}{options} : {typed(x)} -> {kind(shape, element)}", shape, element)

    def iota(self, shape: Shape, dim: int, element: str = "i32") -> Tensor:
        size = shape[dim]
        line = self._once(f"tt.make_range {{end = {size} : i32, start = 0 : i32}} : {kind((size,), 'i32')}",
                          (size,), "i32")  # fmt: skip
        return self.broadcast(self.convert(line, element), shape, (dim,))

    def broadcast(self, x: Tensor, shape: Shape, dims: Sequence[int]) -> Tensor:
        shape, dims = tuple(shape), tuple(dims)
        if not x.shape:
            return self._to("splat", x, shape, x.element)
        for axis in range(len(shape)):
            if axis not in dims:
                wider = (*x.shape[:axis], 1, *x.shape[axis:])
                x = self._to("expand_dims", x, wider, x.element, f" {{axis = {axis} : i32}}")
        return x if x.shape == shape else self._to("broadcast", x, shape, x.element)

    def reshape(self, x: Tensor, shape: Shape) -> Tensor:
        return x if x.shape == tuple(shape) else self._to("reshape", x, tuple(shape), x.element)

    def transpose(self, x: Tensor, permutation: Sequence[int]) -> Tensor:
        shape = tuple(x.shape[i] for i in permutation)
        order = ", ".join(map(str, permutation))
        return self._to("trans", x, shape, x.element, f" {{order = array<i32: {order}>}}")

    def multiply_add(self, a: Tensor, b: Tensor, total: Tensor) -> Tensor:
        """total + a × b, matrices."""
        text = f"tt.dot {a}, {b}, {total}{PRECISION.get(a.element, '')} : {typed(a)} * {typed(b)} -> {typed(total)}"
        return self.assign(text, total.shape, total.element)

    # --- Memory ---

    def program(self, axis: str) -> Tensor:
        return self.assign(f"tt.get_program_id {axis} : i32", (), "i32")

    def _addresses(self, pointer: Tensor, index: Tensor) -> tuple[Tensor, str]:
        base = self.broadcast(pointer, index.shape, ())
        text = f"tt.addptr {base}, {index} : {typed(base)}, {typed(index)}"
        return self.assign(text, base.shape, base.element), typed(base)

    def load(self, pointer: Tensor, index: Tensor, element: str) -> Tensor:
        """The elements at an index each, of memory that holds elements of the type."""
        addresses, of = self._addresses(pointer, index)
        return self.assign(f"tt.load {addresses} : {of}", index.shape, element)

    def store(self, pointer: Tensor, index: Tensor, value: Tensor, where: Tensor) -> None:
        addresses, of = self._addresses(pointer, index)
        self.line(f"tt.store {addresses}, {value}, {where} : {of}")

    def packed(self, pointer: Tensor, index: Tensor, bytes: int) -> Tensor:
        """Stands for the bytes ui8 [rows, blocks, bytes] of the blocks of an index i32 [rows, blocks]: `part` loads."""
        result = self.fresh((*index.shape, bytes), "ui8")
        self._blocks[result.name] = pointer, self.mul(index, self.splat(bytes, index))
        return result

    def part(self, x: Tensor, axis: int, start: int, limit: int) -> Tensor:
        key = x.name, start, limit
        if key not in self._loaded:
            pointer, first = self._blocks[x.name]
            shape = (*first.shape, limit - start)
            within = self.add(self.iota(shape, 2), self.constant(start, "i32", shape))
            self._loaded[key] = self.load(pointer, self.add(self.broadcast(first, shape, (0, 1)), within), "ui8")
        return self._loaded[key]

    def repeat(self, count: int, first: Tensor, body: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The last of `carried = body(i, carried)` for i from 0 to below `count`."""
        zero, one, end = (self.constant(n, "i32") for n in (0, 1, count))
        index, carried, result = self.fresh((), "i32"), self.fresh(first.shape, first.element), self.fresh((), "")
        self.line(f"{result} = scf.for {index} = {zero} to {end} step {one} iter_args({carried} = {first}) "
                  f"-> ({typed(first)}) : i32 {{")  # fmt: skip
        with self.indented():
            last = body(index, carried)
            self.line(f"scf.yield {last} : {typed(last)}")
        self.line("}")
        return Tensor(result.name, first.shape, first.element)

    def module(self, name: str, pointers: Sequence[Tensor]) -> str:
        """The kernel whose body has been written."""
        given = ", ".join(f"{p}: {p.element} {{tt.divisibility = 16 : i32}}" for p in pointers)
        lines = ["module {", f"tt.func public @{name}({given}) {{", *self.lines, "  tt.return", "}", "}"]
        return "\n".join(lines)


def power_of_two(count: int, most: int) -> int:
    """The largest power of two that divides `count` and is no more than `most`."""
    found = 1
    while found < most and count % (2 * found) == 0:
        found *= 2
    return found


def fits(t: Type, tokens: int) -> bool:
    """Whether there is a kernel for so many tokens and a weight."""
    if not t.dtype.is_block or tokens > MOST or max(p.bytes for p in part_types(t)) >= INDEX:
        return False
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    size, _ = runs_of(fmt)
    return size * _together(fmt, t.sizes[1], size) >= LEAST


def is_simple(t: Type) -> bool:
    """Whether XLA for GPUs makes one kernel of a product of few tokens: values in one plane, with a scale a block."""
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    return not fmt.codes and not fmt.scale_bits and sum(p.kind == "q" for p in fmt.parts) == 1


def _together(fmt: quant.Format, k: int, size: int) -> int:
    """How many blocks of a row are widened together."""
    return power_of_two(k // fmt.block, max(1, WIDTH // size))


def product(w: Writer, t: Type, value: Value, x: Tensor) -> Tensor:
    """x [T, K] of the dtype to multiply in, times the rows of a packed weight [N, K]: f32 [T, N]."""
    (n, _), tokens = t.sizes, x.shape[0]
    text, programs, shares = kernel(t, x.element, tokens)
    operands = (x, *value)
    result = (shares, tokens, n)
    ir = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\0A")
    config = (f'{{debug = false, grid_x = {programs} : i32, grid_y = {shares} : i32, grid_z = 1 : i32, ir = "{ir}", '
              f'name = "{NAME}", num_stages = {STAGES} : i32, num_warps = {WARPS} : i32}}')  # fmt: skip
    layouts = ", ".join(_row_major(p.rank) for p in operands)
    attributes = (f"{{api_version = 4 : i32, backend_config = {config}, operand_layouts = [{layouts}], "
                  f"result_layouts = [{_row_major(3)}]}}")  # fmt: skip
    types = f"({', '.join(p.type for p in operands)}) -> {Tensor('', result, 'f32').type}"
    call = f"stablehlo.custom_call @{TARGET}({', '.join(map(str, operands))}) {attributes} : {types}"
    return w.total(w.assign(call, result, "f32"), (0,))


TARGET, NAME = "__gpu$xla.gpu.triton", "packed_product"  # the custom call that compiles Triton's IR, and the kernel


def _row_major(rank: int) -> str:
    return f"dense<[{', '.join(map(str, reversed(range(rank))))}]> : tensor<{rank}xindex>"


def kernel(t: Type, element: str, tokens: int) -> tuple[str, int, int]:
    """The kernel's text, how many programs share out the rows, and how many each row.

    It takes x [tokens, K] of `element` and the parts of the weight, and makes f32 [shares, tokens, N].
    """
    fmt = quant.FORMATS[quant.computed(t.dtype).name]
    n, k = t.sizes
    size, run = runs_of(fmt)
    blocks = k // fmt.block
    together = _together(fmt, k, size)
    rounds, programs = blocks // together, -(-n // ROWS)
    shares = power_of_two(rounds, max(1, min(SHARES, PROGRAMS // programs)))
    columns = max(16, 1 << (tokens - 1).bit_length())  # tokens with padding: what a matrix instruction takes

    w = Kernel()
    x = w.fresh((), POINTER.format(element))
    memory = [w.fresh((), POINTER.format(spelled(p.element))) for p in part_types(t)]
    result = w.fresh((), POINTER.format("f32"))
    share = w.program("y")
    first = w.mul(w.program("x"), w.constant(ROWS, "i32"))
    row = w.add(w.broadcast(first, (ROWS,), ()), w.iota((ROWS,), 0))
    token = w.iota((columns,), 0)
    # Programs beyond the last row, and columns beyond the last token, compute those once more and write nothing.
    row_read = w.map("minimum", row, w.splat(n - 1, row))
    token_read = w.map("minimum", token, w.splat(tokens - 1, token))
    tile, wide = (ROWS, together), (columns, together, size)
    row_block = w.broadcast(w.mul(row_read, w.splat(blocks, row)), tile, (0,))
    token_value = w.broadcast(w.mul(token_read, w.splat(k, token)), wide, (0,))
    in_block = w.add(w.mul(w.iota(wide, 1), w.constant(fmt.block, "i32", wide)), w.iota(wide, 2))

    def body(i: Tensor, total: Tensor) -> Tensor:
        at = w.add(w.mul(share, w.constant(rounds // shares, "i32")), i)
        block = w.mul(at, w.constant(together, "i32"))
        index = w.add(w.add(row_block, w.iota(tile, 1)), w.broadcast(block, tile, ()))
        parts = {
            name: w.packed(p, index, part.bytes) if part.plane or part.kind == "scale" else w.load(p, index, "f16")
            for name, part, p in zip(part_names(fmt), fmt.parts, memory)
        }
        start_of = w.broadcast(w.mul(block, w.constant(fmt.block, "i32")), wide, ())
        given = w.add(w.add(token_value, in_block), start_of)
        for start in range(0, fmt.block, size):
            values = run_values(w, fmt, parts, start, size, run)
            rows = w.convert(w.reshape(values, (ROWS, together * size)), element)
            piece = w.load(x, w.add(given, w.constant(start, "i32", wide)), element)
            columns_of = w.transpose(w.reshape(piece, (columns, together * size)), (1, 0))
            total = w.multiply_add(rows, columns_of, total)
        return total

    total = w.repeat(rounds // shares, w.constant(0, "f32", (ROWS, columns)), body)
    shape = total.shape
    line = w.add(w.broadcast(w.mul(share, w.constant(tokens, "i32")), shape, ()), w.broadcast(token, shape, (1,)))
    row_index = w.broadcast(row, shape, (0,))
    index = w.add(w.mul(line, w.splat(n, line)), row_index)
    rows_end, tokens_end = w.splat(n, row_index), w.splat(tokens, row_index)
    inside = w.compare(row_index, rows_end, "LT")
    inside = w.map("and", inside, w.compare(w.broadcast(token, shape, (1,)), tokens_end, "LT"))
    w.store(result, index, total, inside)
    return w.module(NAME, [x, *memory, result]), programs, shares
