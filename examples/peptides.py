"""Real material for the examples: pretrained protein encoders and labelled peptides.

Both come from ordinary packages (the `examples` extra): `alphaPredict` carries BiLSTM encoders that
predict AlphaFold's per-residue confidence from a protein's sequence, `modlamp` the peptides. Only
their data files are read; nothing is downloaded.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, PackagePath, files
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_sequence

AMINO_ACIDS = "ACDEFGHIKLMNPQRSTVWY"
OF_A_FAMILY = 10  # at most, in a task, so that no family decides about a fold
_MOST = 1000  # peptides of a task, so that finding their families takes no longer than a second
_CODE = {letter: index for index, letter in enumerate(AMINO_ACIDS)}


class Peptide(NamedTuple):
    """A peptide's sequence, and whether it is antimicrobial (or anticancer)."""

    sequence: str
    label: int


class Split(NamedTuple):
    """Peptides to train on, to choose by, and to report on."""

    train: list[Peptide]
    val: list[Peptide]
    test: list[Peptide]


class Task(NamedTuple):
    """N peptides: padded residues (N, T, 20), lengths (N,), labels (N,) and families (N,)."""

    residues: Tensor
    lengths: Tensor
    labels: Tensor
    families: Tensor


def load_encoder(version: str = "V6") -> tuple[nn.LSTM, nn.Linear]:
    """A pretrained alphaPredict encoder and its output layer.

    Args:
        version: "V1", "V2", "V4", "V5", "V6" or "V7"; they differ in depth and width.

    Returns:
        The LSTM, batch first, input (B, T, 20) one-hot in the order of `AMINO_ACIDS`; and the layer
        that maps its output to a confidence between 0 and 100.
    """
    path = _data_file("alphaPredict", f"network{version}").locate()
    state = torch.load(str(path), map_location="cpu", weights_only=True)
    layers = sum(name.startswith("lstm.weight_ih_l") for name in state) // 2
    hidden = state["lstm.weight_hh_l0"].shape[1]
    lstm = nn.LSTM(len(AMINO_ACIDS), hidden, layers, batch_first=True, bidirectional=True)
    fc = nn.Linear(2 * hidden, 1)
    nn.ModuleDict({"lstm": lstm, "fc": fc}).load_state_dict(state)
    return lstm, fc


def load_peptides() -> list[Peptide]:
    """The peptides of modlamp's AMPvsUniProt: each sequence once, in the order of the file.

    Sequences that are listed with both labels are left out.
    """
    text = _data_file("modlamp", "AMPvsUniProt.csv").read_text()
    labels: dict[str, set[int]] = {}
    for sequence, label in list(csv.reader(text.splitlines()))[1:]:
        labels.setdefault(sequence.strip(), set()).add(int(label))
    return [Peptide(sequence, *found) for sequence, found in labels.items() if len(found) == 1]


def load_anticancer() -> list[Peptide]:
    """The peptides of modlamp's ACP_CancPPD_vs_Random: anticancer (1) or a random sequence (0)."""
    text = _data_file("modlamp", "ACP_CancPPD_vs_Random.csv").read_text()
    rows = list(csv.reader(text.splitlines()))[1:]
    return [Peptide(sequence, int(label)) for sequence, label in rows]


@cache
def load_task(name: str = "anticancer") -> Task:
    """The peptides of a task, "anticancer" or "antimicrobial": at most ten of a family."""
    peptides = load_anticancer() if name == "anticancer" else load_peptides()
    order = np.random.default_rng(0).permutation(len(peptides))[:_MOST]
    chosen = [peptides[index] for index in order]
    seen: Counter[int] = Counter()
    kept = []
    for peptide, family in zip(chosen, families([p.sequence for p in chosen]), strict=True):
        seen[family] += 1
        if seen[family] <= OF_A_FAMILY:
            kept.append((one_hot(peptide.sequence), float(peptide.label), family))
    residues, labels, of_family = zip(*kept, strict=True)
    lengths = torch.tensor([len(one) for one in residues])
    padded = pad_sequence(residues, batch_first=True)
    return Task(padded, lengths, torch.tensor(labels), torch.tensor(of_family))


def few_labelled(
    data: Task, size: int, splits: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices (train, test): folds of families, with `size` of the others to train on.

    Each peptide is tested on once, and its family is never in train then. The train set of a
    smaller size is part of that of a larger one.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # the other examples do without it

    labels = data.labels.numpy()
    folds = StratifiedGroupKFold(splits, shuffle=True, random_state=seed)
    pairs = []
    for number, (others, test) in enumerate(folds.split(labels, labels, data.families)):
        order = np.random.default_rng(1000 * seed + number).permutation(others)
        ones = round(size * labels.mean())
        ones_first = [order[labels[order] == 1][:ones], order[labels[order] == 0][: size - ones]]
        pairs.append((np.concatenate(ones_first), test))
    return pairs


def families(sequences: Sequence[str], identity: float = 0.8) -> list[int]:
    """The number of the family of each sequence: near-duplicates, and theirs in turn, share one.

    Two sequences are near-duplicates where at least this share of the longer one stays as it is
    when letters are inserted, left out and replaced to make the other.
    """
    family = list(range(len(sequences)))
    letters = torch.stack([one_hot(sequence).sum(0) for sequence in sequences])
    for i, one in enumerate(sequences):
        # So many edits at least, since each changes the counts of letters by at most one each way.
        change = letters - letters[i]
        fewest = torch.maximum(change.clamp(min=0).sum(1), -change.clamp(max=0).sum(1)).tolist()
        for j in range(i):
            most = (1 - identity) * max(len(one), len(sequences[j])) + 1e-9
            if family[i] != family[j] and fewest[j] <= most and _edits(one, sequences[j]) <= most:
                joined = {family[i], family[j]}
                family = [min(joined) if f in joined else f for f in family]
    return family


def _edits(one: str, other: str) -> int:
    """The edit distance of two sequences."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def split_peptides(train: int = 100, val: int = 1100) -> Split:
    """The same random split on every call: `train` and `val` peptides, the rest for the test.

    Only identical sequences are kept apart; similar ones may fall on both sides, so the accuracies
    are for comparing methods and not what to expect on unrelated families.
    """
    peptides = load_peptides()
    order = torch.randperm(len(peptides), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [peptides[index] for index in order]
    return Split(shuffled[:train], shuffled[train : train + val], shuffled[train + val :])


def one_hot(sequence: str) -> Tensor:
    """A sequence of T amino acids as a (T, 20) tensor."""
    codes = torch.tensor([_CODE[letter] for letter in sequence])
    return nn.functional.one_hot(codes, len(AMINO_ACIDS)).float()


def collate(peptides: Sequence[Peptide]) -> tuple[PackedSequence, Tensor]:
    """B peptides of different lengths as one packed input, and their labels (B,)."""
    packed = pack_sequence([one_hot(p.sequence) for p in peptides], enforce_sorted=False)
    return packed, torch.tensor([p.label for p in peptides])


def _data_file(package: str, part: str) -> PackagePath:
    try:
        found = files(package) or []
    except PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f'the examples read data from the package {package}: pip install -e ".[examples]"'
        ) from error
    matching = [file for file in found if part in file.name]
    if len(matching) != 1:
        raise ValueError(f"`{part}` names {len(matching)} files of {package}; it must name one")
    return matching[0]
