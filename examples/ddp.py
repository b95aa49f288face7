"""Gradual unfreezing on several processes: only `strategy=`, `devices=` and `num_nodes=` change.

    python examples/ddp.py --devices 2

Each process takes its share of the peptides, and DDP averages the gradients. After every epoch the
processes compare the bits of all their weights; after every step each compares what is frozen.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings

# Read by torch's import: DDP would say on stderr that the last phase freezes nothing.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import pytorch_lightning as pl
import torch
from peptides import Peptide, collate, load_encoder, split_peptides
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from lstm_freeze import BiLSTM, param_groups, status
from lstm_freeze.callbacks import FrozenWeightsCheck, GradualUnfreezing

EPOCHS = 6


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

    def on_train_epoch_end(self) -> None:
        """Compare the weights of all processes, bit for bit, and say what has trained."""
        own = torch.cat([p.detach().flatten() for p in self.parameters()])
        everyone = [torch.empty_like(own) for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather(everyone, own)
        alike = sum(torch.equal(own.view(torch.int32), one.view(torch.int32)) for one in everyone)
        if self.global_rank == 0:
            print(
                f"epoch {self.current_epoch}: {status(self).trainable:>6,} parameters train; "
                f"{alike} of {len(everyone)} ranks hold the same bits",
                flush=True,
            )


def main() -> None:
    """Train on this machine; several machines take `num_nodes=` and a launcher besides."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--devices", type=int, default=2, help="processes on this machine")
    options = parser.parse_args()
    # Lightning's advice on hardware and loaders would bury the lines of the epochs.
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
    # Lightning 2.6 uses what torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    pl.seed_everything(0, verbose=False)
    train: list[Peptide] = split_peptides().train
    check = FrozenWeightsCheck()
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp_find_unused_parameters_true",
        devices=options.devices,
        max_epochs=EPOCHS,
        callbacks=[GradualUnfreezing(every_n_epochs=2), check],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(), DataLoader(train, batch_size=10, shuffle=True, collate_fn=collate))
    if trainer.is_global_zero:
        print(f"{check.checks} comparisons of what is frozen, bit for bit, on each rank")


if __name__ == "__main__":
    main()
