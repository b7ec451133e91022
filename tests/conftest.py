"""What test files share: golden files, which --update-golden writes, and a C compiler that is quick."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inferc.backends.c import toolchain

GOLDEN = Path(__file__).parent / "golden"


class PlainRoot:
    """The root is collected as a folder, not as a package, so that a checkout may have any name, with dashes too."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == Path(__file__).parent.parent else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(PlainRoot())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak-seconds", type=int, default=2, help="how long the tests of test_soak.py go on")
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)` asserts that `text` is what the file tests/golden/NAME holds."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing: run pytest with --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs: run with --update-golden and read the diff"

    return check


@pytest.fixture(scope="module")
def quick_compiler() -> Iterator[tuple[str, ...]]:
    """A module's tests compile at -O1, and are told the usual flags: optimisation changes no bits, as
    `test_full_optimisation` says."""
    with pytest.MonkeyPatch.context() as patch:
        flags = toolchain.FLAGS
        patch.setattr(toolchain, "FLAGS", (*flags, "-O1"))
        yield flags
