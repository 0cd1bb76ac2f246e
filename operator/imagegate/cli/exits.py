"""The exit statuses of all commands (docs/cli.md)."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
"""The command could not do its work, or the answer is no: the message says which."""
USAGE: Final = 2
"""The command line is wrong. Nothing was done."""
RELEASED: Final = 3
"""`watchdog` has released nodes."""
TIMEOUT: Final = 4
"""`wait` has waited for the whole timeout."""
INTERRUPTED: Final = 130
"""Ctrl-C, as a shell reports it: 128 and the number of SIGINT."""
