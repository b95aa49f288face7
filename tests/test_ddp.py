"""What is allowed once DistributedDataParallel has wrapped a module, with gloo."""

import gc
import re
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _models import Tagger, everything, frozen
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from lstm_freeze import freeze, freeze_up_to, select, status, unfreeze
from lstm_freeze._freezing.ddp import ddp_of

TOKENS = torch.arange(12).reshape(4, 3) % 7

pytestmark = [
    pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch was built without gloo"),
]


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def train(model):
    """Two iterations: without find_unused_parameters DDP complains in the second."""
    for _ in range(2):
        model.zero_grad()
        model(TOKENS).sum().backward()


UNUSED = r"DDP without find_unused_parameters=True .*DistributedDataParallel\(module, find_unused"
UNREDUCED = r"under DDP: it was frozen when DDP wrapped the module .* gradients would stay local"


@pytest.mark.usefixtures("group")
class TestFreezingTheDDPObject:
    def test_without_find_unused_parameters_it_warns_and_torch_fails(self):
        ddp = DDP(Tagger())
        with pytest.warns(UserWarning, match=UNUSED) as caught:
            freeze(ddp, "encoder.embedding")
        assert caught[0].filename == __file__
        assert frozen(ddp.module) == {"encoder.embedding.weight"}
        with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
            train(ddp)

    @pytest.mark.parametrize("call", [freeze, lambda m, _: freeze_up_to(m, 0)])
    def test_the_warning_as_an_error_changes_nothing(self, call):
        ddp = DDP(Tagger())
        before = everything(ddp)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning, match="find_unused_parameters"):
                call(ddp, "encoder")
        assert everything(ddp) == before

    def test_with_find_unused_parameters_it_trains_on(self):
        ddp = DDP(Tagger(), find_unused_parameters=True)
        freeze(ddp, "encoder.lstm[0]")
        train(ddp)
        named = dict(ddp.module.named_parameters())
        assert {n for n, p in named.items() if p.grad is None} == frozen(ddp.module)
        unfreeze(ddp)
        train(ddp)
        assert all(p.grad is not None for p in ddp.parameters())

    @pytest.mark.filterwarnings("ignore:You passed find_unused_parameters=true")
    def test_static_graph_warns(self):
        ddp = DDP(Tagger(), find_unused_parameters=True, static_graph=True)
        with pytest.warns(UserWarning, match=UNUSED):
            freeze(ddp, "head")

    def test_no_change_no_warning(self):
        ddp = DDP(Tagger())
        unfreeze(ddp)
        with pytest.warns(UserWarning, match=UNUSED):
            freeze(ddp, "head")
        freeze(ddp, "head")

    def test_the_wrapped_module_itself_is_not_judged(self):
        model = Tagger()
        DDP(model)
        freeze(model, "head")
        unfreeze(model, "head")

    def test_names_have_no_prefix(self):
        ddp = DDP(Tagger(), find_unused_parameters=True)
        handle = freeze(ddp, "module.head", "encoder.lstm[1]")
        assert set(handle.changed) == set(select(ddp.module, "head", "encoder.lstm[1]"))
        assert "module" not in str(status(ddp))

    def test_inside_torch_compile(self):
        ddp = DDP(Tagger())
        with pytest.warns(UserWarning, match=UNUSED):
            freeze(torch.compile(ddp, backend="eager"), "head")


@pytest.mark.usefixtures("group")
class TestUnfreezingTheDDPObject:
    def test_what_was_frozen_at_the_wrap_is_an_error(self):
        model = Tagger()
        freeze(model, "encoder")
        ddp = DDP(model, find_unused_parameters=True)
        before = everything(ddp)
        with pytest.raises(ValueError, match=rf"'encoder\.embedding\.weight' {UNREDUCED}"):
            unfreeze(ddp, "encoder")
        with pytest.raises(ValueError, match=UNREDUCED):
            freeze(ddp, "head", only=True)
        assert everything(ddp) == before

    def test_the_remedy_works(self):
        model = Tagger()
        ddp = DDP(model, find_unused_parameters=True)
        freeze(ddp, "encoder")
        unfreeze(ddp, "encoder")
        assert frozen(model) == set()

    def test_a_full_reducer_allows_everything(self):
        model = Tagger()
        ddp = DDP(model, find_unused_parameters=True)
        model.requires_grad_(False)  # by hand, unknown to this library
        unfreeze(ddp)
        assert frozen(model) == set()

    def test_tied_parameters_count_once(self):
        model = Tagger()
        model.decoder = nn.Linear(3, 7, bias=False)
        model.decoder.weight = model.encoder.embedding.weight
        ddp = DDP(model, find_unused_parameters=True)
        model.requires_grad_(False)
        unfreeze(ddp)
        assert frozen(model) == set()

    def test_the_record_shows_what_was_trainable_at_the_wrap(self):
        model = Tagger()
        freeze(model, "encoder.embedding")
        ddp = DDP(model, find_unused_parameters=True)
        freeze(ddp, "encoder.lstm[0]")
        unfreeze(ddp, "encoder.lstm[0]")
        assert frozen(model) == {"encoder.embedding.weight"}
        with pytest.raises(ValueError, match=UNREDUCED):
            unfreeze(ddp)

    def test_unfreezing_behind_its_back_is_no_record(self):
        model = Tagger()
        freeze(model, "encoder.embedding")
        ddp = DDP(model, find_unused_parameters=True)
        unfreeze(model, "encoder.embedding")  # the module, not the DDP object
        with pytest.raises(ValueError, match=UNREDUCED):
            unfreeze(ddp)
        freeze(ddp, "encoder.embedding")
        with pytest.raises(ValueError, match=UNREDUCED):
            unfreeze(ddp, "encoder.embedding")

    def test_frozen_by_hand_under_a_partial_reducer_cannot_be_known(self):
        model = Tagger()
        freeze(model, "encoder.embedding")
        ddp = DDP(model, find_unused_parameters=True)
        model.head.requires_grad_(False)
        with pytest.raises(ValueError, match=re.escape("'head.weight' under DDP")):
            unfreeze(ddp, "head")

    def test_what_trains_already_is_no_error(self):
        model = Tagger()
        freeze(model, "encoder.embedding")
        ddp = DDP(model, find_unused_parameters=True)
        assert unfreeze(ddp, "head").changed == ()

    def test_it_warns_without_find_unused_parameters(self):
        model = Tagger()
        ddp = DDP(model)
        model.head.requires_grad_(False)
        with pytest.warns(UserWarning, match=UNUSED):
            unfreeze(ddp)

    def test_undo_and_the_record_of_another_wrap(self):
        model = Tagger()
        ddp = DDP(model, find_unused_parameters=True)
        freeze(ddp, "encoder")
        del ddp
        gc.collect()
        again = DDP(model, find_unused_parameters=True)
        with pytest.raises(ValueError, match=UNREDUCED):
            unfreeze(again, "encoder")


def test_ddp_of_looks_through_other_wrappers_only():
    model = Tagger()
    assert ddp_of(model) is None
    assert ddp_of(nn.DataParallel(model)) is None
    assert ddp_of(torch.compile(model, backend="eager")) is None


def _two_ranks(rank, store, results):
    """Train two epochs, the first frozen in part, and say whether the ranks agree."""
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    model = Tagger()
    outcome = {}
    for way in ("after the wrap", "before the wrap"):
        model = Tagger()
        if way == "before the wrap":
            freeze(model, "encoder.embedding")
        ddp = DDP(model, find_unused_parameters=True)
        if way == "after the wrap":
            freeze(ddp, "encoder.embedding")
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        start = model.encoder.embedding.weight.detach().clone()
        for epoch in range(2):
            if epoch == 1:
                if way == "after the wrap":
                    unfreeze(ddp, "encoder.embedding", optimizer=optimizer)
                else:  # what the library refuses, done by hand
                    model.encoder.embedding.weight.requires_grad_(True)
            for step in range(2):
                optimizer.zero_grad()
                ddp((TOKENS + rank + step) % 7).sin().sum().backward()
                optimizer.step()
            if epoch == 0:
                outcome[way, "frozen"] = torch.equal(start, model.encoder.embedding.weight)
        outcome[way, "moved"] = not torch.equal(start, model.encoder.embedding.weight)
        both = [torch.empty_like(start) for _ in range(2)]
        dist.all_gather(both, model.encoder.embedding.weight.detach())
        outcome[way, "ranks agree"] = torch.equal(*both)
    if rank == 0:
        torch.save(outcome, results)
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_stay_equal_and_would_not_otherwise(tmp_path):
    mp.spawn(_two_ranks, (tmp_path / "store", tmp_path / "results"), nprocs=2)
    assert torch.load(tmp_path / "results", weights_only=True) == {
        ("after the wrap", "frozen"): True,
        ("after the wrap", "moved"): True,
        ("after the wrap", "ranks agree"): True,
        ("before the wrap", "frozen"): True,
        ("before the wrap", "moved"): True,
        ("before the wrap", "ranks agree"): False,
    }
