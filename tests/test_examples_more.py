"""The examples of tagging, LightningCLI and resuming run, with what they promise."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import lightning_cli
import peptides
import pytest
import resume_after_kill
import tagging
import torch
import yaml

EXAMPLES = Path(__file__).parent.parent / "examples"
EVERYTHING, UPPER, HEAD = 58_961, 39_121, 81


def run_as_a_user(example, *arguments):
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_the_first_line_says_what_is_shown(path):
    first = path.read_text().partition("\n")[0]
    assert re.fullmatch(r'"""[A-Z].{30,}[.?](""")?', first), first
    assert ast.get_docstring(ast.parse(path.read_text()))


# ---- tagging


def test_a_band_belongs_to_the_residue_it_was_said_of():
    chosen = [peptides.Peptide("ACDWY" * 3, 1), peptides.Peptide("MKT" * 10, 0)]
    packed, bands = tagging.tag(chosen)
    rows = torch.nn.utils.rnn.PackedSequence(bands, *packed[1:])
    unpacked = torch.nn.utils.rnn.unpack_sequence(rows)
    lstm, confidence = peptides.load_encoder("V7")
    for peptide, found in zip(chosen, unpacked, strict=True):
        with torch.no_grad():
            alone = confidence(lstm(peptides.one_hot(peptide.sequence)[None])[0])[0, :, 0]
        # right=True: a limit itself is in the upper band, as AlphaFold has it.
        expected = [sum(float(c) >= limit for limit in (50, 70, 90)) for c in alone]
        assert found.tolist() == expected
    assert len(set(bands.tolist())) > 1


@pytest.mark.slow
def test_tagging_learns_and_checks_each_step():
    printed = run_as_a_user("tagging.py")
    epochs = [line for line in printed.splitlines() if line.startswith("epoch ")]
    counts = [int(line.split()[2].replace(",", "")) for line in epochs]
    agreeing = [float(re.search(r"([\d.]+)% of", line)[1]) for line in epochs]
    assert counts == [164] * 3 + [16_804] * 3
    assert agreeing[-1] > agreeing[2] > 50  # the most frequent band alone: 46
    assert epochs[-1].endswith("60 steps checked")


# ---- LightningCLI


def test_the_yaml_file_is_the_one_that_the_example_names():
    config = yaml.safe_load((EXAMPLES / "lightning_cli.yaml").read_text())
    names = [entry["class_path"] for entry in config["trainer"]["callbacks"]]
    assert names == [
        "lstm_freeze.callbacks.GradualUnfreezing",
        "lstm_freeze.callbacks.FrozenWeightsCheck",
    ]
    assert "examples/lightning_cli.yaml" in lightning_cli.__doc__


@pytest.mark.slow
def test_the_yaml_file_decides_what_trains_when():
    printed = run_as_a_user(
        "lightning_cli.py", "fit", "--config", str(EXAMPLES / "lightning_cli.yaml")
    )
    counts = [int(n.replace(",", "")) for n in re.findall(r"([\d,]+) parameters train", printed)]
    assert counts == [HEAD, HEAD, UPPER, UPPER, EVERYTHING, EVERYTHING]
    assert printed.endswith("31 comparisons of what is frozen, bit for bit\n")


@pytest.mark.slow
def test_the_command_line_goes_on_where_the_file_ends(tmp_path):
    config = yaml.safe_load((EXAMPLES / "lightning_cli.yaml").read_text())
    config["trainer"]["callbacks"][0]["init_args"]["every_n_epochs"] = 1
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(config))
    more = ("--trainer.max_epochs", "2", "--trainer.callbacks+=lstm_freeze.callbacks.WeightDrift")
    printed = run_as_a_user(
        "lightning_cli.py", "fit", "--config", str(tmp_path / "other.yaml"), *more
    )
    counts = re.findall(r"([\d,]+) parameters train", printed)
    assert counts == ["81", "39,121"]


# ---- resuming


def test_the_kill_falls_into_the_middle_of_a_phase_and_of_an_epoch():
    epoch, step = divmod(resume_after_kill.KILLED_AT, 5)
    assert step != 0
    assert epoch % 2 == 1  # phases begin at even epochs
    assert 0 < epoch < resume_after_kill.EPOCHS - 1


@pytest.mark.slow
def test_a_killed_run_ends_with_the_bits_of_a_whole_one():
    printed = run_as_a_user("resume_after_kill.py")
    assert "whole run:   30 steps" in printed
    assert f"killed run:  epoch 3, {UPPER:,} parameters train; killed, exit status -9" in printed
    assert "resumed run: from step 15 to 30" in printed
    assert "18 of 18 weights are the same, bit for bit" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning")
def test_two_seeds_end_with_other_bits(tmp_path):
    """The runs compared above begin differently: what makes them equal is the checkpoint."""
    ends = [
        resume_after_kill.train(tmp_path / str(seed), seed).lightning_module.state_dict()
        for seed in (0, 1)
    ]
    assert not any(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
