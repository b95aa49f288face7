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
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_curves import as_table, draw
from peptides import OF_A_FAMILY, few_labelled, load_encoder, load_task
from rich.console import Console
from rich.markup import escape
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

SIZES = [25, 50, 100]
SPLITS = 20
PASSES = 480  # peptides trained on: 19 epochs of 25, 9 of 50, 4 of 100, at about the same cost
BATCH_SIZE = 16


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


LOW, HIGH = Choice([0.003, 0.01]), Choice([0.01, 0.03])
METHODS: dict[str, dict[str, Any]] = {
    "from scratch": {"schedule": everything, "lr": LOW, "pretrained": False},
    "frozen encoder": {"schedule": only_the_head, "lr": HIGH},
    "full": {"schedule": everything, "lr": LOW},
    "gradual": {"schedule": gradual, "lr": HIGH, "layer_decay": 1 / 2.6},
    "LP-FT": {"schedule": probe_then_tune, "lr": LOW},
    "LoRA": {"schedule": low_rank, "lr": HIGH},
}
# Asked first, and of two methods only: the more methods are compared, the wider the intervals.
WORTH_IT = ["from scratch", "LP-FT"]


# ---- the model, and its training


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


_steps: Any = None  # a counter that all processes share: steps checked, and with something frozen


def score(
    train: np.ndarray,
    test: np.ndarray,
    seed: int,
    *,
    task: str,
    epochs: int,
    schedule: Callable[[nn.Module, int], FreezeSchedule],
    lr: float,
    pretrained: bool = True,
    layer_decay: float = 1.0,
) -> float:
    """Fine-tune on the peptides `train`; the share of `test` that is told right.

    This is all that `compare` needs to know. A frozen weight that moves by a bit raises.
    """
    torch.manual_seed(seed)
    residues, lengths, labels, _ = load_task(task)
    model = Classifier(pretrained, task == "anticancer")
    plan = schedule(model, epochs)
    groups = param_groups(model, lr, layer_decay=layer_decay, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    with FrozenGuard(model).attach(optimizer) as guard:
        for epoch in range(epochs):
            if epoch in {phase.start for phase in plan.phases}:  # an epoch takes milliseconds
                plan.apply(model, epoch, optimizer)
            before = guard.checks
            for batch in torch.from_numpy(train)[torch.randperm(len(train))].split(BATCH_SIZE):
                logits = model(residues[batch], lengths[batch])
                loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[batch])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
            with _steps.get_lock():
                _steps[0] += guard.checks - before
                if not all(p.requires_grad for p in model.parameters()):
                    _steps[1] += guard.checks - before
    with torch.no_grad():
        said = model(residues[test], lengths[test]) > 0
    return float((said == labels[test].bool()).float().mean())


def start_worker(steps: Any) -> None:
    """Prepare a process: one thread, since the encoder is too small for more to help."""
    global _steps
    _steps = steps
    torch.set_num_threads(1)


# ---- the comparison


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison from the command line."""
    options = _options(arguments)
    console, began = Console(), time.perf_counter()
    data = load_task(options.task)
    console.print(
        f"{len(data.labels)} peptides, of which {int(data.labels.sum())} are {options.task}, of "
        f"{len(data.families.unique())} families (80% identity; at most {OF_A_FAMILY} of each)."
    )
    questions = {"Which way is best?": options.method}
    if set(WORTH_IT) < set(options.method):
        questions = {"Is pretraining worth it?": WORTH_IT, **questions}
    found: dict[str, dict[int, Comparison]] = {question: {} for question in questions}
    processes = multiprocessing.get_context("spawn")
    steps = processes.Array("q", 2)
    with (
        ProcessPoolExecutor(2, processes, initializer=start_worker, initargs=(steps,)) as pool,
        tempfile.TemporaryDirectory() as folder,
    ):
        for size in sorted(set(options.labelled)):
            more = {"task": options.task, "epochs": options.epochs or max(1, PASSES // size)}
            for question, names in questions.items():
                console.print(f"{size} labelled peptides, {len(names)} methods")
                found[question][size] = compare(
                    score,
                    {name: {**METHODS[name], **more} for name in names},
                    few_labelled(data, size, options.splits, options.seed),
                    labels=data.labels.numpy(),
                    groups=data.families.numpy(),
                    inner=2,
                    seed=options.seed,
                    folder=Path(folder, str(size)),  # keeps scores: nothing is trained twice
                    executor=pool,
                )
                for failure in found[question][size].failures:  # also a frozen weight that moved
                    raise SystemExit(f"{failure.method}: {failure.error}")
    for question, answers in found.items():
        console.print(f"\n[bold]{question}[/bold]")
        for size, comparison in answers.items():
            console.print(f"{size} labelled: {escape(comparison.reason)}", highlight=False)
    console.print(
        f"\nAccuracy on peptides of other families, %: the mean over {options.splits} splits, and "
        "below it the difference to the best with its 95% interval. *: chosen, the cheapest within "
        "one standard error of the best.\n",
        as_table(answers),
        f"\nFrozen weights: {steps[1]:,} of {steps[0]:,} optimizer steps were taken with something "
        "frozen; after each, every frozen bit was as before.",
        sep="\n",
    )
    options.out.mkdir(parents=True, exist_ok=True)
    figure = options.out / "finetune_peptides.png"
    draw(answers, figure, of="peptides")
    console.print(f"Figure: {figure} ({time.perf_counter() - began:.0f} s)", soft_wrap=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, tasks = parser.add_argument, ("anticancer", "antimicrobial")
    add("--task", choices=tasks, default=tasks[0], help="what to tell (default: anticancer)")
    add("--labelled", nargs="+", type=_least(1), default=SIZES, help="numbers of labelled peptides")
    add("--splits", type=_least(2), default=SPLITS, help=f"paired splits (default: {SPLITS})")
    add("--method", nargs="+", choices=METHODS, default=[*METHODS], help="methods (default: all)")
    add("--epochs", type=_least(1), help=f"epochs a training (default: {PASSES} / labelled)")
    add("--seed", type=_least(0), default=0, help="draws other folds and trainings (default: 0)")
    add("--out", type=Path, default=Path("out"), help="folder for the figure (default: out)")
    return parser.parse_args(arguments)


def _least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {text}")
        return int(text)

    return number


if __name__ == "__main__":
    main()
