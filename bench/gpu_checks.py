"""A pytest plugin, `-p bench.gpu_checks`, for gpu-report: stops in time and leaves a summary.

Tests run in strides over the table, so that those that a deadline leaves out are spread over it.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_timing import require_build

STRIDE = 29
LONGEST_MESSAGE = 500


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu-report")
    group.addoption("--until", type=float, default=float("inf"), help="Unix time to stop at")
    group.addoption("--every", type=int, default=1, help="run only each n-th test")
    group.addoption("--summary", type=Path, help="JSON of what happened")
    group.addoption("--build", type=Path, help="folder that softgate must come from")


def pytest_configure(config: pytest.Config) -> None:
    require_build(config.getoption("--build"))
    config.pluginmanager.register(Summary(config))


class Summary:
    def __init__(self, config: pytest.Config) -> None:
        self.path: Path = config.getoption("--summary")
        self.until: float = config.getoption("--until")
        self.every: int = config.getoption("--every")
        self.outcomes = {"passed": 0, "failed": 0, "skipped": 0}
        self.collected = 0
        self.failures: list[dict[str, str]] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        some = items[:: self.every]
        items[:] = [item for start in range(STRIDE) for item in some[start::STRIDE]]
        self.collected = len(items)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed):
            self.outcomes[report.outcome] += 1
        elif report.failed:  # in a teardown, of a test that is already counted
            self.outcomes["failed"] += 1
        if report.failed:
            message = str(report.longrepr)[-LONGEST_MESSAGE:]
            self.failures.append({"test": report.nodeid, "message": message})

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        if time.time() > self.until:
            item.session.shouldstop = "out of time"

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        content: dict[str, Any] = {
            **self.outcomes,
            "not_run": self.collected - sum(self.outcomes.values()),
            "failures": self.failures,
        }
        self.path.write_text(json.dumps(content))
