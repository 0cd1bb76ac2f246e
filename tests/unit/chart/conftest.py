import pytest

from . import programs, rendering


@pytest.fixture(scope="session")
def helm() -> rendering.Helm:
    return rendering.Helm(programs.find("helm", "IMAGEGATE_HELM"))
