"""The whole runs that `gradual_run.py` compares: plans, data, the model, and the four arms.

Shapes: B batch, T time, I input size, H hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BaseFinetuning, Callback
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader

from lstm_freeze import BiLSTM, PrefixCache
from lstm_freeze.callbacks import FreezeScheduler

LAYERS = 3
CLASSES = 4
LR = 3e-4
Batches = list[tuple[PackedSequence, Tensor]]


class Plan(NamedTuple):
    """What trains when: first epoch -> layers that train besides the head."""

    name: str
    phases: Mapping[int, tuple[int, ...]]
    epochs: int

    @property
    def schedule(self) -> dict[int, str | list[str]]:
        """The same as a FreezeSchedule's phases."""
        return {
            start: ["head", *(f"encoder[{layer}]" for layer in layers)]
            for start, layers in self.phases.items()
        }


def gradual(name: str, every: int, epochs: int) -> Plan:
    """Head, then the top layer with it, then the two upper ones, then all."""
    groups = [tuple(range(LAYERS - i, LAYERS)) for i in range(LAYERS + 1)]
    return Plan(name, {i * every: group for i, group in enumerate(groups)}, epochs)


ULMFIT = gradual("ULMFiT", every=1, epochs=8)
FIVE = gradual("five epochs a phase", every=5, epochs=20)
LP_FT = Plan("LP-FT", {0: (), 10: tuple(range(LAYERS))}, epochs=12)
PLANS = (ULMFIT, FIVE, LP_FT)

BASELINE = "nn.LSTM + BaseFinetuning"
UNCACHED = "BiLSTM + FreezeScheduler"
CACHED = f"{UNCACHED} + cache"
ARMS = (BASELINE, "nn.LSTM + FreezeScheduler", UNCACHED, CACHED)


class Sizes(NamedTuple):
    """The data and the encoder."""

    B: int = 32
    T: int = 96
    I: int = 128
    H: int = 256
    batches: int = 10
    held_out: int = 4


QUICK_SIZES = Sizes(4, 12, 8, 8, batches=2, held_out=1)


def batches_of(sizes: Sizes, count: int, seed: int) -> Batches:
    """Packed batches of noise of T/4 to T steps, whose last third leans towards the class.

    So the final states of an encoder that was never trained tell the classes apart, and a head
    on it finds something to learn.
    """
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, sizes.I, generator=torch.Generator().manual_seed(0))
    batches = []
    for _ in range(count):
        labels = torch.randint(CLASSES, (sizes.B,), generator=draw)
        lengths = torch.randint(sizes.T // 4, sizes.T + 1, (sizes.B,), generator=draw)
        sequences = [torch.randn(int(n), sizes.I, generator=draw) for n in lengths]
        for sequence, label in zip(sequences, labels, strict=True):
            third = len(sequence) // 3
            sequence[2 * third :] += 0.5 * patterns[label]
        batches.append((pack_sequence(sequences, enforce_sorted=False), labels))
    return batches


class Classifier(pl.LightningModule):
    """A recurrent encoder, and a linear head on its last layer's final states."""

    def __init__(self, encoder: nn.Module, only_trainable: bool) -> None:
        """Take the encoder; a BaseFinetuning's optimizer gets `only_trainable` parameters."""
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(2 * encoder.hidden_size, CLASSES)
        self.only_trainable = only_trainable
        self.ended: list[float] = []
        self.epoch_ended: Callable[[], None] = lambda: None

    def forward(self, batch: PackedSequence) -> Tensor:
        """Class scores (B, C)."""
        _, (h_n, _) = self.encoder(batch)
        return self.head(torch.cat([h_n[-2], h_n[-1]], -1))

    def training_step(self, batch: tuple[PackedSequence, Tensor], index: int) -> Tensor:
        """The cross entropy."""
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam at one rate for all, low enough that rounding does not grow into another result."""
        chosen = [p for p in self.parameters() if p.requires_grad or not self.only_trainable]
        return torch.optim.Adam(chosen, lr=LR)

    def on_train_epoch_end(self) -> None:
        """Lightning calls this after the callbacks' hooks, so their time counts."""
        self.ended.append(time.perf_counter())
        self.epoch_ended()


class EpochStart(Callback):
    """Notes when an epoch begins; it must be the first callback."""

    def __init__(self) -> None:
        """No epoch has begun."""
        self.began: list[float] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the time."""
        self.began.append(time.perf_counter())


class LayerByLayer(BaseFinetuning):
    """The plan by Lightning's own means: requires_grad, and a param group for what is unfrozen."""

    def __init__(self, plan: Plan) -> None:
        """Take the plan."""
        super().__init__()
        self.plan = plan

    def freeze_before_training(self, pl_module: pl.LightningModule) -> None:
        """Freeze the encoder."""
        self.freeze(pl_module.encoder)

    def finetune_function(
        self, pl_module: pl.LightningModule, epoch: int, optimizer: torch.optim.Optimizer
    ) -> None:
        """Unfreeze what the plan trains from this epoch on."""
        endings = tuple(f"_l{layer}" for layer in self.plan.phases.get(epoch, ()))
        new = [
            parameter
            for name, parameter in pl_module.encoder.named_parameters()
            if name.removesuffix("_reverse").endswith(endings) and not parameter.requires_grad
        ]
        for parameter in new:
            parameter.requires_grad = True
        if new:
            optimizer.add_param_group({"params": new})


def model_of(arm: str, sizes: Sizes) -> Classifier:
    """The same initial weights in each arm."""
    torch.manual_seed(0)
    encoder: nn.Module = nn.LSTM(sizes.I, sizes.H, LAYERS, bidirectional=True)
    model = Classifier(encoder, only_trainable=arm == BASELINE)
    if not arm.startswith("nn.LSTM"):
        model.encoder = BiLSTM.from_lstm(encoder)
    if arm == CACHED:
        model.encoder.prefix_cache = PrefixCache()
    return model


def train(
    arm: str,
    plan: Plan,
    sizes: Sizes,
    model: Classifier | None = None,
    epoch_ended: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """One run: the seconds of each epoch, the loss and accuracy on held-out data, the cache.

    `epoch_ended` is called after each epoch; its time does not count.
    """
    model = model_of(arm, sizes) if model is None else model
    model.epoch_ended = epoch_ended or model.epoch_ended
    start = EpochStart()
    method = LayerByLayer(plan) if arm == BASELINE else FreezeScheduler(plan.schedule)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    trainer = pl.Trainer(
        max_epochs=plan.epochs,
        accelerator="cpu",
        callbacks=[start, method],
        **dict.fromkeys(quiet, False),
    )
    order = torch.Generator().manual_seed(2)
    data = batches_of(sizes, sizes.batches, seed=1)
    loader = DataLoader(data, batch_size=None, shuffle=True, generator=order)
    trainer.fit(model, loader)
    loss, accuracy = evaluate(model, batches_of(sizes, sizes.held_out, seed=3))
    cache = getattr(model.encoder, "prefix_cache", None)
    return {
        "plan": plan.name,
        "arm": arm,
        "starts": list(plan.phases),
        "epoch_s": [b - a for a, b in zip(start.began, model.ended, strict=True)],
        "loss": loss,
        "accuracy": accuracy,
        "cache": cache.stats() if cache else None,
    }


def evaluate(model: Classifier, batches: Batches) -> tuple[float, float]:
    """The mean loss and accuracy over batches of the same size."""
    model.eval()
    with torch.no_grad():
        scores = torch.cat([model(batch) for batch, _ in batches])
    labels = torch.cat([labels for _, labels in batches])
    accuracy = (scores.argmax(-1) == labels).float().mean()
    return F.cross_entropy(scores, labels).item(), accuracy.item()
