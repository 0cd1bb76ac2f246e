"""Tasks that belong together: when one ends, all end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

logger = logging.getLogger(__name__)


def spawn(coroutine: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    return asyncio.create_task(coroutine, name=name)


async def first_of(tasks: list[asyncio.Task[Any]]) -> None:
    """Wait until one of the tasks ends, and cancel the others. Raises the error of that task."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        logger.info("part ended", extra={"part": task.get_name()})
        task.result()
