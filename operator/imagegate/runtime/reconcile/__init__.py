"""The control loop: observe, decide and act, one key at a time."""
