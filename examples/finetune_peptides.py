"""Fine-tunes a pretrained protein encoder on few labelled peptides in four ways, and compares them.

A BiLSTM that alphaPredict trained on protein structures learns to tell antimicrobial peptides from
others: from scratch, on top of the frozen encoder, with everything trainable at once, and with
gradual unfreezing and discriminative learning rates (for each layer further down, the rate of the
one above / 2.6; ULMFiT, arXiv 1801.06146). Whatever is frozen is compared bit for bit after every
optimizer step.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")

import pytorch_lightning as pl
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from peptides import Peptide, Split, collate, load_encoder, split_peptides
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC

from lstm_freeze import FreezeSchedule, param_groups, replace_lstm, select
from lstm_freeze.callbacks import FreezeScheduler, FrozenWeightsCheck

EPOCHS = 12
EPOCHS_A_PHASE = 3
BATCH_SIZE = 16


class PeptideClassifier(pl.LightningModule):
    """A pretrained BiLSTM under a linear head that says whether a peptide is antimicrobial."""

    def __init__(self, pretrained: bool, lr: float, layer_decay: float) -> None:
        """Build the head around alphaPredict's encoder, with its weights or with fresh ones."""
        super().__init__()
        self.encoder, _ = load_encoder("V6")
        if not pretrained:
            self.encoder.reset_parameters()
        replace_lstm(self)
        self.head = nn.Linear(2 * self.encoder.hidden_size, 1)
        self.lr = lr
        self.layer_decay = layer_decay
        metrics = MetricCollection({"accuracy": BinaryAccuracy(), "auroc": BinaryAUROC()})
        self.val_metrics = metrics.clone(prefix="val_")
        self.test_metrics = metrics.clone(prefix="test_")

    def forward(self, peptides: PackedSequence) -> Tensor:
        """The logits (B,) of B packed peptides."""
        _, (h_n, _) = self.encoder(peptides)
        return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1)).squeeze(1)

    def training_step(self, batch: tuple[PackedSequence, Tensor]) -> Tensor:
        """The loss of a batch."""
        peptides, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self(peptides), labels.float())

    def validation_step(self, batch: tuple[PackedSequence, Tensor]) -> None:
        """Count a batch in the validation metrics."""
        self._measure(self.val_metrics, batch)

    def test_step(self, batch: tuple[PackedSequence, Tensor]) -> None:
        """Count a batch in the test metrics."""
        self._measure(self.test_metrics, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over every parameter, frozen ones too, so that they can be unfrozen later."""
        groups = param_groups(self, self.lr, layer_decay=self.layer_decay, weight_decay=0.01)
        return torch.optim.AdamW(groups)

    def _measure(self, metrics: MetricCollection, batch: tuple[PackedSequence, Tensor]) -> None:
        peptides, labels = batch
        metrics.update(self(peptides).sigmoid(), labels)
        self.log_dict(metrics, batch_size=len(labels))


class Method(NamedTuple):
    """One way to train: where the encoder starts, what trains when, and at which rates."""

    title: str
    color: str
    line: str
    pretrained: bool
    schedule: Callable[[nn.Module], FreezeSchedule]
    lr: float
    layer_decay: float = 1.0


def _everything(_: nn.Module) -> FreezeSchedule:
    return FreezeSchedule({0: ["*"]})


def _only_the_head(_: nn.Module) -> FreezeSchedule:
    return FreezeSchedule({0: ["head"]})


def _gradual(module: nn.Module) -> FreezeSchedule:
    return FreezeSchedule.gradual_unfreezing(module, every=EPOCHS_A_PHASE)


# Each rate is the one of 0.003, 0.01, 0.02 and 0.03 with the best validation accuracy after the
# last epoch, over the seeds 10 to 12. The colours are Okabe and Ito's; with the line styles they
# differ for every kind of colour vision.
METHODS = {
    "scratch": Method("from scratch", "#E69F00", ":", False, _everything, lr=0.01),
    "frozen": Method("frozen encoder", "#009E73", "-.", True, _only_the_head, lr=0.03),
    "full": Method("full fine-tuning", "#56B4E9", "--", True, _everything, lr=0.03),
    "gradual": Method(
        "gradual unfreezing", "#D55E00", "-", True, _gradual, lr=0.01, layer_decay=1 / 2.6
    ),
}
PARTS = {"head": "head", "layer 1": "encoder[1]", "layer 0": "encoder[0]"}


@dataclass
class Run:
    """What one training showed, epoch by epoch, and its result on the test peptides."""

    val: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    test: dict[str, float] = field(default_factory=dict)
    trainable: list[int] = field(default_factory=list)
    parts: list[set[str]] = field(default_factory=list)
    steps: int = 0
    checked: int = 0
    seconds: float = 0.0


class Recorder(pl.Callback):
    """Writes into a `Run` what happens, and moves the progress bar on."""

    def __init__(self, run: Run, check: FrozenWeightsCheck, advance: Callable[[], None]) -> None:
        """Remember where to read and to write."""
        self.run = run
        self.check = check
        self.advance = advance
        self.checks_before = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Record what trained in this epoch, and the validation metrics after it."""
        self.run.trainable.append(sum(p.numel() for p in module.parameters() if p.requires_grad))
        trains = {p for p in module.parameters() if p.requires_grad}
        if len(trains) < len(list(module.parameters())):
            self.run.checked += self.check.checks - self.checks_before
        self.checks_before = self.check.checks
        self.run.parts.append(
            {name for name, path in PARTS.items() if trains & {*select(module, path).values()}}
        )
        for name in ("accuracy", "auroc"):
            self.run.val[name].append(float(trainer.callback_metrics[f"val_{name}"]))
        self.advance()


def train(method: Method, seed: int, data: Split, epochs: int, advance: Callable[[], None]) -> Run:
    """Train one model by one method, and test it once, after the last epoch."""
    pl.seed_everything(seed, verbose=False)
    module = PeptideClassifier(method.pretrained, method.lr, method.layer_decay)
    run = Run()
    check = FrozenWeightsCheck(every_n_steps=1)
    trainer = pl.Trainer(
        accelerator="cpu",  # the encoder is small: a GPU would be no faster
        max_epochs=epochs,
        callbacks=[FreezeScheduler(method.schedule), check, Recorder(run, check, advance)],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
    )
    batches = DataLoader(data.train, BATCH_SIZE, shuffle=True, collate_fn=collate)
    began = time.perf_counter()
    trainer.fit(module, batches, _in_batches(data.val))
    run.seconds = time.perf_counter() - began
    run.steps = trainer.global_step
    results = trainer.test(module, _in_batches(data.test), verbose=False)[0]
    run.test = {name.removeprefix("test_"): value for name, value in results.items()}
    return run


def report(runs: dict[str, list[Run]]) -> Table:
    """The comparison as a table, a row for each method."""
    count = len(next(iter(runs.values())))
    over = "one seed" if count == 1 else f"mean ± standard deviation over {count} seeds"
    table = Table(
        title=f"Test peptides, in percent: {over}",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        caption="steps checked: every frozen weight compared bit for bit after the step",
    )
    table.add_column("method")
    for title in ("accuracy", "AUROC", "trainable\nfrom epoch", "steps\nchecked", "seconds\na run"):
        table.add_column(title, justify="right")
    for key, results in runs.items():
        first = results[0]
        table.add_row(
            METHODS[key].title,
            _spread([100 * run.test["accuracy"] for run in results]),
            _spread([100 * run.test["auroc"] for run in results]),
            "\n".join(f"{epoch}: {count:>6,}" for epoch, count in _changes(first.trainable)),
            f"{sum(run.checked for run in results)} of {sum(run.steps for run in results)}",
            f"{statistics.mean(run.seconds for run in results):.1f}",
        )
    return table


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """Write the figure: what trained when, above the validation accuracy over the epochs."""
    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 7), height_ratios=(3, 4), layout="constrained"
    )
    _draw_timeline(above, runs)
    _draw_curves(below, runs)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _draw_timeline(axes: Axes, runs: dict[str, list[Run]]) -> None:
    ticks = []
    for place, (key, results) in enumerate(runs.items()):
        for row, part in enumerate(PARTS):
            y = place * (len(PARTS) + 1) + row
            ticks.append((y, part))
            trains = [part in parts for parts in results[0].parts]
            axes.broken_barh(
                [(epoch, 1) for epoch in range(len(trains))],
                (y - 0.42, 0.84),
                facecolors=[METHODS[key].color if on else "#E4E4E4" for on in trains],
                edgecolors="white",
            )
        label = METHODS[key].title.replace(" ", "\n")
        axes.text(1.01, ticks[-2][0], label, transform=axes.get_yaxis_transform(), va="center")
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title("What trains (coloured) and what is frozen (grey)", loc="left")


def _draw_curves(axes: Axes, runs: dict[str, list[Run]]) -> None:
    for key, results in runs.items():
        method = METHODS[key]
        curves = torch.tensor([run.val["accuracy"] for run in results]) * 100
        ends = range(1, curves.shape[1] + 1)
        low, high = curves.amin(0), curves.amax(0)
        axes.fill_between(ends, low, high, color=method.color, alpha=0.15, linewidth=0)
        axes.plot(ends, curves.mean(0), method.line, color=method.color, lw=2, label=method.title)
    axes.set_xlim(0, curves.shape[1])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epochs trained")
    axes.set_ylabel("validation accuracy, %")
    axes.grid(axis="y", color="#E4E4E4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=2, handlelength=3)
    count = len(next(iter(runs.values())))
    of = "one seed" if count == 1 else f"mean of {count} seeds, and their range"
    axes.set_title(f"Validation accuracy: {of}", loc="left")


def _in_batches(peptides: Sequence[Peptide]) -> DataLoader:
    # By length: a batch takes as many time steps as its longest peptide.
    ordered = sorted(peptides, key=lambda peptide: len(peptide.sequence))
    chunks = [ordered[start : start + 550] for start in range(0, len(ordered), 550)]
    return DataLoader([collate(chunk) for chunk in chunks], batch_size=None)


def _changes(values: list[int]) -> list[tuple[int, int]]:
    pairs = zip([None, *values], values, strict=False)
    return [(epoch, new) for epoch, (old, new) in enumerate(pairs) if old != new]


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _quieten_lightning() -> None:
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # The data set is in memory and the batches are small: workers would only add start-up time.
    warnings.filterwarnings("ignore", message=".*does not have many workers")
    # Lightning 2.6 uses what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=_positive, default=3, help="seeds a method (default: 3)")
    parser.add_argument(
        "--method", nargs="+", choices=METHODS, default=[*METHODS], help="methods (default: all)"
    )
    parser.add_argument(
        "--epochs", type=_positive, default=EPOCHS, help=f"epochs a run (default: {EPOCHS})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for the figure (default: out)"
    )
    options = parser.parse_args(arguments)
    _quieten_lightning()
    torch.set_num_threads(1)  # the encoder is too small for more to help

    console = Console()
    data = split_peptides()
    console.print(
        f"Peptides: {len(data.train)} to train on, {len(data.val):,} for validation, "
        f"{len(data.test):,} for the test."
    )
    runs: dict[str, list[Run]] = {}
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn())
    with Progress(TextColumn("{task.description:<18}"), *columns, console=console) as progress:
        task = progress.add_task("", total=len(options.method) * options.seeds * options.epochs)
        for key in options.method:
            progress.update(task, description=METHODS[key].title)
            runs[key] = [
                train(METHODS[key], seed, data, options.epochs, lambda: progress.advance(task))
                for seed in range(options.seeds)
            ]
    options.out.mkdir(parents=True, exist_ok=True)
    figure = options.out / "finetune_peptides.png"
    draw(runs, figure)
    console.print("", report(runs), "", sep="\n")
    console.print(f"Figure: {figure}", soft_wrap=True)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
