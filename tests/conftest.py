"""The fixtures of the real cluster, and what holds for every test."""

import hypothesis

pytest_plugins = ["tests.cluster.fixtures"]

# A slow machine is no defect of a test.
hypothesis.settings.register_profile(
    "imagegate", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("imagegate")
