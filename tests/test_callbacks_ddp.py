"""DistributedDataParallel (gloo, 2 processes): ranks stay bit-equal, frozen bits stay."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from _fits import Encoder, fit, lightning, module, names

from lstm_freeze import FreezeSchedule, Phase, freeze
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    WeightDrift,
)

L = lightning()
EPOCHS = 4
CASES = {
    "gradual": GradualUnfreezing,
    "chain_thaw": lambda: FreezeScheduler(FreezeSchedule.recipe("chain_thaw", lr=0.05)),
    "steps": lambda: FreezeScheduler(
        FreezeSchedule({0: "head", 1: "*", 3: "head", 5: "encoder"}, unit="step")
    ),
    "rates": lambda: FreezeScheduler([Phase(0, "head", lr=0.05, warmup=3), Phase(2, "*", lr=0.1)]),
    "plateau": lambda: FreezeScheduler(
        {0: "head", 1: "*"}, advance=Plateau(patience=1, min_delta=0.05, restore_best=True)
    ),
    "only the head": lambda: FreezeScheduler({0: "head"}),
    "frozen by the user before": GradualUnfreezing,
}


@pytest.fixture(autouse=True)
def _no_process_group_is_left():
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def build(case):
    """The module of a case; the norm is left out, since its buffers differ by rank by design."""
    m = module(L, lr=0.05)
    m.encoder.norm = torch.nn.Identity()
    if case == "frozen by the user before":
        freeze(m, "encoder")
    return m


def train(case, folder, strategy="ddp_find_unused_parameters_true", **options):
    """One process of the fit; each notes the weights after each step."""
    m = build(case)
    seen = []

    class Notes(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            trained = [n for n, p in pl_module.named_parameters() if p.requires_grad]
            seen.append((trained, {n: p.detach().clone() for n, p in m.named_parameters()}))

        def on_train_end(self, trainer, pl_module):
            seen.append(([], {n: p.detach().clone() for n, p in m.named_parameters()}))

    scheduler, drift = CASES[case](), WeightDrift(1)
    t = fit(
        L,
        m,
        scheduler,
        FrozenWeightsCheck(),
        drift,
        Notes(),
        max_epochs=EPOCHS,
        devices=2,
        strategy=strategy,
        **options,
    )
    metrics = {k: float(v) for k, v in t.callback_metrics.items()}
    drifts = {k: v for k, v in metrics.items() if "drift" in k}
    torch.save((seen, scheduler.phase, drifts), Path(folder) / f"{case}-{t.global_rank}.pt")


SCRIPT = """
import sys, warnings
sys.path.insert(0, {tests!r})
from test_callbacks_ddp import train
for case in {cases!r}:
    train(case, {folder!r}, {strategy!r})
"""


def run(cases, folder, strategy="ddp_find_unused_parameters_true"):
    """All cases one after the other in one start of two processes."""
    path = folder / "script.py"
    tests = str(Path(__file__).parent)
    path.write_text(
        SCRIPT.format(tests=tests, cases=list(cases), folder=str(folder), strategy=strategy)
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, str(path)], env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What the two ranks of each case noted."""
    folder = tmp_path_factory.mktemp("ddp")
    done = run(CASES, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return lambda case: [torch.load(folder / f"{case}-{rank}.pt") for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ranks_stay_equal_and_frozen_bits_stay(case, two_processes):
    (seen, phase, drift), (other, other_phase, other_drift) = two_processes(case)
    assert (phase, drift) == (other_phase, other_drift)
    assert phase > 0 or case == "only the head"
    assert len(seen) == len(other) == EPOCHS * 2 + 1
    ever = set()
    for (trained, now), (_, there), (_, then) in zip(seen, other, seen[1:], strict=False):
        assert all(torch.equal(now[n], there[n]) for n in now)
        moved = {n for n in now if not torch.equal(now[n], then[n])}
        ever |= set(trained)
        # A phase of Plateau begins with the best weights, written between two steps.
        assert case == "plateau" or moved <= set(trained)
        assert moved & set(trained)
    assert all(torch.equal(seen[-1][1][n], other[-1][1][n]) for n in seen[-1][1])
    start, end = seen[0][1], seen[-1][1]
    assert {n for n in start if not torch.equal(start[n], end[n])} == ever
    assert {k for k, v in drift.items() if v == 0} == {
        f"weight_drift/{g}" for g in FROZEN_GROUPS if case == "only the head"
    }


FROZEN_GROUPS = [
    "encoder.embedding",
    *(f"encoder.lstm[{k}].{d}" for k in (0, 1) for d in ("forward", "reverse")),
]


@pytest.mark.slow
def test_plain_ddp_serves_a_schedule_that_never_changes(tmp_path):
    done = run(["only the head"], tmp_path, "ddp")
    assert done.returncode == 0, done.stderr[-3000:]


class Late(L.LightningModule):
    """Makes and freezes its encoder in configure_model."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(6, 2)
        self.encoder = None

    def configure_model(self):
        if self.encoder is None:
            self.encoder = Encoder()
            freeze(self.encoder)

    def training_step(self, batch, index):
        return self.head(self.encoder(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            lambda: L.strategies.DDPStrategy(find_unused_parameters=True),
            r"'encoder\.embedding\.weight' was frozen \(in configure_model or setup",
        ),
        (L.strategies.DDPStrategy, "find_unused_parameters=False the backward pass waits"),
        (
            lambda: L.strategies.DDPStrategy(static_graph=True),
            "static_graph=True the backward pass waits",
        ),
    ],
)
def test_refused_before_training(strategy, message, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    late = "configure_model" in message
    m = Late() if late else module(L)
    with pytest.raises(ValueError, match=message) as caught:
        fit(L, m, GradualUnfreezing(), strategy=strategy(), val=not late)
    assert late or "ddp_find_unused_parameters_true" in str(caught.value)


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_sharding_strategies_are_refused(name):
    m = module(L)
    callback = GradualUnfreezing()
    strategy = type(name, (L.strategies.SingleDeviceStrategy,), {})(device="cpu")
    with pytest.raises(ValueError, match=f"cannot work with {name}, which lays parameters"):
        fit(L, m, callback, strategy=strategy, accelerator="auto")
    assert {n for n, p in m.named_parameters() if p.requires_grad} == names(m, "")
