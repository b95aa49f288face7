"""Runs of all arms that take turns, an epoch each, so that what slows the machine slows them alike.

Each arm has a process of its own, since an idle one's threads would otherwise change how the
others' wait for work.
"""

from __future__ import annotations

import logging
import multiprocessing
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

import torch
from whole_runs import ARMS, QUICK_SIZES, ULMFIT, Plan, Sizes, train


class Arms:
    """A process for each arm, ready to train. They end with this process."""

    def __init__(self) -> None:
        """Start them, one after another."""
        context = multiprocessing.get_context("spawn")
        self._connections: dict[str, Connection] = {}
        for arm in ARMS:
            ours, theirs = context.Pipe()
            args = (theirs, arm, torch.get_num_threads())
            context.Process(target=_serve, args=args, daemon=True).start()
            theirs.close()  # so that a process that fails is heard of
            ours.recv()  # it has warmed up: nothing loads while another arm is timed
            self._connections[arm] = ours

    def train(self, plan: Plan, sizes: Sizes, advance: Callable[[], None]) -> list[dict[str, Any]]:
        """What `train` returns of each arm; calls `advance` after each epoch of each."""
        return take_turns(self._connections, (plan, sizes), advance)


def take_turns(
    connections: Mapping[str, Connection], job: object, advance: Callable[[], None]
) -> list[dict[str, Any]]:
    """Give each the job, then the turn round by round; None is an epoch, all else the result."""
    message, waiting = job, dict(connections)
    found: dict[str, dict[str, Any]] = {}
    while waiting:
        for arm, connection in list(waiting.items()):
            connection.send(message)
            result = connection.recv()
            if result is None:
                advance()
            else:
                found[arm] = result
                del waiting[arm]
        message = "your turn"
    return [found[arm] for arm in connections]


def _serve(connection: Connection, arm: str, threads: int) -> None:
    """Train by one plan after another; in each message the turn comes back."""
    torch.set_num_threads(threads)
    quieten()
    train(arm, ULMFIT._replace(epochs=4), QUICK_SIZES)

    def pass_on() -> None:
        connection.send(None)
        connection.recv()

    connection.send("ready")
    while (message := _received(connection)) is not None:
        plan, sizes = message
        connection.send(train(arm, plan, sizes, epoch_ended=pass_on))


def _received(connection: Connection) -> tuple[Plan, Sizes] | None:
    try:
        found: tuple[Plan, Sizes] = connection.recv()
    except EOFError:  # nobody asks any more
        return None
    return found


def quieten() -> None:
    """Turn off what Lightning says of each run."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")
