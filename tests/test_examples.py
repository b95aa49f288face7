"""The examples run, with the numbers they promise, on real encoders and real data."""

import subprocess
import sys
from pathlib import Path

import finetune_peptides
import peptides
import plain_loop
import pytest
import torch

from lstm_freeze import BiLSTM

EXAMPLES = Path(__file__).parent.parent / "examples"
ENCODER, HEAD = 58_880, 81
UPPER = 39_040

# From alphaPredict's README: the confidence of the first residues of this sequence.
SEQUENCE = "DSSPEAPAEPPKDVPHDWLYSYVFLTHHPADFLR"
CONFIDENCE = torch.tensor([39.5097, 43.5166, 46.9381, 55.6352])


@pytest.mark.parametrize("convert", [lambda lstm: lstm, BiLSTM.from_lstm], ids=["LSTM", "BiLSTM"])
def test_pretrained_encoder_gives_its_published_predictions(convert):
    lstm, fc = peptides.load_encoder("V1")
    with torch.no_grad():
        confidence = fc(convert(lstm)(peptides.one_hot(SEQUENCE)[None])[0])[0, :, 0]
    torch.testing.assert_close(confidence[:4], CONFIDENCE, rtol=0, atol=5e-5)


@pytest.mark.parametrize(
    ("version", "hidden", "layers"),
    [("V1", 10, 1), ("V2", 20, 2), ("V4", 20, 2), ("V5", 40, 5), ("V6", 40, 2), ("V7", 100, 2)],
)
def test_every_checkpoint_is_read(version, hidden, layers):
    lstm, fc = peptides.load_encoder(version)
    assert (lstm.input_size, lstm.hidden_size, lstm.num_layers) == (20, hidden, layers)
    assert lstm.bidirectional
    assert fc.in_features == 2 * hidden


def test_an_unknown_checkpoint_is_refused():
    with pytest.raises(ValueError, match="`networkV3` names 0 files of alphaPredict"):
        peptides.load_encoder("V3")


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    def missing(package):
        raise peptides.PackageNotFoundError(package)

    monkeypatch.setattr(peptides, "files", missing)
    with pytest.raises(ModuleNotFoundError, match=r"package modlamp: pip install .*\[examples\]"):
        peptides.load_peptides()


def test_peptides_are_distinct_and_of_one_label():
    found = peptides.load_peptides()
    assert len({peptide.sequence for peptide in found}) == len(found) == 4620
    assert {peptide.label for peptide in found} == {0, 1}
    assert {len(peptide.sequence) for peptide in found} >= {7, 174}


def test_split_is_fixed_disjoint_and_complete():
    torch.manual_seed(1)
    first = peptides.split_peptides()
    torch.manual_seed(2)
    assert peptides.split_peptides() == first
    assert [len(part) for part in first] == [100, 1100, 3420]
    assert sorted(first.train + first.val + first.test) == sorted(peptides.load_peptides())


def test_collate_packs_every_residue_in_place():
    batch = [peptides.Peptide("ACD", 1), peptides.Peptide("YWACA", 0)]
    packed, labels = peptides.collate(batch)
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed, batch_first=True)
    assert labels.tolist() == [1, 0]
    assert lengths.tolist() == [3, 5]
    assert (padded.sum(-1) == torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])).all()
    assert padded[0, :3].argmax(-1).tolist() == [0, 1, 2]
    assert padded[1].argmax(-1).tolist() == [19, 18, 0, 1, 0]


def run_as_a_user(example, *arguments):
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


# ---- the demo


@pytest.fixture
def little_data(monkeypatch):
    """Few peptides, and a layer unfrozen after each epoch: the demo in a second."""
    whole = peptides.split_peptides()
    little = peptides.Split(whole.train[:32], whole.val[:50], whole.test[:50])
    monkeypatch.setattr(finetune_peptides, "split_peptides", lambda: little)
    monkeypatch.setattr(finetune_peptides, "EPOCHS_A_PHASE", 1)
    return little


EVERYTHING = [ENCODER + HEAD] * 4
WHEN = {
    "scratch": (EVERYTHING, 0),
    "frozen": ([HEAD] * 4, 8),
    "full": (EVERYTHING, 0),
    "gradual": ([HEAD, UPPER + HEAD, *EVERYTHING[:2]], 4),
}


@pytest.mark.parametrize("key", WHEN)
def test_method_trains_what_it_says_and_checks_the_rest(key, little_data):
    trainable, checked = WHEN[key]
    run = finetune_peptides.train(
        finetune_peptides.METHODS[key], seed=0, data=little_data, epochs=4, advance=lambda: None
    )
    assert run.trainable == trainable
    assert (run.checked, run.steps) == (checked, 8)
    assert set(run.test) == {"accuracy", "auroc"}
    assert all(len(curve) == 4 for curve in run.val.values())


def test_gradual_unfreezing_goes_from_the_head_down(little_data):
    method = finetune_peptides.METHODS["gradual"]
    run = finetune_peptides.train(method, 0, little_data, epochs=3, advance=lambda: None)
    assert run.parts == [{"head"}, {"head", "layer 1"}, {"head", "layer 1", "layer 0"}]


def test_only_from_scratch_starts_without_the_pretrained_weights():
    pretrained = peptides.load_encoder("V6")[0].state_dict()
    for key, method in finetune_peptides.METHODS.items():
        module = finetune_peptides.PeptideClassifier(method.pretrained, 0.01, 1.0)
        assert type(module.encoder) is BiLSTM
        same = [torch.equal(pretrained[n], p) for n, p in module.encoder.state_dict().items()]
        assert any(same) == all(same) == (key != "scratch")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_demo_prints_its_table_and_draws_its_figure(
    columns, little_data, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", columns)
    out = tmp_path / "new" / "folder"
    finetune_peptides.main(
        ["--seeds", "2", "--method", "frozen", "gradual", "--epochs", "2", "--out", str(out)]
    )
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= int(columns) or str(out) in max(lines, key=len)
    assert "mean ± standard deviation over 2 seeds" in printed
    (frozen,) = [line for line in lines if line.strip().startswith("frozen encoder")]
    assert "8 of 8" in frozen
    figure = out / "finetune_peptides.png"
    assert f"Figure: {figure}" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "--seeds: must be at least 1, got 0"),
        (["--epochs", "many"], "--epochs: invalid"),
        (["--method", "best"], "invalid choice: 'best'"),
    ],
)
def test_demo_refuses_wrong_options(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        finetune_peptides.main(arguments)
    assert message in capsys.readouterr().err


def test_demo_explains_its_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        finetune_peptides.main(["--help"])
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--seeds", "--method", "--epochs", "--out"))


@pytest.mark.slow
def test_whole_demo_as_a_user_runs_it(tmp_path):
    printed = run_as_a_user("finetune_peptides.py", "--out", str(tmp_path))
    assert all(line in printed for line in ("from scratch", "0 of 252", "252 of 252", "126 of 252"))
    assert (tmp_path / "finetune_peptides.png").stat().st_size > 20_000


# ---- the plain loop


def test_plain_loop_unfreezes_layer_by_layer_and_checks_each_step(little_data, capsys, monkeypatch):
    monkeypatch.setattr(plain_loop, "split_peptides", lambda: little_data)
    plain_loop.main()
    epochs = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    trainable = [HEAD, HEAD, UPPER + HEAD, UPPER + HEAD, ENCODER + HEAD, ENCODER + HEAD]
    assert len(epochs) == plain_loop.EPOCHS
    for number, (line, count) in enumerate(zip(epochs, trainable, strict=True)):
        assert f"epoch {number}: {count:>6,} parameters train" in line
        assert line.endswith(f"{2 * (number + 1)} steps checked")


@pytest.mark.slow
def test_whole_plain_loop_as_a_user_runs_it():
    printed = run_as_a_user("plain_loop.py")
    assert "epoch 5: 58,961 parameters train" in printed
    assert "30 steps checked" in printed


def test_every_example_is_run_by_the_tests():
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"peptides.py"}
    assert len(names) >= 6
    assert {name for name in names if f'"{name}"' not in tests} == set()
