"""The cache of test images keeps used layouts and deletes unused layouts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cluster import images


def test_layouts_that_are_unused_for_a_week_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEGATE_CACHE", str(tmp_path))
    monkeypatch.setattr(images, "_program", lambda _: b"a program")
    used = images.build("tiny", seed=1)
    folder = used.parent
    old, young = folder / "tiny-1-0123456789abcdef", folder / "tiny-2-0123456789abcdef"
    for layout, days in ((old, 8), (young, 6), (used, 8)):
        layout.mkdir(exist_ok=True)
        at = time.time() - days * 86400
        os.utime(layout, (at, at))
    assert images.build("tiny", seed=1) == used, "build() marks the layout as used"
    images.build("tiny", seed=3)
    assert not old.exists()
    assert young.exists()
    assert used.exists()
