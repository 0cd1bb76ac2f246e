"""Golden files: complete requests to the API server, so that a reviewer can read them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def check(path: Path, value: Any) -> None:
    """Compare with the file; UPDATE_GOLDEN=1 writes it instead."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; UPDATE_GOLDEN=1 if that is meant"
