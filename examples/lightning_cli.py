"""LightningCLI: a YAML file decides what is frozen when, and how it is checked; no code changes.

    python examples/lightning_cli.py fit --config examples/lightning_cli.yaml

The command line goes on where the file ends: `--trainer.max_epochs 2`, or
`--trainer.callbacks+=lstm_freeze.callbacks.WeightDrift`.
"""

from __future__ import annotations

import logging
import warnings

import pytorch_lightning as pl
import torch
from peptides import Peptide, collate, load_encoder, split_peptides
from pytorch_lightning.cli import LightningCLI
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from lstm_freeze import BiLSTM, param_groups, status
from lstm_freeze.callbacks import FrozenWeightsCheck


class Classifier(pl.LightningModule):
    """A pretrained BiLSTM under a linear head."""

    def __init__(self, version: str = "V6", lr: float = 0.01, layer_decay: float = 1 / 2.6) -> None:
        """Take an encoder over; the head is new.

        Args:
            version: Which of alphaPredict's encoders.
            lr: The head's learning rate.
            layer_decay: The factor from each layer's learning rate to that of the one below.
        """
        super().__init__()
        self.encoder = BiLSTM.from_lstm(load_encoder(version)[0])
        self.head = nn.Linear(2 * self.encoder.hidden_size, 1)
        self.lr, self.layer_decay = lr, layer_decay

    def forward(self, peptides: PackedSequence) -> Tensor:
        """The logits (B,) of B packed peptides, from the top layer's final states."""
        _, (h_n, _) = self.encoder(peptides)
        return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1)).squeeze(1)

    def training_step(self, batch: tuple[PackedSequence, Tensor]) -> Tensor:
        """The loss of a batch."""
        peptides, labels = batch
        return nn.functional.binary_cross_entropy_with_logits(self(peptides), labels.float())

    def validation_step(self, batch: tuple[PackedSequence, Tensor]) -> None:
        """Log the accuracy, which a Plateau in the YAML file could watch."""
        peptides, labels = batch
        correct = (self(peptides) > 0) == labels.bool()
        self.log("val_accuracy", correct.float().mean(), batch_size=len(labels))

    def on_validation_epoch_end(self) -> None:
        """Say what has trained."""
        if not self.trainer.sanity_checking:
            print(
                f"epoch {self.current_epoch}: {status(self).trainable:>6,} parameters train, "
                f"validation accuracy {self.trainer.callback_metrics['val_accuracy']:.1%}"
            )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over every parameter, frozen ones too."""
        return torch.optim.AdamW(param_groups(self, self.lr, layer_decay=self.layer_decay))


class Peptides(pl.LightningDataModule):
    """Antimicrobial peptides and others."""

    def __init__(self, batch_size: int = 20) -> None:
        """Read them.

        Args:
            batch_size: How many peptides make a training step.
        """
        super().__init__()
        self.data, self.batch_size = split_peptides(), batch_size

    def train_dataloader(self) -> DataLoader[Peptide]:
        """Batches of packed peptides and their labels, shuffled."""
        return DataLoader(self.data.train, self.batch_size, shuffle=True, collate_fn=collate)

    def val_dataloader(self) -> DataLoader[Peptide]:
        """One batch of all that is held back for validation."""
        return DataLoader(self.data.val, len(self.data.val), collate_fn=collate)


def quieten_lightning() -> None:
    """Keep Lightning's advice on hardware and loaders from burying the lines printed here."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
    # Lightning 2.6 uses what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line, or these arguments."""
    quieten_lightning()
    cli = LightningCLI(
        Classifier, Peptides, seed_everything_default=0, save_config_callback=None, args=arguments
    )
    for callback in cli.trainer.callbacks:
        if isinstance(callback, FrozenWeightsCheck):
            print(f"{callback.checks} comparisons of what is frozen, bit for bit")


if __name__ == "__main__":
    main()
