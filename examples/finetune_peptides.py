"""Which way to fine-tune a pretrained protein encoder on few labelled peptides?

A BiLSTM that alphaPredict trained on protein structures learns to tell anticancer peptides from
random sequences, in several ways and from 25, 50 and 100 labelled peptides. `compare` gives every
way the same splits and seeds, chooses each one's learning rate within the train set, and says which
differences can be told from noise. Peptides of a family are never in train and in test. Whatever is
frozen is compared bit for bit after every optimizer step.

With --task antimicrobial, a second case, where the pretrained weights are of no use: peptides that
kill bacteria or not, read by the encoder's final states.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")

import numpy as np
import torch
from matplotlib import pyplot as plt
from peptides import families, load_anticancer, load_encoder, load_peptides, one_hot
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from lstm_freeze import (
    BiLSTM,
    Choice,
    Comparison,
    FreezeSchedule,
    FrozenGuard,
    add_lora,
    compare,
    param_groups,
)

SIZES = (25, 50, 100)
SPLITS = 20
PASSES = 480  # peptides trained on: 19 epochs of 25, 9 of 50, 4 of 100, at about the same cost
BATCH_SIZE = 16
OF_A_FAMILY = 10  # at most, so that no family decides about a fold
MOST = 1000  # peptides of a task, so that reading them takes seconds
RATES = Choice([0.003, 0.01])


# ---- the ways to fine-tune: what trains when


def everything(_: nn.Module, epochs: int) -> FreezeSchedule:
    """All from the first epoch on."""
    return FreezeSchedule({0: ["*"]})


def only_the_head(_: nn.Module, epochs: int) -> FreezeSchedule:
    """The head; the encoder stays frozen."""
    return FreezeSchedule({0: ["head"]})


def gradual(model: nn.Module, epochs: int) -> FreezeSchedule:
    """The head for a quarter of the epochs, then a layer more, then all."""
    return FreezeSchedule.gradual_unfreezing(model, every=max(1, epochs // 4))


def probe_then_tune(model: nn.Module, epochs: int) -> FreezeSchedule:
    """The head for a third of the epochs, then all (LP-FT)."""
    return FreezeSchedule.linear_probing(model, every=max(1, epochs // 3))


def low_rank(model: nn.Module, epochs: int) -> FreezeSchedule:
    """The head, and small updates beside the frozen weights of the encoder (LoRA)."""
    add_lora(model, "encoder", rank=4)
    return FreezeSchedule({0: ["head", "lora"]})


METHODS: dict[str, dict[str, Any]] = {
    "from scratch": {"schedule": everything, "lr": RATES, "pretrained": False},
    "frozen encoder": {"schedule": only_the_head, "lr": Choice([0.01, 0.03])},
    "full": {"schedule": everything, "lr": RATES},
    "gradual": {"schedule": gradual, "lr": Choice([0.01, 0.03]), "layer_decay": 1 / 2.6},
    "LP-FT": {"schedule": probe_then_tune, "lr": RATES},
    "LoRA": {"schedule": low_rank, "lr": Choice([0.01, 0.03])},
}
# Asked first, and of two methods only: the more methods are compared, the wider the intervals.
WORTH_IT = ("from scratch", "LP-FT")
# Markers and lines differ as well as Okabe and Ito's colours: readable in print and for every kind
# of colour vision.
LOOKS = [
    ("#000000", ":", "x"),
    ("#009E73", "-.", "s"),
    ("#56B4E9", "--", "o"),
    ("#E69F00", (0, (1, 1)), "^"),
    ("#D55E00", "-", "D"),
    ("#0072B2", (0, (5, 1, 1, 1)), "v"),
]


class Data(NamedTuple):
    """N peptides: padded residues (N, T, 20), lengths (N,), labels (N,) and families (N,).

    `mean` says what the head reads: the mean over the residues, or the encoder's final states.
    """

    residues: Tensor
    lengths: Tensor
    labels: Tensor
    families: Tensor
    mean: bool


class Classifier(nn.Module):
    """A pretrained BiLSTM, and a linear head on the mean of its outputs or on its final states."""

    def __init__(self, pretrained: bool, mean: bool) -> None:
        """Take alphaPredict's encoder over, with its weights or fresh ones; the head is new."""
        super().__init__()
        self.mean = mean
        self.encoder = BiLSTM.from_lstm(load_encoder("V6")[0])
        if not pretrained:
            self.encoder.reset_parameters()
        self.head = nn.Linear(2 * self.encoder.hidden_size, 1)

    def forward(self, residues: Tensor, lengths: Tensor) -> Tensor:
        """The logits (B,) of B padded peptides."""
        outputs, (h_n, _) = self.encoder(residues[:, : lengths.max()], lengths=lengths)
        if not self.mean:
            return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1)).squeeze(1)
        return self.head(outputs.sum(1) / lengths[:, None]).squeeze(1)


class Study:
    """The score function for `compare`, and the count of what it checked."""

    def __init__(self, data: Data, epochs: int) -> None:
        """Remember the peptides."""
        self.data = data
        self.epochs = epochs
        self.steps: Counter[str] = Counter()

    def score(
        self,
        train: np.ndarray,
        test: np.ndarray,
        seed: int,
        *,
        schedule: Callable[[nn.Module, int], FreezeSchedule],
        lr: float,
        pretrained: bool = True,
        layer_decay: float = 1.0,
    ) -> float:
        """Fine-tune on the peptides `train`; the share of `test` that is told right."""
        torch.manual_seed(seed)
        model = Classifier(pretrained, self.data.mean)
        plan = schedule(model, self.epochs)
        groups = param_groups(model, lr, layer_decay=layer_decay, weight_decay=0.01)
        optimizer = torch.optim.AdamW(groups)
        with FrozenGuard(model).attach(optimizer) as guard:
            for epoch in range(self.epochs):
                plan.apply(model, epoch, optimizer)
                before = guard.checks
                self._train_epoch(model, optimizer, torch.from_numpy(train))
                frozen = not all(p.requires_grad for p in model.parameters())
                self.steps["all"] += guard.checks - before
                self.steps["with something frozen"] += (guard.checks - before) * frozen
        with torch.no_grad():
            return self._right(model, torch.from_numpy(test))

    def _train_epoch(self, model: nn.Module, optimizer: Any, train: Tensor) -> None:
        residues, lengths, labels, *_ = self.data
        for batch in train[torch.randperm(len(train))].split(BATCH_SIZE):
            logits = model(residues[batch], lengths[batch])
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    def _right(self, model: nn.Module, test: Tensor) -> float:
        residues, lengths, labels, *_ = self.data
        said = model(residues[test], lengths[test]) > 0
        return float((said == labels[test].bool()).float().mean())


def load_data(task: str = "anticancer") -> Data:
    """The peptides of a task, at most ten of a family."""
    peptides = load_anticancer() if task == "anticancer" else load_peptides()
    chosen = np.random.default_rng(0).permutation(len(peptides))[:MOST]
    peptides = [peptides[index] for index in chosen]
    family = families([peptide.sequence for peptide in peptides])
    seen: Counter[int] = Counter()
    kept = []
    for index in range(len(peptides)):
        seen[family[index]] += 1
        if seen[family[index]] <= OF_A_FAMILY:
            kept.append(index)
    lengths = torch.tensor([len(peptides[index].sequence) for index in kept])
    residues = torch.zeros(len(kept), int(lengths.max()), 20)
    for row, index in enumerate(kept):
        residues[row, : lengths[row]] = one_hot(peptides[index].sequence)
    labels = torch.tensor([float(peptides[index].label) for index in kept])
    of_family = torch.tensor([family[index] for index in kept])
    return Data(residues, lengths, labels, of_family, mean=task == "anticancer")


def few_labelled(
    data: Data, size: int, splits: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of families, each tested on once; `size` of the other peptides are labelled."""
    labels = data.labels.numpy()
    folds = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
    pairs = []
    for number, (others, test) in enumerate(folds.split(labels, labels, data.families)):
        # The labelled ones of a smaller size are among those of a larger one.
        order = np.random.default_rng(1000 * seed + number).permutation(others)
        ones = round(size * labels.mean())
        ones_first = [order[labels[order] == 1][:ones], order[labels[order] == 0][: size - ones]]
        pairs.append((np.concatenate(ones_first), test))
    return pairs


class Job(NamedTuple):
    """One comparison: on so many labelled peptides."""

    size: int
    splits: int
    methods: list[str]
    epochs: int
    seed: int = 0


class Found(NamedTuple):
    """What a job found: is pretraining worth it, which method is best, and the steps checked."""

    worth_it: Comparison | None
    best: Comparison
    steps: Counter[str]


def compared(job: Job, data: Data, progress: Callable[[int, int], None] | bool = False) -> Found:
    """Compare two methods, then all; a folder keeps the scores, so nothing is trained twice."""
    torch.set_num_threads(1)  # the encoder is too small for more to help
    study = Study(data, job.epochs)
    splits = few_labelled(data, job.size, job.splits, job.seed)
    found: list[Comparison | None] = [None]
    with tempfile.TemporaryDirectory() as folder:
        for names in stages(job):
            found.append(
                compare(
                    study.score,
                    {name: METHODS[name] for name in names},
                    splits,
                    labels=data.labels.numpy(),
                    groups=data.families.numpy(),
                    inner=2,
                    seed=job.seed,
                    folder=folder,
                    progress=progress,
                )
            )
    worth_it, best = found[-2:]
    assert best is not None
    return Found(worth_it, best, study.steps)


def stages(job: Job) -> list[Sequence[str]]:
    """The methods of each comparison: two, where there are more, then all."""
    two = set(WORTH_IT) < set(job.methods)
    return [WORTH_IT, job.methods] if two else [job.methods]


_done: Any = None  # a counter that all processes share


def _share(counter: Any) -> None:
    global _done
    _done = counter


def _in_a_worker(job: Job, data: Data) -> Found:
    def count(done: int, total: int) -> None:
        with _done.get_lock():
            _done.value += 1

    return compared(job, data, count)


def run(jobs: Sequence[Job], data: Data, console: Console) -> dict[int, Found]:
    """Size -> what was found; two processes, each with one thread, share the jobs."""
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("trainings"), TimeElapsedColumn())
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    with (
        Progress(*columns, console=console) as progress,
        ProcessPoolExecutor(2, context, _share, (counter,)) as pool,
    ):
        task = progress.add_task("", total=sum(map(trainings, jobs)))
        waiting: dict[int, Future[Found]] = {
            job.size: pool.submit(_in_a_worker, job, data)
            for job in sorted(jobs, reverse=True)  # the longest first
        }
        while wait(waiting.values(), timeout=0.2).not_done:
            progress.update(task, completed=counter.value)
        progress.update(task, completed=counter.value)
    return {job.size: waiting[job.size].result() for job in jobs}


def trainings(job: Job) -> int:
    """How often a model is trained: two folds for each rate that is tried, and the whole."""
    names = [name for methods in stages(job) for name in methods]  # those kept are counted again
    rates = [len(METHODS[name]["lr"].values) for name in names]
    return job.splits * sum(2 * n + 1 for n in rates)


# ---- what it prints and draws


def report(found: dict[int, Comparison], splits: int) -> Table:
    """All comparisons as a table, a row for each method."""
    table = Table(
        title=f"Accuracy on peptides of other families, %: mean over {splits} splits, and below it "
        "the difference to the best with its 95% interval",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        caption="*: chosen, the cheapest within one standard error of the best; seconds a split, "
        "with the choice of the rate",
    )
    table.add_column("method")
    for size in found:
        table.add_column(f"{size} labelled", justify="right")
    table.add_column("seconds", justify="right")
    for name in next(iter(found.values())).scores:
        cells = [_cell(comparison, name) for comparison in found.values()]
        seconds = " ".join(f"{comparison.table[name].seconds:.1f}" for comparison in found.values())
        table.add_row(name, *cells, seconds)
    return table


def _cell(comparison: Comparison, name: str) -> str:
    row = comparison.table[name]
    mark = "*" if comparison.choice == name else ""
    mean = f"{100 * row.mean:.1f}{mark}"
    if row.best:
        return f"{mean}\nbest"
    low, high = row.interval
    return f"{mean}\n{100 * row.difference:+.1f}\n({100 * low:+.1f} to {100 * high:+.1f})"


def draw(found: dict[int, Comparison], path: Path) -> None:
    """Write the figure: accuracy over labelled peptides, a line for each method."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = list(next(iter(found.values())).scores)
    for number, (name, (color, line, marker)) in enumerate(zip(names, LOOKS, strict=False)):
        # Beside each other, so that no interval hides another.
        places = [size * 1.035 ** (number - (len(names) - 1) / 2) for size in found]
        rows = [comparison.table[name] for comparison in found.values()]
        means = [100 * row.mean for row in rows]
        ends = [
            [100 * (row.mean - row.mean_interval[0]) for row in rows],
            [100 * (row.mean_interval[1] - row.mean) for row in rows],
        ]
        axes.errorbar(
            *(places, means, ends),
            color=color,
            linestyle=line,
            marker=marker,
            markerfacecolor="white",
            markersize=7,
            linewidth=1.8,
            elinewidth=1,
            capsize=2,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(list(found), [str(size) for size in found])
    axes.minorticks_off()
    axes.set_xlabel("labelled peptides")
    axes.set_ylabel("accuracy on peptides of other families, %")
    axes.set_title("Means and their 95% intervals, corrected for overlapping splits", loc="left")
    axes.grid(axis="y", color="#E4E4E4")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, ncols=3, handlelength=4, loc="outside lower center")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task",
        choices=("anticancer", "antimicrobial"),
        default="anticancer",
        help="what to tell (default: anticancer)",
    )
    parser.add_argument(
        "--labelled",
        nargs="+",
        type=_positive,
        default=list(SIZES),
        help="numbers of labelled peptides (default: 25 50 100)",
    )
    parser.add_argument(
        "--splits", type=_positive, default=SPLITS, help=f"paired splits (default: {SPLITS})"
    )
    parser.add_argument(
        "--method", nargs="+", choices=METHODS, default=[*METHODS], help="methods (default: all)"
    )
    parser.add_argument(
        "--epochs", type=_positive, help=f"epochs a training (default: {PASSES} / labelled)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="draws other folds and trainings (default: 0)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder for the figure (default: out)"
    )
    options = parser.parse_args(arguments)
    if options.splits < 2:
        parser.error("argument --splits: must be at least 2, got 1")
    if options.seed < 0:
        parser.error(f"argument --seed: must not be negative, got {options.seed}")
    console = Console()
    began = time.perf_counter()
    data = load_data(options.task)
    console.print(
        f"{len(data.labels)} peptides, of which {int(data.labels.sum())} are {options.task}, of "
        f"{len(data.families.unique())} families (80% identity; at most {OF_A_FAMILY} of each)."
    )
    jobs = [
        Job(
            size,
            options.splits,
            options.method,
            options.epochs or max(1, PASSES // size),
            options.seed,
        )
        for size in sorted(set(options.labelled))
    ]
    results = run(jobs, data, console)
    found = {size: result.best for size, result in results.items()}
    steps = sum((result.steps for result in results.values()), Counter())
    options.out.mkdir(parents=True, exist_ok=True)
    figure = options.out / "finetune_peptides.png"
    draw(found, figure)
    if worth_it := {size: r.worth_it for size, r in results.items() if r.worth_it is not None}:
        _print_reasons(console, "Is pretraining worth it?", worth_it)
    console.print("", report(found, options.splits), sep="\n")
    _print_reasons(console, "Which way is best?", found)
    console.print(
        f"\nFrozen weights: {steps['with something frozen']:,} of {steps['all']:,} optimizer steps "
        "were taken with something frozen; after each, every frozen bit was as before."
    )
    console.print(f"Figure: {figure} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)


def _print_reasons(console: Console, question: str, found: Mapping[int, Comparison]) -> None:
    console.print(f"\n[bold]{question}[/bold]")
    for size, comparison in found.items():
        console.print(f"{size} labelled: {escape(comparison.reason)}", highlight=False)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


if __name__ == "__main__":
    main()
