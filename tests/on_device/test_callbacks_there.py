"""The callbacks in a Lightning Trainer on another device."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_freeze import BiLSTM, PrefixCache, param_groups
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    WeightDrift,
)


class Pretended(Accelerator):
    """As little of an accelerator as Lightning asks for."""

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    @staticmethod
    def parse_devices(devices):
        return devices

    @staticmethod
    def get_parallel_devices(devices):
        return devices

    @staticmethod
    def auto_device_count():
        return 1

    @staticmethod
    def is_available():
        return True

    @staticmethod
    def name():
        return "pretended"

    def get_device_stats(self, device):
        return {}


class Classifier(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.encoder = BiLSTM(4, 5, 2, batch_first=True)
        self.head = nn.Linear(10, 2)
        self.places, self.trained = set(), []

    def training_step(self, batch):
        inputs, labels = batch
        self.places.add(inputs.device.type)
        loss = nn.functional.cross_entropy(self.head(self.encoder(inputs)[0].mean(1)), labels)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch):
        self.log("val_loss", self.training_step(batch))

    def on_train_epoch_end(self):
        self.trained.append({n for n, p in self.named_parameters() if p.requires_grad})

    def configure_optimizers(self):
        return torch.optim.AdamW(param_groups(self, lr=1e-2), foreach=False)


def fit(model, device, callbacks, epochs=4, **options):
    gen = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(8, 3, 4, generator=gen), torch.randint(2, (8,), generator=gen))
    loader = DataLoader(data, batch_size=4)
    trainer = pl.Trainer(
        max_epochs=epochs,
        strategy=SingleDeviceStrategy(device=torch.device(device), accelerator=Pretended()),
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(model, loader, loader)
    return trainer


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Classifier()


def test_gradual_unfreezing_with_every_check(model, device):
    check, drift = FrozenWeightsCheck(), WeightDrift(every_n_steps=1)
    trainer = fit(model, device, [GradualUnfreezing(), check, drift])
    assert model.places == {torch.device(device).type}
    assert [len(names) for names in model.trained] == [2, 10, 18, 18]
    assert check.checks == 9  # eight steps, and one after the fit
    measured = {n: float(v) for n, v in trainer.callback_metrics.items() if "drift" in n}
    assert len(measured) == 5
    assert min(measured.values()) > 0


def test_a_frozen_layer_has_drifted_by_nothing(model, device):
    trainer = fit(model, device, [FreezeScheduler({0: ["head"]}), WeightDrift(1)], epochs=1)
    measured = {n: float(v) for n, v in trainer.callback_metrics.items() if "drift" in n}
    assert {n for n, v in measured.items() if v > 0} == {"weight_drift/head"}


def test_phases_by_plateau_restore_the_best_weights(model, device):
    plateau = Plateau(patience=1, min_delta=10.0, restore_best=True)
    scheduler = FreezeScheduler({0: ["head"], 1: ["*"]}, advance=plateau)
    fit(model, device, [scheduler], num_sanity_val_steps=0)
    assert [len(names) for names in model.trained] == [2, 2, 18, 18]


def test_a_prefix_cache_serves_a_fit(model, device):
    model.encoder.prefix_cache = PrefixCache()
    fit(model, device, [FreezeScheduler({0: ["head"]})], epochs=3, num_sanity_val_steps=0)
    stats = model.encoder.prefix_cache.stats()
    assert (stats["hits"], stats["misses"]) == (40, 8)


@pytest.mark.parametrize("mode", ["exact", "fingerprint"])
def test_the_check_fails_a_fit_in_which_a_frozen_weight_moves(model, device, mode):
    from lstm_freeze import FrozenWeightsChanged

    class Meddler(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            with torch.no_grad():
                pl_module.encoder.bias_hh_l0[0] += 1

    callbacks = [FreezeScheduler({0: ["head"]}), FrozenWeightsCheck(mode=mode), Meddler()]
    with pytest.raises(FrozenWeightsChanged, match=r"encoder\.bias_hh_l0"):
        fit(model, device, callbacks)
