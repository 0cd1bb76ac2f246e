"""The fixtures of the real cluster, and what holds for every test."""

import logging
from collections.abc import Iterator

import hypothesis
import pytest

pytest_plugins = ["tests.cluster.fixtures"]

# A slow machine is no defect of a test.
hypothesis.settings.register_profile(
    "imagegate", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("imagegate")


@pytest.fixture(autouse=True)
def log_levels() -> Iterator[None]:
    """A command that a test runs in this process sets levels: no other test may see that."""
    loggers = logging.getLogger(), logging.getLogger("kopf")
    before = [each.level for each in loggers]
    yield
    for each, level in zip(loggers, before, strict=True):
        each.setLevel(level)
