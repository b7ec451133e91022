"""Programs of torch whose sizes vary: resampling, numbers computed from sizes, axes that are multiples, experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import inferc
from inferc.errors import InfercError
from inferc.ir.interpret import interpret

torch = pytest.importorskip("torch")
from torch.export import Dim  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from inferc.compiler.frontends import torch_export  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("quick_compiler")]


class Varying(torch.nn.Module):
    """x is [n, 4, 2h, w]."""

    def forward(self, x: Any) -> Any:
        size = x.shape[2:]
        half = F.avg_pool2d(x, 2)
        patches = F.pad(x, (0, (-size[1]) % 4))
        rows = torch.tensor(size[0]).clamp(max=3).item()  # torch knows no bounds of it
        grid = torch.linspace(-1.3, 1.3, 12).reshape(1, 2, 3, 2).expand(x.shape[0], -1, -1, -1)
        return (
            x + F.interpolate(half, size=size, mode="bilinear"), F.interpolate(x, scale_factor=2.0, mode="bicubic"),
            F.interpolate(x, size=(5, 3), mode="nearest-exact"), F.interpolate(half, scale_factor=2, align_corners=True,
                                                                              mode="bilinear"),
            F.adaptive_avg_pool2d(x, (2, 3)), F.adaptive_max_pool2d(x, 1), F.grid_sample(x, grid, align_corners=False),
            F.grid_sample(x, grid, "bicubic", "border"), patches, x * size[1] ** -0.5, x[:, : x.shape[1] // 2, :rows],
        )  # fmt: skip


def _varying() -> tuple[Any, Any]:
    x = torch.randn(2, 4, 6, 9, generator=torch.Generator().manual_seed(0))
    h, w = Dim("h", min=2, max=30), Dim("w", min=5, max=60)
    return x, torch.export.export(Varying(), (x,), dynamic_shapes=({0: Dim("n", max=8), 2: 2 * h, 3: w},))


@pytest.fixture(scope="module")
def varying() -> tuple[Any, Any]:
    return _varying()


def test_sizes_that_vary(varying: tuple[Any, Any]) -> None:
    x, program = varying
    module = torch_export.opened(program).build()
    for given in (x, torch.randn(1, 4, 10, 8)):
        got = interpret(module, {"x": given.numpy()}, entry="run")
        for i, expected in enumerate(Varying()(given)):
            np.testing.assert_allclose(got[f"out{i}"], expected.numpy(), 1e-5, 1e-5, err_msg=str(i))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["c", "xla"])
def test_sizes_that_vary_when_compiled(varying: tuple[Any, Any], backend: str) -> None:
    with inferc.compile(varying[1], backend=backend) as function:
        for given in (varying[0], torch.randn(1, 4, 10, 8)):
            for a, b in zip(function(given.numpy()), Varying()(given), strict=True):
                np.testing.assert_allclose(a, b.numpy(), 1e-5, 1e-5)
        with pytest.raises(InfercError, match=r"2\*s\d+.*not of shape"):
            function(np.zeros((1, 4, 7, 8), np.float32))
        with pytest.raises(InfercError, match=r"from 2 to 30, not 31"):
            function(np.zeros((1, 4, 62, 8), np.float32))


def test_a_number_that_the_data_decide() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Any, count: Any) -> Any:
            n = count.item()
            torch._check(n >= 1)
            torch._check(n <= 4)
            return x[:n]

    program = torch.export.export(Model(), (torch.randn(4, 3), torch.tensor(2)))
    with pytest.raises(InfercError, match="slice.*the shape of its result depends on the data"):
        torch_export.opened(program).build()


def test_experts() -> None:
    """Rows by groups with matrices of their own, as exports of mixtures of experts have them."""

    class Model(torch.nn.Module):
        def forward(self, x: Any, ends: Any) -> Any:
            return torch._grouped_mm(x, self.experts.transpose(1, 2), ends)

    model = Model()
    model.register_buffer("experts", torch.randn(3, 16, 8).bfloat16())
    x, ends = torch.randn(5, 8).bfloat16(), torch.tensor([2, 2, 5], dtype=torch.int32)
    expected = model(x, ends).float().numpy()
    module = torch_export.opened(torch.export.export(model, (x, ends))).build()
    got = interpret(module, {"x": x.view(torch.uint16).numpy(), "ends": ends.numpy()}, entry="run")["out0"]
    got = torch.from_numpy(got).view(torch.bfloat16).float().numpy()
    np.testing.assert_allclose(got, expected, 0.02, 0.02)
