"""LightningCLI: every callback from YAML, and a --help that reads well."""

import importlib
import warnings

import pytest
import torch
import yaml
from _fits import LIGHTNINGS, data, lightning, module

pytest.importorskip("jsonargparse")

OPTIONS = {
    "accelerator": "cpu",
    "max_epochs": 2,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def run(name, callbacks, folder, *arguments):
    """Run `fit` of a LightningCLI with these callbacks in its config; gives the trainer."""
    L = lightning(name)
    cli = importlib.import_module(f"{name}.cli")

    class Data(L.LightningDataModule):
        def train_dataloader(self):
            return data()

        def val_dataloader(self):
            return data()

    path = folder / "config.yaml"
    config = {"trainer": {**OPTIONS, "callbacks": callbacks}}
    path.write_text(yaml.safe_dump(config))
    given = arguments or ("fit", "--config", str(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return cli.LightningCLI(
            type(module(L)), Data, save_config_callback=None, args=list(given)
        ).trainer


def entry(name, **arguments):
    return {"class_path": f"lstm_freeze.callbacks.{name}", "init_args": arguments}


SCHEDULER = {
    "a mapping": {"schedule": {0: ["head"], 1: ["head", "encoder.lstm[-1]"]}},
    "a single target": {"schedule": {0: "head", 1: "*"}},
    "options": {"schedule": {0: ["head"]}, "check": "epoch"},
    "no check": {"schedule": {0: ["head"]}, "check": None},
    "a FreezeSchedule": {
        "schedule": {
            "class_path": "lstm_freeze.FreezeSchedule",
            "init_args": {"phases": {0: ["head"], 1: ["*"]}, "exclude": "encoder.norm"},
        }
    },
    "a Plateau": {
        "schedule": {0: ["head"], 1: ["*"]},
        "advance": {
            "class_path": "lstm_freeze.callbacks.Plateau",
            "init_args": {"monitor": "val_loss", "patience": 1},
        },
    },
    "a recipe": {"schedule": {"recipe": "linear_probing", "every": 1}},
    "a Plateau in short": {
        "schedule": {0: ["head"], 1: ["*"]},
        "advance": {"max_epochs_per_phase": 1},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SCHEDULER)
def test_freeze_scheduler(case, tmp_path):
    trainer = run(LIGHTNINGS[0], [entry("FreezeScheduler", **SCHEDULER[case])], tmp_path)
    (callback,) = [c for c in trainer.callbacks if type(c).__name__ == "FreezeScheduler"]
    assert callback.check == SCHEDULER[case].get("check", "step")
    changes = case in (
        "a mapping",
        "a single target",
        "a FreezeSchedule",
        "a recipe",
        "a Plateau in short",
    )
    assert callback.phase == (1 if changes else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHTNINGS)
def test_every_callback_in_either_lightning(name, tmp_path):
    (tmp_path / "schedule.yaml").write_text("recipe: linear_probing\n")
    trainer = run(
        name,
        [
            entry("FreezeScheduler", schedule=str(tmp_path / "schedule.yaml")),
            entry("FrozenWeightsCheck", every_n_steps=3, mode="fingerprint"),
            entry("WeightDrift", every_n_steps=2),
        ],
        tmp_path,
    )
    scheduler, check, drift = trainer.callbacks[:3]
    assert scheduler.phase == 1
    assert (check.every_n_steps, check.mode, check.checks) == (3, "fingerprint", 8 // 3 + 1)
    assert drift.every_n_steps == 2
    trainer = run(name, [entry("GradualUnfreezing", every_n_epochs=2, check="epoch")], tmp_path)
    assert (trainer.callbacks[0].phase, trainer.callbacks[0].check) == (0, "epoch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("callback", "words"),
    [
        ("FreezeScheduler", ["Freeze and unfreeze by a schedule", "YAML file", "after each"]),
        ("GradualUnfreezing", ["Train the head first", "what is unfrozen step by step"]),
        ("FrozenWeightsCheck", ["Compare all that is frozen", "keeps a copy of what is frozen"]),
        ("WeightDrift", ["Log how far the weights have moved", "optimizer steps"]),
    ],
)
def test_help_reads_well(callback, words, tmp_path, capsys):
    path = f"lstm_freeze.callbacks.{callback}"
    with pytest.raises(SystemExit) as ended:
        run(LIGHTNINGS[0], [], tmp_path, "fit", f"--trainer.callbacks.help={path}")
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for word in words:
        assert word in text
    assert "`" not in text


@pytest.mark.slow
def test_a_wrong_schedule_is_said(tmp_path, capsys):
    with pytest.raises((SystemExit, ValueError)) as ended:
        run(LIGHTNINGS[0], [entry("FreezeScheduler", schedule={1: ["head"]})], tmp_path)
    said = capsys.readouterr().err + str(ended.value)
    assert "must have a phase that starts at 0" in said
