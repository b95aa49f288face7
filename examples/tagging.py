"""Tagging every residue, on packed sequences: first the head alone, then everything (LP-FT).

A small pretrained BiLSTM learns to say in which of AlphaFold's four bands of confidence each
residue of a peptide falls. The labels are not measured: a larger pretrained network says them, so
the accuracy is how often the two agree (distillation).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peptides import Peptide, collate, load_encoder, split_peptides
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lstm_freeze import BiLSTM, FreezeSchedule, FrozenGuard, param_groups, status

BANDS = ("very low", "low", "confident", "very high")
LIMITS = torch.tensor([50.0, 70.0, 90.0])  # AlphaFold's
EPOCHS = 6
BATCH_SIZE = 20


class Tagger(nn.Module):
    """A pretrained BiLSTM under a linear head."""

    def __init__(self) -> None:
        """Take alphaPredict's small encoder over; the head is new."""
        super().__init__()
        self.encoder = BiLSTM.from_lstm(load_encoder("V2")[0])
        self.head = nn.Linear(2 * self.encoder.hidden_size, len(BANDS))

    def forward(self, peptides: PackedSequence) -> Tensor:
        """The logits (N, 4) of the N residues of all peptides, in the order they are packed in."""
        output, _ = self.encoder(peptides)
        return self.head(output.data)


@torch.no_grad()
def tag(peptides: Sequence[Peptide]) -> tuple[PackedSequence, Tensor]:
    """Peptides as one packed input, and the band (N,) of each residue, packed in the same order.

    No padding is ever made, so there is none to mask in the loss.
    """
    packed, _ = collate(peptides)
    lstm, confidence = load_encoder("V7")
    return packed, torch.bucketize(confidence(lstm(packed)[0].data).squeeze(1), LIMITS, right=True)


def main() -> None:
    """Train, and print what happens in each epoch."""
    torch.manual_seed(0)
    data = split_peptides(train=200, val=300)
    batches = [tag(data.train[at : at + BATCH_SIZE]) for at in range(0, 200, BATCH_SIZE)]
    unseen, truth = tag(data.val)
    shares = torch.bincount(truth, minlength=len(BANDS)) / len(truth)
    print(", ".join(f"{name} {share:.0%}" for name, share in zip(BANDS, shares, strict=True)))

    model = Tagger()
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, layer_decay=1 / 2.6))
    schedule = FreezeSchedule.linear_probing(model, every=EPOCHS // 2)
    print(schedule.preview(model, EPOCHS), end="\n\n")

    with FrozenGuard(model).attach(optimizer) as guard:
        for epoch in range(EPOCHS):
            schedule.apply(model, epoch, optimizer)
            for index in torch.randperm(len(batches)):
                peptides, bands = batches[index]
                loss = nn.functional.cross_entropy(model(peptides), bands)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                agreeing = (model(unseen).argmax(1) == truth).float().mean()
            print(
                f"epoch {epoch}: {status(model).trainable:>6,} parameters train, "
                f"{agreeing:.1%} of {len(truth):,} unseen residues agree, "
                f"{guard.checks} steps checked"
            )


if __name__ == "__main__":
    main()
