"""The examples run, with the numbers they promise, on real encoders and real data."""

import multiprocessing
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import finetune_peptides
import learning_curves
import numpy as np
import peptides
import plain_loop
import pytest
import torch

from lstm_freeze import BiLSTM

EXAMPLES = Path(__file__).parent.parent / "examples"
ENCODER, HEAD = 58_880, 81
UPPER = 39_040
# Of rank 4, for each of two directions: (160, 20) and (160, 40), (160, 80) and (160, 40).
FACTORS = 4 * 2 * ((160 + 20) + (160 + 40) + (160 + 80) + (160 + 40))

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
    assert all("scores" in line for line in done.stderr.splitlines())  # progress of `compare`
    return done.stdout


# ---- the demo


@pytest.fixture(scope="module")
def anticancer():
    return peptides.load_task()


def test_families_are_near_duplicates_and_theirs_in_turn():
    one, two, three = "ACDEFGHIKL", "ACDEFGHIKV", "ACDEFGHRKV"
    far, longer, reordered = "WYWYWYWYWY", "ACDEFGHIKLAAA", "LKIHGFEDCA"
    sequences = [one, far, reordered, two, three, longer]
    assert peptides.families(sequences, 0.9) == [0, 1, 2, 0, 0, 5]
    assert peptides.families(sequences, 0.7) == [0, 1, 2, 0, 0, 0]
    assert peptides.families(sequences, 0.95) == [0, 1, 2, 3, 4, 5]
    assert peptides.families([three, one], 0.8) == [0, 0]
    assert peptides.families([three, one], 0.81) == [0, 1]


@pytest.fixture
def steps(monkeypatch):
    """The counter of the demo's processes, in this one."""
    counter = multiprocessing.Array("q", 2)
    monkeypatch.setattr(finetune_peptides, "_steps", counter)
    return counter


def test_the_demo_takes_at_most_ten_peptides_of_a_family(anticancer):
    counts = anticancer.families.unique(return_counts=True)[1]
    assert counts.max() == peptides.OF_A_FAMILY
    assert len(anticancer.labels) == 712
    assert int(anticancer.labels.sum()) == 299


def test_labelled_peptides_grow_and_share_no_family_with_the_test(anticancer):
    splits = [peptides.few_labelled(anticancer, size, 8) for size in (25, 50, 100)]
    others = peptides.few_labelled(anticancer, 25, 8, seed=1)
    assert any(list(a[1]) != list(b[1]) for a, b in zip(splits[0], others, strict=True))
    tested = []
    for pairs in zip(*splits, strict=True):
        few, more, most = (set(train.tolist()) for train, _ in pairs)
        assert few < more < most
        assert [len(part) for part in (few, more, most)] == [25, 50, 100]
        for train, test in pairs:
            of_train = set(anticancer.families[train].tolist())
            assert not of_train & set(anticancer.families[test].tolist())
        tested += pairs[0][1].tolist()
    assert sorted(tested) == list(range(712))


# Of 24 steps, those in which something is frozen, and how many numbers train at the end.
WHEN = {
    "from scratch": (0, ENCODER + HEAD),
    "frozen encoder": (24, HEAD),
    "full": (0, ENCODER + HEAD),
    "gradual": (12, ENCODER + HEAD),
    "LP-FT": (8, ENCODER + HEAD),
    "LoRA": (24, FACTORS + HEAD),
}


def test_every_method_of_the_demo_is_tested():
    assert set(WHEN) == set(finetune_peptides.METHODS)
    assert len(learning_curves.LOOKS) >= len(finetune_peptides.METHODS)
    assert len({look[1:] for look in learning_curves.LOOKS}) == len(learning_curves.LOOKS)


@pytest.mark.parametrize("name", WHEN)
def test_method_trains_what_it_says_and_checks_the_rest(name, steps, monkeypatch):
    made = []
    plain = finetune_peptides.Classifier
    monkeypatch.setattr(
        finetune_peptides, "Classifier", lambda *args: made.append(plain(*args)) or made[-1]
    )
    settings = {**finetune_peptides.METHODS[name], "lr": 0.01, "task": "anticancer", "epochs": 12}
    accuracy = finetune_peptides.score(np.arange(32), np.arange(32, 60), 0, **settings)
    frozen, trainable = WHEN[name]
    (model,) = made
    assert list(steps) == [24, frozen]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert 0 <= accuracy <= 1
    pretrained = peptides.load_encoder("V6")[0].state_dict()
    moved = {
        n
        for n, p in model.encoder.state_dict().items()
        if n in pretrained and not torch.equal(pretrained[n], p)
    }
    assert moved == (set() if name in ("frozen encoder", "LoRA") else set(pretrained))


def test_only_from_scratch_starts_without_the_pretrained_weights():
    pretrained = peptides.load_encoder("V6")[0].state_dict()
    for name, settings in finetune_peptides.METHODS.items():
        model = finetune_peptides.Classifier(settings.get("pretrained", True), mean=True)
        assert type(model.encoder) is BiLSTM
        same = [torch.equal(pretrained[n], p) for n, p in model.encoder.state_dict().items()]
        assert any(same) == all(same) == (name != "from scratch")


class InThisProcess(ThreadPoolExecutor):
    """Stands for the two processes of the demo, whose start takes seconds."""

    def __init__(self, processes, context, **start):
        super().__init__(1, **start)


@pytest.mark.parametrize("columns", ["80", "100", "120"])
def test_demo_prints_its_tables_and_draws_its_figure(columns, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setattr(finetune_peptides, "ProcessPoolExecutor", InThisProcess)
    out = tmp_path / "new" / "folder"
    options = ["--labelled", "16", "24", "--splits", "2", "--epochs", "1", "--out", str(out)]
    finetune_peptides.main([*options, "--method", "frozen encoder", "from scratch", "LP-FT"])
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines)) <= int(columns) or str(out) in max(lines, key=len)
    flat = " ".join(printed.split())
    assert "712 peptides, of which 299 are anticancer, of 556 families" in flat
    # A step each, but two where 24 peptides are trained on: 22 a method, though two are compared
    # twice. In one epoch LP-FT trains no more than the head.
    assert "Frozen weights: 44 of 66 optimizer steps" in flat
    assert flat.count("no difference can be told over 2 splits") == 4
    assert "Is pretraining worth it? 16 labelled: Between the two methods" in flat
    assert "Which way is best? 16 labelled: Between the 3 methods" in flat
    assert "16 labelled" in flat
    figure = out / "finetune_peptides.png"
    assert f"Figure: {figure}" in printed
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_demo_stops_where_a_training_fails(tmp_path, monkeypatch):
    def score(train, test, seed, **settings):
        raise RuntimeError("a frozen weight moved")

    monkeypatch.setattr(finetune_peptides, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(finetune_peptides, "score", score)
    with pytest.raises(SystemExit, match="full: RuntimeError: a frozen weight moved"):
        finetune_peptides.main(["--method", "full", "--splits", "2", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits", "0"], "--splits: must be at least 2, got 0"),
        (["--splits", "1"], "--splits: must be at least 2, got 1"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["--epochs", "many"], "--epochs: invalid"),
        (["--method", "best"], "invalid choice: 'best'"),
        (["--task", "other"], "invalid choice: 'other'"),
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
    for option in ("--task", "--labelled", "--splits", "--method", "--epochs", "--out"):
        assert option in printed


@pytest.mark.slow
def test_whole_demo_as_a_user_runs_it(tmp_path):
    options = ["--splits", "3", "--labelled", "25", "50", "--out", str(tmp_path)]
    printed = run_as_a_user("finetune_peptides.py", *options)
    assert all(name in printed for name in WHEN)
    assert "optimizer steps were taken with something frozen" in " ".join(printed.split())
    assert (tmp_path / "finetune_peptides.png").stat().st_size > 20_000


# ---- the plain loop


def test_plain_loop_unfreezes_layer_by_layer_and_checks_each_step(capsys, monkeypatch):
    whole = peptides.split_peptides()
    little = peptides.Split(whole.train[:32], whole.val[:50], whole.test[:50])
    monkeypatch.setattr(plain_loop, "split_peptides", lambda: little)
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
    names = {path.name for path in EXAMPLES.glob("*.py")} - {"peptides.py", "learning_curves.py"}
    assert len(names) >= 6
    assert {name for name in names if f'"{name}"' not in tests} == set()
