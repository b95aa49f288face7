"""Gradual unfreezing in a plain PyTorch loop, without Lightning, with every step checked."""

from __future__ import annotations

import torch
from peptides import collate, load_encoder, split_peptides
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_freeze import BiLSTM, FreezeSchedule, FrozenGuard, param_groups, status

EPOCHS = 6
BATCH_SIZE = 20


class Classifier(nn.Module):
    """A pretrained BiLSTM under a linear head."""

    def __init__(self) -> None:
        """Take alphaPredict's encoder over; the head is new."""
        super().__init__()
        self.encoder = BiLSTM.from_lstm(load_encoder("V6")[0])
        self.head = nn.Linear(2 * self.encoder.hidden_size, 1)

    def forward(self, peptides: PackedSequence) -> Tensor:
        """The logits (B,) of B packed peptides, from the top layer's final states."""
        _, (h_n, _) = self.encoder(peptides)
        return self.head(torch.cat([h_n[-2], h_n[-1]], dim=1)).squeeze(1)


def main() -> None:
    """Train, and print what happens in each epoch."""
    torch.manual_seed(0)
    data = split_peptides()
    inputs, labels = collate(data.val)
    model = Classifier()
    # All parameters are in the optimizer from the start, so that unfreezing needs nothing more.
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, layer_decay=1 / 2.6))
    schedule = FreezeSchedule.gradual_unfreezing(model, encoder="encoder", head="head", every=2)
    print(schedule.preview(model, EPOCHS), end="\n\n")

    with FrozenGuard(model).attach(optimizer) as guard:
        for epoch in range(EPOCHS):
            schedule.apply(model, epoch, optimizer)
            for chosen in torch.randperm(len(data.train)).split(BATCH_SIZE):
                peptides, truth = collate([data.train[index] for index in chosen])
                loss = nn.functional.binary_cross_entropy_with_logits(
                    model(peptides), truth.float()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                correct = (model(inputs) > 0) == labels.bool()
            print(
                f"epoch {epoch}: {status(model).trainable:>6,} parameters train, validation "
                f"accuracy {correct.float().mean():.1%}, {guard.checks} steps checked"
            )


if __name__ == "__main__":
    main()
