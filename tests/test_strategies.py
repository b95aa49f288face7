"""Lightning's distributed strategies, with gloo on 2 and 3 ranks: equal ranks, exact freezing."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from _ddp_fits import BATCH, DDP, L, Tagger, Watch, ddp, fit, weights
from _ranks import LIMIT, RankFailed, free_port, ranks_agree, run
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lstm_freeze import FreezeSchedule, FrozenGuard, Phase, freeze, unfreeze
from lstm_freeze._freezing import freezing
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    WeightDrift,
    _ddp,
    _scheduler,
)
from lstm_freeze.callbacks._refusals import refuse_uneven

ROOT = Path(__file__).parents[1]
EPOCHS = 4
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo"),
]

# name: the callback, the optimizer, and options of the fit
CASES = {
    "gradual_unfreezing": lambda: GradualUnfreezing(),
    "chain_thaw": lambda: FreezeScheduler(FreezeSchedule.recipe("chain_thaw", lr=0.05)),
    "linear_probing": lambda: FreezeScheduler(FreezeSchedule.recipe("linear_probing", every=2)),
    "progressive_freezing": lambda: FreezeScheduler(
        FreezeSchedule.recipe("progressive_freezing", total=EPOCHS, t0=0.5, how="linear")
    ),
    "refreezing": lambda: FreezeScheduler({0: "*", 1: "head", 2: "encoder", 3: "*"}),
    "steps": lambda: FreezeScheduler(
        FreezeSchedule({0: "head", 1: "*", 3: "head", 5: "encoder"}, unit="step")
    ),
    "kinds and directions": lambda: FreezeScheduler(
        {0: ["head"], 1: ["encoder.lstm[0:2].reverse.weight_hh", "head"], 2: "encoder.lstm[0]"}
    ),
    "bitfit, then all": lambda: FreezeScheduler({0: ["*bias*", "head"], 2: "*"}),
    "rates": lambda: FreezeScheduler(
        [Phase(0, "head", lr=0.05, warmup=3), Phase(2, "*", lr={"head": 0.02, "*": 0.01}, warmup=2)]
    ),
    "plateau": lambda: FreezeScheduler(
        {0: "head", 1: "encoder.lstm", 2: "*"}, advance=Plateau(patience=1, min_delta=0.05)
    ),
    "plateau, best": lambda: FreezeScheduler(
        {0: "head", 1: "encoder.lstm", 2: "*"},
        advance=Plateau(patience=1, min_delta=0.05, restore_best=True),
    ),
}


def train(case, world, kind="BiLSTM", norm=False, strategy=None, **options):
    """One rank's fit, and what is to be looked at afterwards."""
    module, scheduler, watch = Tagger(kind, norm), CASES[case](), Watch()
    check, drift = FrozenWeightsCheck(), WeightDrift(1)
    options = {"max_epochs": EPOCHS, "strategy": strategy and strategy(), **options}
    trainer = fit(module, scheduler, check, drift, watch, world=world, **options)
    return {
        "seen": watch.seen,
        "phase": scheduler.phase,
        "checks": check.checks,
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "weights": weights(module),
    }


def assert_frozen_and_equal(ranks, restores=False):
    """Ranks agree after each step; what is frozen stays and what trains moves, at every step."""
    for result in ranks:
        seen = result["seen"]
        assert seen
        ever = set()
        for now in seen:
            ever |= now["on"]
            assert now["agree"], now["step"]
            # A phase may begin with the best weights of the one before, written between two steps.
            assert restores or now["moved"] == now["on"], now["step"]
            assert now["moved"] >= now["on"]
            assert now["initial"].isdisjoint(ever)
            assert now["initial"] | ever == set(result["weights"])
        assert result["checks"] >= len(seen)
        assert len({frozenset(now["on"]) for now in seen}) > 1
    first, *others = ranks
    for other in others:
        assert other["phase"] == first["phase"] > 0
        assert drifts(other) == drifts(first)
        assert [n["on"] for n in other["seen"]] == [n["on"] for n in first["seen"]]


def drifts(result):
    return {k: v for k, v in result["metrics"].items() if "drift" in k}


def assert_close(a, b):
    assert a.keys() == b.keys()
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


# ---- DDP: every recipe

MATRIX = [
    *((case, kind, 2) for case in CASES for kind in ("BiLSTM", "LSTM")),
    *((case, "BiLSTM", 3) for case in CASES),
    ("steps", "LSTM", 3),
]


@pytest.mark.parametrize(("case", "kind", "world"), MATRIX)
def test_ranks_are_equal_and_the_result_is_that_of_one_process(case, kind, world):
    size = 4 * BATCH * world
    ranks = run(world, partial(train, case, world, kind, size=size))
    assert_frozen_and_equal(ranks, restores="best" in case)
    joint = train(case, 1, kind, size=size, batch=world * BATCH)
    assert joint["phase"] == ranks[0]["phase"]
    assert [n["on"] for n in joint["seen"]] == [n["on"] for n in ranks[0]["seen"]]
    assert_close(ranks[0]["weights"], joint["weights"])


def test_the_comparison_with_one_process_can_fail():
    one, other = (train("refreezing", 1, batch=batch)["weights"] for batch in (2, 4))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        assert_close(one, other)


# ---- DDP: what else may be set

VARIANTS = {
    "gradient_as_bucket_view": {"strategy": partial(ddp, gradient_as_bucket_view=True)},
    "accumulation": {"accumulate_grad_batches": 2},
    "accumulation as bucket view": {
        "accumulate_grad_batches": 3,
        "strategy": partial(ddp, gradient_as_bucket_view=True),
    },
    "uneven last batches": {"size": 21, "batch": 3},  # 3, 3, 3 and 2 on each rank
    "last batches uneven between ranks": {"size": 11, "batch": 3, "even": False},  # 3, 3; 3, 2
    "gradient clipping": {"gradient_clip_val": 0.1},
    "bfloat16": {"precision": "bf16-mixed"},
    "small buckets": {"strategy": partial(ddp, bucket_cap_mb=0.001)},
    "a norm": {"norm": True, "val": False},
    "a norm of each rank's own": {
        "norm": True,
        "val": False,
        "strategy": partial(ddp, broadcast_buffers=False),
    },
}


@pytest.mark.parametrize("case", ["refreezing", "steps"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ranks_are_equal_however_ddp_is_set(case, variant):
    options = VARIANTS[variant]
    ranks = run(2, partial(train, case, 2, **options))
    assert_frozen_and_equal(ranks)
    exact = {"strategy", "accumulate_grad_batches", "gradient_clip_val"}
    if exact & {*options} and "norm" not in options:
        batch = 2 * BATCH
        alone = {k: v for k, v in options.items() if k != "strategy"}
        assert_close(ranks[0]["weights"], train(case, 1, batch=batch, **alone)["weights"])


def train_without_alignment():
    _scheduler.align_buffers = lambda model: None
    train("refreezing", 2, norm=True, val=False)


def test_a_norm_would_be_overwritten_if_buffers_were_not_aligned():
    with pytest.raises(RankFailed, match=r"rank 1(?s:.)*encoder\.norm\.running_mean: 8 of 8"):
        run(2, train_without_alignment)


def plain_loop(aligned):
    """freeze(ddp, ...) in a loop of one's own, with a norm that has trained."""
    if not aligned:
        freezing.align_buffers = lambda ddp, modules: None
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = DistributedDataParallel(module, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(dist.get_rank())
    agree = []
    with FrozenGuard(model).attach(optimizer) as guard:
        for chosen in ("0", "1", "2", "0", None):
            freeze(model, chosen, optimizer=optimizer) if chosen else unfreeze(model)
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.randn(5, 3)).square().sum().backward()
                optimizer.step()
                agree.append(ranks_agree(module.parameters()))
            if chosen:
                unfreeze(model, chosen, optimizer=optimizer)
    return agree, guard.checks


def test_a_plain_loop_with_the_ddp_object():
    assert run(2, plain_loop, True) == [([True] * 15, 15)] * 2
    with pytest.raises(RankFailed, match=r"1\.running_mean: 4 of 4 elements moved"):
        run(2, plain_loop, False)


# ---- DDP: what is sent


def train_and_count(hook=None):
    """The numbers that all-reduces of gradients carry, step by step, and a user's hook's calls."""
    sizes, calls = [], []
    send = dist.all_reduce

    def spy(tensor, *args, **kwargs):
        sizes.append((module.trainer.global_step, tensor.numel()))
        return send(tensor, *args, **kwargs)

    def own(state, bucket):
        calls.append(bucket.buffer().numel())
        return _ddp.average_trainable(state, bucket)

    _ddp.dist.all_reduce = spy
    module = Tagger()
    callbacks = [CASES["refreezing"](), Watch()]
    if hook:
        callbacks.insert(0, Hooked(own))
    fit(module, *callbacks, world=2, val=False)
    steps = {n: p.numel() for n, p in module.named_parameters()}
    expected = [sum(steps[n] for n in now["on"]) for now in callbacks[-1].seen]
    sent = [max(n for at, n in sizes if at == step) for step in range(len(expected))]
    return sent, expected, calls


class Hooked(L.Callback):
    """Registers a communication hook of the user's, before the schedule could."""

    def __init__(self, hook):
        self.hook = hook

    def on_fit_start(self, trainer, module):
        trainer.model.register_comm_hook(trainer.model.process_group, self.hook)


def test_only_gradients_of_what_trains_are_sent():
    for sent, expected, _ in run(2, train_and_count):
        assert sent == expected
        assert len(set(sent)) == 3


def test_a_hook_of_the_users_own_stays_in_charge():
    for _, expected, calls in run(2, train_and_count, True):
        assert calls == [max(expected)] * len(expected)


# ---- DDP: refusals and failures


class Frozen(Tagger):
    """Freezes in configure_model, which comes after the schedule's setup."""

    def configure_model(self):
        freeze(self, "encoder.lstm")


def train_refused(strategy, make=Tagger, callback=GradualUnfreezing):
    """The error of a fit, and how many steps were taken."""
    module, watch = make(), Watch()
    try:
        fit(module, callback(), watch, world=2, strategy=strategy())
    except (ValueError, RuntimeError) as error:
        return str(error), len(watch.seen)
    return None, len(watch.seen)


def train_unevenly():
    try:
        fit(Tagger(), GradualUnfreezing(), world=2, size=9, even=False)  # batches of 2 of 5, of 4
    except ValueError as error:
        return str(error)


def test_ranks_with_different_numbers_of_batches_are_refused():
    """They would be in different phases when they meet."""
    for error in run(2, train_unevenly):
        assert "rank 0 has 3 batches in an epoch and rank 1 has 2: " in error
        assert "leave use_distributed_sampler=True" in error


def compare(*batches):
    rank, strategy = dist.get_rank(), SimpleNamespace(root_device=torch.device("cpu"))
    trainer = SimpleNamespace(
        world_size=len(batches), num_training_batches=batches[rank], strategy=strategy
    )
    try:
        refuse_uneven(trainer)
    except ValueError as error:
        return str(error)
    return None


def compare_each(cases):
    return [compare(*batches) for batches in cases]


def test_numbers_of_batches_are_compared_exactly():
    n = 2**24
    same, different = [(n + 1, n + 1), (math.inf, math.inf), (0, 0)], [(n, n + 1), (n, math.inf)]
    for found in run(2, compare_each, same + different):
        assert found[:3] == [None] * 3
        assert "rank 0 has 16777216 batches in an epoch and rank 1 has 16777217: " in found[3]
        assert "rank 1 has inf: " in found[4]


def best_plateau():
    return CASES["plateau, best"]()


REFUSED = [
    (
        partial(str, "ddp"),
        r"find_unused_parameters=False .*strategy=\"ddp_find_unused_parameters_true\"",
        Tagger,
        GradualUnfreezing,
    ),
    (
        partial(ddp, static_graph=True),
        r"static_graph=True .*strategy=\"ddp_find_unused_parameters_true\"",
        Tagger,
        GradualUnfreezing,
    ),
    (
        ddp,
        r"'encoder\.lstm\.weight_ih_l0' was frozen \(in configure_model",
        Frozen,
        GradualUnfreezing,
    ),
]


@pytest.mark.parametrize(("strategy", "message", "make", "callback"), REFUSED)
def test_what_cannot_work_is_refused_on_every_rank_before_the_first_step(
    strategy, message, make, callback
):
    for error, steps in run(2, train_refused, strategy, make, callback):
        assert steps == 0
        assert re.search(message, error)


def test_plain_ddp_serves_a_schedule_that_changes_nothing():
    callback = partial(FreezeScheduler, {0: "head"})
    assert run(2, train_refused, partial(str, "ddp"), Tagger, callback) == [(None, 24)] * 2


class Fails(L.Callback):
    """One rank raises, dies, or has a frozen weight overwritten, after its third batch."""

    def __init__(self, how):
        self.how = how

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_rank == 1 and index == 2:
            if self.how == "raises":
                raise OSError("the disk of rank 1 is full")
            if self.how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            module.encoder.lstm.weight_hh_l0.data[0, 0] += 1


def train_and_fail(how):
    fit(Tagger(), GradualUnfreezing(), Fails(how), world=2)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "rank 1(?s:.)*the disk of rank 1 is full"),
        ("is killed", "rank 1: killed"),
        ("overwrites", "rank 1(?s:.)*FrozenWeightsChanged: 1 frozen tensor(?s:.)*weight_hh_l0"),
    ],
)
def test_when_a_rank_fails_the_others_do_not_hang(how, message):
    begun = time.monotonic()
    with pytest.raises(RankFailed) as caught:
        run(2, train_and_fail, how)
    assert re.search(message, str(caught.value))
    assert re.search(r"rank 0: (?!no end)", str(caught.value))
    assert time.monotonic() - begun < 60


# ---- other numbers of ranks, and of machines

JOINT, SIZE = 6, 24


def train_a_part(case, world, path, ckpt_path=None, epochs=EPOCHS):
    class Save(L.Callback):
        def on_train_end(self, trainer, module):
            trainer.save_checkpoint(path)

    callbacks = [Save()] if ckpt_path is None else []
    module, scheduler, watch, drift = Tagger(), CASES[case](), Watch(), WeightDrift(1)
    options = {"size": SIZE, "batch": JOINT // world, "max_epochs": epochs, "world": world}
    trainer = fit(module, scheduler, watch, drift, *callbacks, ckpt_path=ckpt_path, **options)
    metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
    return {
        "seen": watch.seen,
        "phase": scheduler.phase,
        "state": scheduler.state_dict()["plateau"],
        "metrics": metrics,
        "weights": weights(module),
    }


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("case", ["gradual_unfreezing", "refreezing", "steps", "rates", "plateau"])
def test_a_run_goes_on_with_another_number_of_ranks(case, tmp_path):
    path = tmp_path / "half.ckpt"
    begun = run(2, train_a_part, case, 2, path, None, 2)
    whole = train_a_part(case, 1, tmp_path / "whole.ckpt")
    last = [n["on"] for n in whole["seen"]][2 * SIZE // JOINT :]
    assert begun[0]["state"] == begun[1]["state"]
    for world in (1, 2, 3):
        if world == 1:
            ranks = [train_a_part(case, 1, None, path)]
        else:
            ranks = run(world, train_a_part, case, world, None, path)
        for rank in ranks:
            assert all(now["agree"] for now in rank["seen"])
            assert [now["on"] for now in rank["seen"]] == last
            assert rank["phase"] == whole["phase"]
            assert (rank["state"] or {}) == pytest.approx(whole["state"] or {}, rel=1e-4)
            assert_close(rank["weights"], whole["weights"])
            for name, value in drifts(whole).items():
                assert rank["metrics"][name] == pytest.approx(value, rel=1e-3)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import torch
from test_strategies import BATCH, train
import torch.distributed as dist

torch.set_num_threads(1)
result = train("refreezing", 2, num_nodes=2, strategy=lambda: {strategy!r}, size=8 * BATCH)
rank, world = dist.get_rank(), dist.get_world_size()
torch.save((world, result), {folder!r} + f"/{{rank}}.pt")
"""


def test_two_machines_by_torchrun(tmp_path):
    script, port = tmp_path / "script.py", free_port()
    tests = str(Path(__file__).parent)
    script.write_text(SCRIPT.format(tests=tests, folder=str(tmp_path), strategy=DDP))
    machines = [
        subprocess.Popen(
            [
                *(
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--nnodes=2",
                    "--nproc-per-node=2",
                ),
                *(f"--node-rank={node}", "--master-addr=127.0.0.1", f"--master-port={port}"),
                str(script),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        errors = [machine.communicate(timeout=LIMIT)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
            machine.wait()
    assert [machine.returncode for machine in machines] == [0, 0], errors
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(4)]
    assert [world for world, _ in found] == [4] * 4
    assert_frozen_and_equal([result for _, result in found])
    joint = train("refreezing", 1, size=8 * BATCH, batch=4 * BATCH)
    assert_close(found[3][1]["weights"], joint["weights"])


class Report(L.Callback):
    """Leaves what a rank noted in a folder, for processes that Lightning makes and ends."""

    def __init__(self, folder):
        self.folder = folder

    def on_fit_end(self, trainer, module):
        found = {type(callback).__name__: callback for callback in trainer.callbacks}
        drift = {k: float(v) for k, v in trainer.callback_metrics.items()}
        result = {
            "seen": found["Watch"].seen,
            "phase": found["FreezeScheduler"].phase,
            "checks": found["FrozenWeightsCheck"].checks,
            "metrics": drift,
            "weights": weights(module),
        }
        torch.save(result, Path(self.folder, f"{trainer.global_rank}.pt"))


MADE_BY_LIGHTNING = """
import sys
sys.path.insert(0, {tests!r})
from test_strategies import *

if __name__ == "__main__":
    module = Tagger()
    callbacks = CASES["refreezing"](), Watch(), FrozenWeightsCheck(), WeightDrift(1)
    options = {{"strategy": {strategy!r}, "world": 2, "max_epochs": 3, "even": None}}
    fit(module, *callbacks, Report({folder!r}), **options)
    assert all(p.requires_grad for p in module.parameters())
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_processes_that_lightning_forks_or_spawns(start, tmp_path):
    script, strategy = tmp_path / "script.py", f"ddp_{start}_find_unused_parameters_true"
    tests = str(Path(__file__).parent)
    script.write_text(
        MADE_BY_LIGHTNING.format(tests=tests, strategy=strategy, folder=str(tmp_path))
    )
    command = [sys.executable, "-W", "ignore", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert_frozen_and_equal([torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)])


# ---- FSDP2


class Sharded(Tagger):
    """Sharded by fully_shard, in the manner of Lightning's guide."""

    whole = True

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for module in (self.encoder.lstm, *((self.encoder,) if self.whole else ()), self.head):
            fully_shard(module, mesh=mesh, reshard_after_forward=self.whole)


class LeftGathered(Sharded):
    """What is frozen stays gathered after its forward pass, since no backward pass comes."""

    whole = False


def model_parallel(world):
    return L.strategies.ModelParallelStrategy(data_parallel_size=world, tensor_parallel_size=1)


def train_sharded(case, world, kind, make, mode="exact", *extra, **options):
    module, scheduler, watch = make(kind), CASES[case](), Watch()
    check, drift = FrozenWeightsCheck(mode=mode), WeightDrift(1)
    callbacks = [scheduler, check, drift, watch, *extra]
    options = {"max_epochs": EPOCHS, "strategy": model_parallel(world), **options}
    trainer = fit(module, *callbacks, world=world, **options)
    gather_no_more(module)
    shards = {n: tuple(p.to_local().shape) for n, p in module.named_parameters()}
    return {
        "seen": watch.seen,
        "phase": scheduler.phase,
        "checks": check.checks,
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items()},
        "weights": weights(module),
        "shards": shards,
    }


@pytest.mark.parametrize(
    ("case", "kind", "make", "mode", "world"),
    [
        ("gradual_unfreezing", "BiLSTM", Sharded, "exact", 2),
        ("refreezing", "BiLSTM", LeftGathered, "fingerprint", 2),
        ("refreezing", "LSTM", Sharded, "fingerprint", 2),
        ("refreezing", "BiLSTM", Sharded, "exact", 3),
        ("steps", "LSTM", LeftGathered, "exact", 2),
        ("kinds and directions", "BiLSTM", Sharded, "exact", 2),
        ("plateau", "BiLSTM", LeftGathered, "exact", 2),
    ],
)
def test_fsdp2_is_equal_to_one_process(case, kind, make, mode, world):
    ranks = run(world, train_sharded, case, world, kind, make, mode)
    assert_frozen_and_equal(ranks)
    shards = [rank["shards"]["encoder.lstm.weight_hh_l0"] for rank in ranks]
    assert shards == {2: [(8, 4), (8, 4)], 3: [(6, 4), (6, 4), (4, 4)]}[world]  # of (16, 4)
    joint = train(case, 1, kind, batch=world * BATCH)
    assert_close(ranks[0]["weights"], joint["weights"])
    for name, value in drifts(joint).items():
        assert ranks[0]["metrics"][name] == pytest.approx(value, rel=1e-3)


def gather_no_more(module):
    for child in module.modules():
        if hasattr(child, "reshard"):
            child.reshard()


class Overwrites(L.Callback):
    """Writes to one rank's shard of a frozen weight."""

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if trainer.global_rank == 1 and index == 1:
            gather_no_more(module)
            module.encoder.lstm.weight_hh_l0.to_local().data[0, 0] += 1


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_the_guard_compares_the_shards_of_each_rank(mode):
    with pytest.raises(
        RankFailed, match=r"rank 1(?s:.)*1 frozen tensor changed, seen after step 3"
    ):
        run(2, train_sharded, "gradual_unfreezing", 2, "BiLSTM", Sharded, mode, Overwrites())


def test_fsdp2_refuses_to_keep_the_best_weights():
    strategy = partial(model_parallel, 2)
    for error, steps in run(2, train_refused, strategy, Sharded, best_plateau):
        assert "restore_best=True) cannot work with ModelParallelStrategy" in error
        assert steps == 0


def freeze_between():
    """Freeze between a forward pass and the next, while modules hold gathered weights."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    for layer in model:
        fully_shard(layer, reshard_after_forward=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(2, 4)
    with torch.no_grad():
        model(x)
    freeze(model, "0")
    before = weights(model)
    with FrozenGuard(model).attach(optimizer):
        for _ in range(2):
            model(x).sum().backward()
            optimizer.step()
    after = weights(model)
    return [n for n in after if not torch.equal(after[n], before[n])]


def test_freezing_fully_sharded_modules_while_they_are_gathered():
    assert run(2, freeze_between) == [["1.weight", "1.bias"]] * 2


# ---- strategies that lay parameters together


class FlatFSDP(L.strategies.FSDPStrategy):
    """A user's own kind of FSDPStrategy; Lightning lets only subclasses get as far as the CPU."""


def test_fsdp1_is_refused(monkeypatch):
    (result,) = run(1, train_refused_alone)
    assert "cannot work with FSDPStrategy" in result
    assert "ddp_find_unused_parameters_true" in result


def train_refused_alone():
    try:
        fit(Tagger(), GradualUnfreezing(), strategy=FlatFSDP())
    except ValueError as error:
        return str(error)


# ---- the example


def test_the_example_with_two_processes(tmp_path):
    command = [sys.executable, str(ROOT / "examples" / "ddp.py"), "--devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT, env=environment
    )
    assert done.returncode == 0, done.stderr
    epochs = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 6
    assert all(line.endswith("2 of 2 ranks hold the same bits") for line in epochs)
    assert [line.split()[2] for line in epochs] == [*["81"] * 2, *["39,121"] * 2, *["58,961"] * 2]
    assert len(done.stdout.splitlines()) == 7
    assert done.stderr == ""
