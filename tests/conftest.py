"""Fixtures: which device, ISA and thread counts the op tests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import softgate


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "simt", "cuda"],
        help="cpu runs everything that needs no device, another what runs on that device",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    on_cpu = config.getoption("--device") == "cpu"
    with_ptx = os.environ.get("SOFTGATE_PROOFS") != "off"

    def is_wanted(item: pytest.Item) -> bool:
        of_device = "device" in getattr(item, "fixturenames", ())
        return of_device != on_cpu and (with_ptx or not item.path.name.startswith("test_ptx"))

    config.hook.pytest_deselected(items=[item for item in items if not is_wanted(item)])
    items[:] = filter(is_wanted, items)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """What --device names."""
    return request.config.getoption("--device")


@pytest.fixture(params=softgate.isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once with the kernels of each instruction set of this CPU."""
    before = softgate.isa()
    softgate.set_isa(request.param)
    yield request.param
    softgate.set_isa(before)


@pytest.fixture
def rows_of_any_number() -> Iterator[None]:
    """avx512 instead of AMX, which rounds float products of fewer than 16 rows otherwise."""
    before = softgate.isa()
    softgate.set_isa("avx512" if before == "amx" else before)
    yield
    softgate.set_isa(before)


@pytest.fixture
def thread_counts() -> Iterator[Iterator[int]]:
    """Counts to loop over, each in force during its turn."""
    before = softgate.num_threads()

    def counts() -> Iterator[int]:
        for count in (1, 2, 3):
            softgate.set_num_threads(count)
            yield count

    yield counts()
    softgate.set_num_threads(before)
