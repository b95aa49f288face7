"""Factors under DistributedDataParallel: gradients are averaged, ranks agree, bases stay."""

import pytest
import torch
import torch.distributed as dist
from _models import Tagger, moved, snapshot
from _ranks import ranks_agree, run
from torch.nn.parallel import DistributedDataParallel as DDP

from lstm_freeze import FrozenGuard, add_lora, freeze, unfreeze

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="built without gloo")


def train(model, optimizer):
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randint(0, 7, (5, 4))).square().mean().backward()
        optimizer.step()


def on_a_rank():
    torch.manual_seed(0)
    model = Tagger()
    lora = add_lora(model, rank=2)
    ddp = DDP(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    torch.manual_seed(dist.get_rank())  # other batches on each rank
    before = snapshot(model)
    with FrozenGuard(model).attach(optimizer):
        train(ddp, optimizer)
        freeze(ddp, "encoder.lstm[0]", optimizer=optimizer)
        train(ddp, optimizer)
        unfreeze(ddp, "encoder.lstm[0].lora", optimizer=optimizer)
        train(ddp, optimizer)
    changed = moved(model, before)
    return ranks_agree(model.parameters()), changed, set(lora.parameters)


def test_ranks_agree_and_bases_stay():
    for agrees, changed, factors in run(2, on_a_rank):
        assert agrees
        assert factors < changed
        assert not any(name.removesuffix("_lora_A") in changed for name in factors if "_A" in name)


def test_a_module_that_is_wrapped_already_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="add_lora first, then wrap"):
            add_lora(DDP(Tagger()))
    finally:
        dist.destroy_process_group()
