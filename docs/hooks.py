"""Draws the pictures of the schedules, and takes measured figures, for the site."""

import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from torch import nn

from lstm_freeze import FreezeSchedule

FIGURES = Path(__file__).parent / "figures"
ROOT = Path(__file__).parents[1]


def draw(folder: Path) -> None:
    """Draw each recipe for a three-layer encoder over eight epochs."""
    encoder = nn.ModuleDict(
        {"embedding": nn.Embedding(50, 8), "lstm": nn.LSTM(8, 16, 3, bidirectional=True)}
    )
    model = nn.ModuleDict({"encoder": encoder, "head": nn.Linear(32, 2)})
    schedules = {
        "gradual_unfreezing": FreezeSchedule.gradual_unfreezing(model),
        "chain_thaw": FreezeSchedule.chain_thaw(model, lr=1e-3),
        "linear_probing": FreezeSchedule.linear_probing(model, every=4),
        "progressive_freezing": FreezeSchedule.progressive_freezing(model, total=8, t0=0.5),
    }
    folder.mkdir(exist_ok=True)
    for name, schedule in schedules.items():
        figure = schedule.plot(model, 8).figure
        figure.savefig(folder / f"{name}.png", dpi=110, bbox_inches="tight")
        plt.close(figure)


def on_pre_build(config: Any) -> None:
    """Called by mkdocs."""
    draw(FIGURES)
    for figure in (ROOT / "benchmarks" / "results").glob("*.png"):
        shutil.copy(figure, FIGURES)
