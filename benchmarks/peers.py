"""The same fine-tuning with Lightning's BackboneFinetuning, finetuning-scheduler and lstm_freeze.

    pip install -e ".[peers]"
    python benchmarks/peers.py                     # two or three minutes
    python benchmarks/peers.py --only resume ddp   # some of the questions

A whole run is saved as benchmarks/results/peers.json, from which readme_tables.py writes the table
of docs/distributed.md.

Each question is answered by a fit, in processes of their own, from what the weights did: nothing in
the table is written by hand. Each library is set up as its documentation shows.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
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

from lstm_freeze import param_groups
from lstm_freeze.callbacks import FreezeScheduler

CONTEXT = multiprocessing.get_context("forkserver")
LIMIT = timedelta(seconds=120)
UNFREEZE_AT, EPOCHS = 1, 3
LIBRARIES = {
    "lstm_freeze": "lstm-freeze",
    "BackboneFinetuning": "lightning",
    "finetuning-scheduler": "finetuning-scheduler",
}


class Answer(NamedTuple):
    """Whether a library got it right, and what was seen."""

    right: bool
    seen: str


class Model(L.LightningModule):
    """A backbone that is frozen for an epoch, under a head that trains."""

    def __init__(self, library: str, backbone: nn.Module, width: int) -> None:
        """Begin with the same weights for each library."""
        super().__init__()
        self.library = library
        self.backbone = backbone
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 3) -> (B, 2)."""
        output = self.backbone(x)
        features: Tensor = output[0] if isinstance(output, tuple) else output
        logits: Tensor = self.head(features.mean(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch."""
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Each library's documented way: theirs add groups later, ours holds all from the start."""
        if self.library == "lstm_freeze":
            return torch.optim.Adam(param_groups(self, lr=0.05))
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.05)


class Normed(nn.Module):
    """A batch norm on inputs that are far from its running statistics."""

    def __init__(self) -> None:
        """3 features."""
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 3) -> (B, T, 3)."""
        normed: Tensor = self.norm(x.transpose(1, 2)).transpose(1, 2)
        return normed


class Layers(nn.Module):
    """Two layers as modules of their own, with biases that begin at zero."""

    def __init__(self) -> None:
        """Layers of 4 units a direction."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.LSTM(size, 4, batch_first=True, bidirectional=True) for size in (3, 8)
        )
        for name, parameter in self.named_parameters():
            if "bias" in name:
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, 3) -> (B, T, 8)."""
        for layer in self.layers:
            x = layer(x)[0]
        return x


class LayerRates(L.callbacks.BaseFinetuning):
    """BaseFinetuning, as documented, with a learning rate for each layer."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        """The head alone begins."""
        self.freeze(pl_module.backbone)

    def finetune_function(
        self, pl_module: L.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Layer by layer, since each has its own rate."""
        if epoch == UNFREEZE_AT:
            for layer, lr in zip(pl_module.backbone.layers, (0.02, 0.05), strict=True):
                self.unfreeze_and_add_param_group(layer, optimizer, lr)


def lstm(layers: int = 2) -> nn.LSTM:
    """The backbone."""
    torch.manual_seed(0)
    return nn.LSTM(3, 4, layers, batch_first=True, bidirectional=True)


def unfreezing(library: str, phases: Sequence[Sequence[str]], epochs: int) -> L.Callback:
    """The library's callback; in phase n, which lasts one epoch, these train (theirs: also)."""
    if library == "lstm_freeze":
        return FreezeScheduler({n: list(names) for n, names in enumerate(phases)})
    if library == "BaseFinetuning":
        return LayerRates()
    if library == "BackboneFinetuning":
        if list(map(list, phases)) != [["head"], ["head", "backbone"]]:
            raise NotImplementedError("it unfreezes whole modules, once")
        return L.callbacks.BackboneFinetuning(
            unfreeze_backbone_at_epoch=UNFREEZE_AT, lambda_func=_one
        )
    from finetuning_scheduler import FinetuningScheduler

    phases = phases[:epochs]
    schedule: dict[int, dict[str, Any]] = {}
    for n, names in enumerate(phases):
        new = [name for name in names if n == 0 or name not in phases[n - 1]]
        schedule[n] = {"params": [_pattern(name) for name in new]}
        # Each phase must have one; the fit ends with that of the last.
        schedule[n]["max_transition_epoch"] = n + 1 if n + 1 < len(phases) else epochs
    return FinetuningScheduler(
        ft_schedule=schedule, epoch_transitions_only=True, restore_best=False, logging_level=40
    )


def _pattern(name: str) -> str:
    return name if name.endswith("*") or "_l" in name else f"{name}.*"


def _one(epoch: int) -> float:
    return 1.0


GRADUAL = (["head"], ["head", "backbone"])


class Watch(L.Callback):
    """Notes at each epoch's end what has moved, what trains, and whether ranks agree."""

    def __init__(self) -> None:
        """Nothing seen."""
        self.moved: list[set[str]] = []
        self.trains: list[set[str]] = []
        self.apart: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Remember the weights."""
        self.before = _copies(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, index: int) -> None:
        """What trains in this epoch."""
        if index == 0:
            self.trains.append({n for n, p in pl_module.named_parameters() if p.requires_grad})

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What moved in it."""
        now = _copies(pl_module)
        self.moved.append({n for n in now if not torch.equal(now[n], self.before[n])})
        self.before = now
        if dist.is_initialized():
            flat = torch.cat([p.flatten() for p in now.values()])
            everyone = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
            dist.all_gather(everyone, flat)
            self.apart.append(max(float((flat - other).abs().max()) for other in everyone))


def _copies(module: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in module.named_parameters()}


def fit(
    library: str,
    backbone: nn.Module,
    width: int,
    phases: Sequence[Sequence[str]] = GRADUAL,
    epochs: int = EPOCHS,
    ckpt_path: Path | None = None,
    save: Path | None = None,
    **options: Any,
) -> tuple[Model, Watch]:
    """One fit of 4 batches an epoch."""
    torch.manual_seed(0)
    model, watch = Model(library, backbone, width), Watch()
    generator = torch.Generator().manual_seed(1)
    x = 3 + torch.randn(16, 5, 3, generator=generator)
    rows = torch.utils.data.TensorDataset(x, (x.sum((1, 2)) > 45).long())
    quiet = ("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger")
    with tempfile.TemporaryDirectory() as root:
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=epochs,
            callbacks=[unfreezing(library, phases, epochs), watch],
            default_root_dir=root,
            num_sanity_val_steps=0,
            **{**dict.fromkeys(quiet, False), "devices": 1, **options},
        )
        loaders = [torch.utils.data.DataLoader(rows, 4) for _ in range(2)]
        trainer.fit(model, loaders[0], ckpt_path=ckpt_path)
        if save is not None:
            trainer.save_checkpoint(save)
    return model, watch


# ---- the questions


def ranks_equal(library: str, folder: Path) -> Answer:
    """After the unfreezing under DDP, do two ranks hold the same bits?"""
    results = _on_two_ranks(library, folder)
    apart = results[0]
    return Answer(max(apart) == 0, "ranks apart by " + ", ".join(f"{a:.1g}" for a in apart))


def resume(library: str, folder: Path) -> Answer:
    """Resumed past the unfreezing, does what was unfrozen train on?"""
    path = folder / "two.ckpt"
    fit(library, lstm(), 8, epochs=2, save=path)
    _, watch = fit(library, lstm(), 8, ckpt_path=path)
    moved = {n for n in watch.moved[0] if n.startswith("backbone")}
    return Answer(len(moved) == 16, f"{len(moved)} of 16 backbone tensors move after the resume")


def zero_biases(library: str, folder: Path) -> Answer:
    """Do LSTM biases that begin at zero train once unfrozen, each layer with its own rate?"""
    # BackboneFinetuning has one rate for all; its base class is what Lightning offers for this.
    used = "BaseFinetuning" if library == "BackboneFinetuning" else library
    torch.manual_seed(0)
    _, watch = fit(used, Layers(), 8)
    moved = {n for n in watch.moved[-1] if "bias_" in n}
    by = " (BaseFinetuning)" if used != library else ""
    return Answer(len(moved) == 8, f"{len(moved)} of 8 biases move{by}")


def batch_norm(library: str, folder: Path) -> Answer:
    """Does a frozen batch norm keep its statistics, and give in training what it gives in eval?"""
    model, _ = fit(library, Normed(), 3, epochs=1)
    norm, x = model.backbone.norm, 3 + torch.randn(4, 5, 3)
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    kept = bool((norm.running_mean == 0).all())
    with torch.no_grad():
        trained, evaluated = model.train()(x), model.eval()(x)
    alike = torch.equal(trained, evaluated)
    statistics, modes = "kept" if kept else "moved", "alike" if alike else "differ"
    return Answer(kept and alike, f"statistics {statistics}, train and eval {modes}")


def refreeze(library: str, folder: Path) -> Answer:
    """Can a phase freeze again what an earlier one trained, leaving it as it is?"""
    _, watch = fit(library, lstm(), 8, phases=(["head"], ["backbone"], ["head"]))
    moved = {n for n in watch.moved[2] if n.startswith("backbone")}
    return Answer(not moved, f"{len(moved)} of 16 backbone tensors move in the last phase")


def layers(library: str, folder: Path) -> Answer:
    """Of 11 layers, does asking for the second train that one alone, both directions?"""
    asked = "backbone[1]" if library == "lstm_freeze" else r"backbone.*_l1"
    _, watch = fit(library, lstm(11), 8, phases=(["head"], ["head", asked]), epochs=2)
    moved = {n for n in watch.trains[1] if n.startswith("backbone")}
    right = {n for n in moved if n.endswith(("_l1", "_l1_reverse"))}
    return Answer(
        moved == right and len(right) == 8,
        f"{len(right)} of 8 tensors of layer 1 train, and {len(moved - right)} others",
    )


QUESTIONS: dict[str, tuple[str, Callable[[str, Path], Answer]]] = {
    "ddp": ("ranks bit-equal after each unfreeze (DDP)", ranks_equal),
    "resume": ("resume past the unfreeze", resume),
    "biases": ("zero-initialised biases train, a rate for each layer", zero_biases),
    "norm": ("frozen batch norm stays, train = eval", batch_norm),
    "refreeze": ("a later phase freezes again", refreeze),
    "layers": ("layer 1 of 11, both directions", layers),
}


def _on_two_ranks(library: str, folder: Path) -> list[list[float]]:
    processes = [
        CONTEXT.Process(target=_rank, args=(rank, library, str(folder))) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT.total_seconds())
        process.kill()
    errors = [path.read_text() for path in folder.glob("error*")]
    if errors:
        raise RuntimeError(errors[0])
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


def _rank(rank: int, library: str, folder: str) -> None:
    _quiet()
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    try:
        store = f"file://{folder}/store"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=LIMIT)
        _, watch = fit(library, lstm(), 8, devices=2, strategy="ddp_find_unused_parameters_true")
        torch.save(watch.apart, Path(folder, f"rank{rank}.pt"))
        dist.destroy_process_group()
    except Exception as error:
        Path(folder, f"error{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)


def answer(library: str, question: str) -> Answer:
    """Ask one library one question; what it cannot do is an answer too."""
    _quiet()
    with tempfile.TemporaryDirectory() as folder:
        try:
            return QUESTIONS[question][1](library, Path(folder))
        except NotImplementedError as reason:
            return Answer(False, f"not offered: {reason}")
        except Exception as error:
            first = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
            return Answer(False, f"refused: {first.partition('. ')[0]}")


def _quiet() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rank_zero = "lightning.pytorch.utilities.rank_zero"
    for name in ("lightning.pytorch", rank_zero, "lightning.fabric", "finetuning_scheduler"):
        logging.getLogger(name).setLevel(logging.ERROR)


def installed() -> Iterator[tuple[str, str]]:
    """The libraries that are here, with their versions."""
    for library, package in LIBRARIES.items():
        try:
            yield library, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f'{library} is not installed: pip install -e ".[peers]"')


def main() -> None:
    """Ask all, print and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--out", type=Path, help="folder for peers.json")
    options = parser.parse_args()
    console = Console()
    console = console if console.width >= 120 else Console(width=120)
    libraries = dict(installed())
    table = Table(title="what each gets right", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("question")
    for library, version in libraries.items():
        table.add_column(f"{library} {version}", ratio=1)
    rows = []
    # One question at a time, each in a process that ends with it.
    with ProcessPoolExecutor(1, mp_context=CONTEXT, max_tasks_per_child=1) as pool:
        for question in options.only:
            found = [pool.submit(answer, library, question).result() for library in libraries]
            cells = [f"[bold]{'yes' if a.right else 'no'}[/]: {a.seen}" for a in found]
            table.add_row(QUESTIONS[question][0], *cells)
            answers = {n: a._asdict() for n, a in zip(libraries, found, strict=True)}
            rows.append({"question": QUESTIONS[question][0], "answers": answers})
    console.print(in_words(machine()))
    console.print(table)
    whole = len(rows) == len(QUESTIONS) and len(libraries) == len(LIBRARIES)
    out = options.out or (RESULTS if whole else SCRATCH)
    out.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "versions": libraries, "rows": rows}
    (out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"saved in {out / 'peers.json'}")


if __name__ == "__main__":
    main()
