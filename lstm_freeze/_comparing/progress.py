"""Shows the progress of a comparison: with rich where it is installed, else in lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[str], None]
_EVERY_SECONDS = 10.0


def as_progress(value: Any) -> bool | Callable[[int, int], None]:
    """The value, where it is a bool or a function; else TypeError."""
    if isinstance(value, bool):
        return value
    if not callable(value):
        raise TypeError(
            f"`progress` must be a bool or a function progress(done, total), got {value!r}"
        )
    report: Callable[[int, int], None] = value
    return report


@contextmanager
def shown(progress: bool | Callable[[int, int], None], total: int) -> Iterator[Advance]:
    """A function to call, with a few words, after each of `total` scores."""
    if progress is False:
        yield lambda words: None
    elif progress is not True:
        done = 0

        def advance(words: str) -> None:
            nonlocal done
            done += 1
            progress(done, total)

        yield advance
    elif (bar := _rich_progress()) is None:
        yield _plain(total)
    else:
        with bar:
            task = bar.add_task("", total=total)
            yield lambda words: bar.update(task, advance=1, description=words)


def _rich_progress() -> Any:
    """A progress bar on stderr; None without rich."""
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:
        return None
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("scores"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _plain(total: int) -> Advance:
    """Prints a line at most every ten seconds, and at the end."""
    began = last = time.monotonic()
    done = 0

    def advance(words: str) -> None:
        nonlocal done, last
        done += 1
        now = time.monotonic()
        if done == total or now - last >= _EVERY_SECONDS:
            last = now
            print(f"{done} of {total} scores, {now - began:.0f} s: {words}", file=sys.stderr)

    return advance
