"""A run that is killed in the middle of a phase, resumed, and ends with the bits of a whole run.

Three runs: one without interruption; one in a child process, which is killed (SIGKILL: nothing can
be saved or tidied) while half of the encoder is still frozen; and one that goes on from the last
checkpoint of the killed run. It starts from other weights, so all that agrees in the end comes from
the checkpoint. What is frozen when follows from the epoch alone.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytorch_lightning as pl
import torch
from peptides import collate, load_encoder, split_peptides
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, DistributedSampler

from lstm_freeze import BiLSTM, param_groups, status
from lstm_freeze.callbacks import FrozenWeightsCheck, GradualUnfreezing

EPOCHS = 6
KILLED_AT = 17  # steps: in the middle of epoch 3, the second of the phase that begins at epoch 2


class Classifier(pl.LightningModule):
    """A pretrained BiLSTM under a linear head."""

    def __init__(self) -> None:
        """Take alphaPredict's encoder over; the head is new."""
        super().__init__()
        self.encoder = BiLSTM.from_lstm(load_encoder("V6")[0])
        self.head = nn.Linear(2 * self.encoder.hidden_size, 1)

    def training_step(self, batch: tuple[PackedSequence, Tensor]) -> Tensor:
        """The loss of a batch, from the top layer's final states."""
        peptides, labels = batch
        _, (h_n, _) = self.encoder(peptides)
        logits = self.head(torch.cat([h_n[-2], h_n[-1]], dim=1)).squeeze(1)
        return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over every parameter, frozen ones too."""
        return torch.optim.AdamW(param_groups(self, lr=0.01, layer_decay=1 / 2.6))


class WaitToBeKilled(pl.Callback):
    """Reports a step to the parent process, and never makes another."""

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: object
    ) -> None:
        """Wait at the step."""
        if trainer.global_step == KILLED_AT:
            trainable = status(pl_module).trainable
            print(f"epoch {trainer.current_epoch}, {trainable:,} parameters train", flush=True)
            time.sleep(600)


def train(folder: Path, seed: int, *callbacks: pl.Callback) -> pl.Trainer:
    """Train from the checkpoint in a folder, or from the beginning where there is none."""
    pl.seed_everything(seed, verbose=False)
    data = split_peptides().train
    # An order that follows from the epoch: Lightning tells this sampler its number.
    sampler = DistributedSampler(data, num_replicas=1, rank=0)
    saver = ModelCheckpoint(folder, save_last=True, save_on_train_epoch_end=True)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[
            GradualUnfreezing(every_n_epochs=2),
            FrozenWeightsCheck(),
            saver,
            *callbacks,
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    last = folder / "last.ckpt"
    trainer.fit(
        Classifier(),
        DataLoader(data, batch_size=20, sampler=sampler, collate_fn=collate),
        ckpt_path=last if last.exists() else None,
    )
    return trainer


def train_and_kill(folder: Path) -> str:
    """Train in a child process, and kill it at a step; gives what it said."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        said = child.stdout.readline().strip()
        child.kill()
    return f"{said}; killed, exit status {child.returncode}"


def quieten_lightning() -> None:
    """Keep Lightning's advice on hardware and loaders from burying the lines printed here."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
    # Lightning 2.6 uses what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")


def main() -> None:
    """Train, kill, resume, and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = train(folder / "whole", seed=0)
        print(f"whole run:   {whole.global_step} steps")
        print(f"killed run:  {train_and_kill(folder / 'killed')}")
        saved = torch.load(folder / "killed" / "last.ckpt", weights_only=True)
        resumed = train(folder / "killed", seed=1)
        print(f"resumed run: from step {saved['global_step']} to {resumed.global_step}")
    ends = [run.lightning_module.state_dict() for run in (whole, resumed)]
    equal = [torch.equal(*(end[name].view(torch.int32) for end in ends)) for name in ends[0]]
    print(f"{sum(equal)} of {len(equal)} weights are the same, bit for bit")


if __name__ == "__main__":
    quieten_lightning()
    if len(sys.argv) > 1:
        train(Path(sys.argv[1]), 0, WaitToBeKilled())
    else:
        main()
