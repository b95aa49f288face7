"""Factors in a Lightning fit: phases that train them alone, resuming, and small checkpoints."""

import pytest
import torch
from _fits import Stateful, bits, data, fit, lightning, module, on, recorder, same

from lstm_freeze import add_lora, replace_lstm
from lstm_freeze.callbacks import FreezeScheduler, FrozenWeightsCheck, SaveChanges, WeightAnchor

L = lightning()


def loader():
    return Stateful(data().dataset, 4)


def adapted():
    made = module(L, lr=0.03)
    replace_lstm(made)
    return made, add_lora(made, "encoder.lstm", rank=2)


def callbacks():
    return (
        FreezeScheduler({0: "head", 1: "lora", 2: ["head", "encoder.lstm[1].lora"]}),
        WeightAnchor("head", 0.5),
        FrozenWeightsCheck(),
        SaveChanges(),
    )


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_phases_of_factors_train_them_alone_and_resume_with_the_same_bits(tmp_path):
    options = {"max_epochs": 3}
    whole, lora = adapted()
    start = bits(whole)
    seen = recorder(L, lambda trainer, model: (trainer.current_epoch, on(model)))
    saver = L.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    fit(L, whole, *callbacks(), seen, saver, loader=loader(), enable_checkpointing=True, **options)
    trained = dict(seen.seen)
    assert trained[0] == {"head.weight", "head.bias"}
    assert trained[1] == set(lora.parameters)
    assert trained[2] == trained[0] | {n for n in lora.parameters if "_l1" in n}
    end = bits(whole)
    changed = {n for n in end if not torch.equal(end[n], start[n])}
    assert changed == trained[0] | trained[1]
    first = next(tmp_path.glob("epoch=0*.ckpt"))
    state = torch.load(first, weights_only=True)["state_dict"]
    assert state.keys() - {"lstm_freeze.base"} == trained[0]
    resumed, _ = adapted()
    fit(L, resumed, *callbacks(), loader=loader(), ckpt_path=first, **options)
    assert same(bits(resumed), end)
