"""The fixtures of the real cluster, for whoever asks for one."""

pytest_plugins = ["tests.cluster.fixtures"]
