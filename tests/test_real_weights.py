"""Real pretrained encoders: alphaPredict's six checkpoints give the same numbers in BiLSTM."""

import itertools
import re
from importlib.metadata import files

import pytest
import torch
from _oracle import Example as Call
from _oracle import assert_close, assert_same_bits, gradients, results, weighted_sum
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

from lstm_freeze import BiLSTM, freeze

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
SHAPES = {"V1": (10, 1), "V2": (20, 2), "V4": (20, 2), "V5": (40, 5), "V6": (40, 2), "V7": (100, 2)}
PROTEIN = "DSSPEAPAEPPKDVPHDWLYSYVFLTHHPADFLR"
PEPTIDES = [
    "GIGKFLHSAKKFGKAFVGEIMNS",
    "M",
    "KWKLFKKIEKVGQNIRDGIIKAGPAVAVVGQATQIAK",
    "LLGDFFRKSKEKIGK",
]
# The confidence alphaPredict's README prints for PROTEIN (network V1), residue by residue.
PUBLISHED = (39.5097, 43.5166, 46.9381, 55.6352)
# These encoders' cell states reach 36: nn.LSTM in float32 is itself up to 3e-6 from the float64
# result, so two correct implementations may differ by more than on fresh weights.
ROUNDING = 6e-6


def checkpoint(version: str) -> dict[str, torch.Tensor]:
    (file,) = [file for file in files("alphaPredict") if re.search(f"{version}[._]", file.name)]
    return torch.load(file.locate(), map_location="cpu", weights_only=True)


def encoders(version: str) -> tuple[nn.LSTM, BiLSTM, dict[str, torch.Tensor]]:
    """The checkpoint's nn.LSTM, its BiLSTM, and the state both were loaded from."""
    state = {
        name.removeprefix("lstm."): tensor
        for name, tensor in checkpoint(version).items()
        if name.startswith("lstm.")
    }
    hidden, layers = SHAPES[version]
    lstm = nn.LSTM(20, hidden, layers, batch_first=True, bidirectional=True)
    bilstm = BiLSTM(20, hidden, layers, batch_first=True)
    for module in (lstm, bilstm):
        module.load_state_dict(state, strict=True)
    return lstm, bilstm, state


def one_hot(sequence: str) -> torch.Tensor:
    indices = torch.tensor([RESIDUES.index(residue) for residue in sequence])
    return nn.functional.one_hot(indices, len(RESIDUES)).float()


def test_all_checkpoints_of_the_package_are_here():
    found = [file.name for file in files("alphaPredict") if file.suffix == ".pt"]
    versions = [re.search(r"networkV\d", name)[0].removeprefix("network") for name in found]
    assert sorted(versions) == sorted(SHAPES)


@pytest.mark.parametrize("version", SHAPES)
def test_state_dict_round_trip_is_exact(version: str):
    _, bilstm, state = encoders(version)
    assert_same_bits(bilstm.state_dict(), state)
    there = nn.LSTM(20, *SHAPES[version], batch_first=True, bidirectional=True)
    there.load_state_dict(bilstm.state_dict(), strict=True)
    back = BiLSTM(20, *SHAPES[version], batch_first=True)
    back.load_state_dict(there.state_dict(), strict=True)
    assert_same_bits(back.state_dict(), state)


@pytest.mark.parametrize("version", SHAPES)
def test_every_output_equals_nn_lstms(version: str):
    lstm, bilstm, _ = encoders(version)
    dense = one_hot(PROTEIN).unsqueeze(0)
    packed = pack_sequence([one_hot(peptide) for peptide in PEPTIDES], enforce_sorted=False)
    for x in (dense, one_hot(PROTEIN), packed):
        assert_close(results(bilstm(x)), results(lstm(x)), ROUNDING)


@pytest.mark.parametrize("version", SHAPES)
def test_every_gradient_equals_nn_lstms(version: str):
    lstm, bilstm, _ = encoders(version)
    call = Call({"input": one_hot(PROTEIN).unsqueeze(0).requires_grad_()}, "dense")
    assert_close(gradients(bilstm, call), gradients(lstm, call), 1e-5)


@pytest.mark.parametrize("version", SHAPES)
def test_float64_is_the_truth_for_both(version: str):
    """BiLSTM in float32 is about as far from the float64 result as nn.LSTM is."""
    lstm, bilstm, _ = encoders(version)
    x = one_hot(PROTEIN).unsqueeze(0)
    found, expected = results(bilstm(x)), results(lstm(x))
    truth = results(lstm.double()(x.double()))
    assert_close(results(bilstm.double()(x.double())), truth, 1e-12)
    for name, exact in truth.items():
        own, theirs = ((r[name] - exact).abs().max().item() for r in (found, expected))
        slack = 2 * torch.finfo(torch.float32).eps * exact.abs().max().item()
        assert own <= 3 * theirs + slack, f"{name}: {own:.1e} against {theirs:.1e}"


@pytest.mark.parametrize("cls", [nn.LSTM, BiLSTM])
def test_the_published_confidences(cls: type[nn.Module]):
    state = checkpoint("V1")
    encoder = cls(20, 10, 1, batch_first=True, bidirectional=True)
    head = nn.Linear(20, 1)
    model = nn.ModuleDict({"lstm": encoder, "fc": head})
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        confidence = head(encoder(one_hot(PROTEIN).unsqueeze(0))[0]).flatten()
    assert len(confidence) == len(PROTEIN)
    assert confidence[: len(PUBLISHED)].tolist() == pytest.approx(PUBLISHED, abs=1e-4)


@pytest.mark.parametrize("version", ["V1", "V5"])
def test_packed_peptides_equal_each_alone(version: str):
    _, bilstm, _ = encoders(version)
    sequences = [one_hot(peptide) for peptide in PEPTIDES]
    output, (h_n, c_n) = bilstm(pack_sequence(sequences, enforce_sorted=False))
    padded, _ = pad_packed_sequence(output, batch_first=True)
    for i, sequence in enumerate(sequences):
        alone = results(bilstm(sequence))
        among = {"output": padded[i, : len(sequence)], "h_n": h_n[:, i], "c_n": c_n[:, i]}
        assert_close(among, alone, ROUNDING)


@pytest.mark.parametrize("version", ["V5", "V7"])
def test_freezing_lower_layers_changes_no_bit_of_the_rest(version: str):
    _, bilstm, _ = encoders(version)
    x = one_hot(PROTEIN).unsqueeze(0)
    parameters = dict(bilstm.named_parameters())
    forward = results(bilstm(x))
    full = torch.autograd.grad(weighted_sum(forward), list(parameters.values()))
    for depth in range(1, bilstm.num_layers):
        handle = freeze(bilstm, layers=slice(0, depth))
        again = results(bilstm(x))
        assert_same_bits(again, forward)
        weighted_sum(again).backward()
        for (name, parameter), gradient in zip(parameters.items(), full, strict=True):
            layer = int(re.search(r"_l(\d+)", name)[1])
            assert (parameter.grad is None) == (layer < depth), name
            assert layer < depth or torch.equal(parameter.grad, gradient), name
        handle.undo()
        bilstm.zero_grad()


def test_fine_tuning_takes_nn_lstms_path():
    lstm, bilstm, _ = encoders("V6")
    x = one_hot(PROTEIN).unsqueeze(0).double()
    target = torch.linspace(0, 1, len(PROTEIN), dtype=torch.float64)
    for module in (lstm.double(), bilstm.double()):
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
        losses = []
        for _ in itertools.repeat(None, 5):
            optimizer.zero_grad()
            loss = (module(x)[0].mean(-1).flatten() - target).pow(2).mean()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
    assert_close(bilstm.state_dict(), lstm.state_dict(), 1e-8)
