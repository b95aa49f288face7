"""What ranks send each other in each phase of gradual unfreezing, and what the callbacks cost.

    python benchmarks/communication.py            # a few minutes
    python benchmarks/communication.py --quick    # seconds, only to see that it runs

Processes on this machine (gloo) train the same encoder twice: once with DDP's own exchange, which
sends zeros for what is frozen, and once as FreezeScheduler sets it up. Bytes are those given to
all-reduce by one rank in a step; times are medians over a phase's steps of rank 0, the first two
left out. The shares are the time inside the scheduler's hooks and inside the guard's checks,
divided by the time of the step they belong to. A full run on two ranks is saved as
benchmarks/results/communication.json, from which readme_tables.py writes the table of
docs/distributed.md.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
import torch.distributed as dist
from machine import in_words, machine
from rich import box
from rich.console import Console
from rich.table import Table
from speed import RESULTS, SCRATCH
from torch import Tensor, nn

from lstm_freeze import BiLSTM, FrozenGuard, param_groups
from lstm_freeze.callbacks import GradualUnfreezing

LIMIT = timedelta(minutes=10)
PHASES = 4


class Size(NamedTuple):
    """B sequences a rank and step, of T tokens of I numbers, through L layers of H."""

    B: int
    T: int
    I: int
    H: int
    L: int = 2
    steps: int = 8


FULL, QUICK = Size(16, 40, 256, 256), Size(2, 3, 4, 4, steps=4)


class Model(L.LightningModule):
    """A projection and a BiLSTM under a head."""

    def __init__(self, size: Size) -> None:
        """Begin with the same weights on every rank."""
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(
            nn.Linear(size.I, size.I), BiLSTM(size.I, size.H, size.L, batch_first=True)
        )
        self.head = nn.Linear(2 * size.H, 2)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        """The loss of a batch."""
        return nn.functional.cross_entropy(self.head(self.encoder(batch[0])[0].mean(1)), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Every parameter."""
        return torch.optim.AdamW(param_groups(self, lr=1e-3))


class Step(NamedTuple):
    """One step: its phase, what trained, bytes sent, seconds, and seconds in our code."""

    phase: int
    trainable: int
    sent: int
    seconds: float
    scheduler: float
    guard: float


class Meter(L.Callback):
    """Counts bytes and seconds; with `plain`, has DDP send all it would without this library."""

    def __init__(self, plain: bool, scheduler: GradualUnfreezing) -> None:
        """Time the scheduler's hooks and the guard's checks from now on."""
        self.plain, self.scheduler = plain, scheduler
        self.steps: list[Step] = []
        self.spent: dict[str, float] = defaultdict(float)
        self.sent = 0
        for hook in ("on_train_batch_start", "on_train_batch_end", "on_train_epoch_start"):
            setattr(scheduler, hook, self._timed(getattr(scheduler, hook), "scheduler"))
        FrozenGuard.check = self._timed(FrozenGuard.check, "guard")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count what is all-reduced."""
        send = dist.all_reduce

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sent += tensor.nbytes * (tensor.numel() > 1)
            return send(tensor, *args, **kwargs)

        def whole(group, bucket):
            self.sent += bucket.buffer().nbytes
            bucket.buffer().div_(group.size())
            future = send(bucket.buffer(), group=group, async_op=True).get_future()
            return future.then(lambda done: done.value()[0])

        if self.plain:
            trainer.model.register_comm_hook(trainer.model.process_group, whole)
        else:
            dist.all_reduce = counted

    def on_train_batch_start(self, *args: Any) -> None:
        """A step begins."""
        self.sent, self.began = 0, time.perf_counter()
        self.spent.clear()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        """It ends."""
        seconds = time.perf_counter() - self.began
        trainable = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
        spent = self.spent["scheduler"], self.spent["guard"]
        self.steps.append(Step(self.scheduler.phase, trainable, self.sent, seconds, *spent))

    def _timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            result = function(*args)
            self.spent[name] += time.perf_counter() - began
            return result

        return timed


def train(rank: int, ranks: int, folder: str, size: Size, plain: bool) -> None:
    """One rank's fit; leaves its steps in the folder."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    store = f"file://{folder}/store{plain}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks, timeout=LIMIT)
    scheduler = GradualUnfreezing()
    meter = Meter(plain, scheduler)
    count = size.B * ranks * size.steps
    rows = torch.utils.data.TensorDataset(
        torch.randn(count, size.T, size.I), torch.randint(2, (count,))
    )
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
    L.Trainer(
        accelerator="cpu",
        strategy="ddp_find_unused_parameters_true",
        devices=ranks,
        max_epochs=PHASES,
        callbacks=[meter, scheduler],
        **dict.fromkeys(quiet, False),
    ).fit(Model(size), torch.utils.data.DataLoader(rows, size.B))
    torch.save([tuple(step) for step in meter.steps], Path(folder, f"{plain}{rank}.pt"))
    dist.destroy_process_group()


def measure(ranks: int, size: Size, plain: bool) -> dict[int, list[Step]]:
    """Phase -> steps of rank 0 without the first two."""
    context = multiprocessing.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=train, args=(rank, ranks, folder, size, plain))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(LIMIT.total_seconds())
            process.kill()
        found: list[list[Step]] = [
            [Step(*step) for step in torch.load(Path(folder, f"{plain}{rank}.pt"))]
            for rank in range(ranks)
        ]
    if any([s.sent for s in steps] != [s.sent for s in found[0]] for steps in found):
        raise SystemExit("the ranks sent different numbers of bytes; the table would mean nothing")
    phases: dict[int, list[Step]] = defaultdict(list)
    for step in found[0]:
        phases[step.phase].append(step)
    return {phase: steps[2:] for phase, steps in phases.items()}


def rows_of(plain: dict[int, list[Step]], ours: dict[int, list[Step]]) -> list[dict[str, Any]]:
    """One row a phase: bytes of a step, medians of its time and of our shares in it."""
    return [
        {
            "phase": phase,
            "trainable": steps[0].trainable,
            "alone_bytes": plain[phase][0].sent,
            "bytes": steps[0].sent,
            "alone_ms": 1e3 * statistics.median(s.seconds for s in plain[phase]),
            "ms": 1e3 * statistics.median(s.seconds for s in steps),
            "scheduler": statistics.median(s.scheduler / s.seconds for s in steps),
            "guard": statistics.median(s.guard / s.seconds for s in steps),
        }
        for phase, steps in ours.items()
    ]


def show(rows: list[dict[str, Any]], ranks: int) -> None:
    """Print a table."""
    table = Table(
        title=f"gradual unfreezing on {ranks} ranks: sent per step and rank, by phase",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in (
        *("phase", "trainable", "DDP alone, kB", "with the schedule, kB", "saved"),
        *("step alone, ms", "with, ms", "scheduler", "guard"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['phase']}",
            f"{row['trainable']:,}",
            f"{row['alone_bytes'] / 1e3:,.1f}",
            f"{row['bytes'] / 1e3:,.1f}",
            f"[bold]{1 - row['bytes'] / row['alone_bytes']:.1%}",
            f"{row['alone_ms']:.1f}",
            f"{row['ms']:.1f}",
            f"{row['scheduler']:.2%}",
            f"{row['guard']:.2%}",
        )
    console = Console()
    console = console if console.width >= 110 else Console(width=110)
    console.print(in_words(machine()))
    console.print(table)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--ranks", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, help="folder for communication.json")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    rows = rows_of(*(measure(options.ranks, size, plain) for plain in (True, False)))
    show(rows, options.ranks)
    out = options.out or (SCRATCH if options.quick or options.ranks != 2 else RESULTS)
    out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine() | {"threads": 1}, "ranks": options.ranks}
    results |= {"sizes": size._asdict(), "rows": rows}
    (out / "communication.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
