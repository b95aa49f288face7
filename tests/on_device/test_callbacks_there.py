"""The callbacks in a Lightning Trainer on another device."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import Accelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_freeze import (
    BiLSTM,
    FrozenWeightsChanged,
    PrefixCache,
    add_lora,
    fingerprints,
    load_changes,
    param_groups,
)
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    SaveChanges,
    WeightAnchor,
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


def fit(model, device, callbacks, epochs=4, ckpt_path=None, **options):
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
    trainer.fit(model, loader, loader, ckpt_path=ckpt_path)
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
    class Meddler(pl.Callback):
        def on_before_zero_grad(self, trainer, pl_module, optimizer):
            with torch.no_grad():
                pl_module.encoder.bias_hh_l0[0] += 1

    callbacks = [FreezeScheduler({0: ["head"]}), FrozenWeightsCheck(mode=mode), Meddler()]
    with pytest.raises(FrozenWeightsChanged, match=r"encoder\.bias_hh_l0"):
        fit(model, device, callbacks)


def values(model):
    return {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}


def anchored(place, strength):
    """The weights of a fit, and how far it has drawn them from where they began."""
    torch.manual_seed(0)
    model = Classifier()
    start = values(model)
    fit(model, place, [FreezeScheduler({0: ["*"]}), WeightAnchor("encoder", strength)], epochs=2)
    found = values(model)
    return found, sum((found[n] - start[n]).norm() for n in start if "encoder" in n)


def test_weights_are_anchored_as_on_the_cpu(device):
    found, distance = anchored(device, 20.0)
    expected, _ = anchored("cpu", 20.0)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-4)
    assert distance < 0.95 * anchored(device, 0.0)[1]


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_thin_checkpoint_of_the_device_is_read_and_resumed_here(model, device, tmp_path):
    base, start = fingerprints(model), values(model)
    schedule = {0: ["head"], 1: ["head", "encoder[1]"]}
    trainer = fit(model, device, [FreezeScheduler(schedule), SaveChanges()], epochs=2)
    trainer.save_checkpoint(tmp_path / "thin.ckpt")
    saved = torch.load(tmp_path / "thin.ckpt", weights_only=True)["state_dict"]
    changed = {n for n, value in values(model).items() if not torch.equal(value, start[n])}
    assert saved.keys() - {"lstm_freeze.base"} == changed
    assert changed == {n for n in start if "l1" in n or "head" in n}

    torch.manual_seed(0)
    here = Classifier()
    assert fingerprints(here) == base
    load_changes(here, tmp_path / "thin.ckpt")
    assert fingerprints(here) == fingerprints(model)

    for place in ("cpu", device):
        torch.manual_seed(0)
        resumed = Classifier()
        callbacks = [FreezeScheduler(schedule), SaveChanges()]
        fit(resumed, place, callbacks, epochs=3, ckpt_path=tmp_path / "thin.ckpt")
        assert resumed.trained == [{n for n, _ in model.named_parameters() if n in changed}]
        before, after = values(model), values(resumed)
        assert {n for n in before if not torch.equal(before[n], after[n])} == changed


def test_a_parameter_that_idles_in_a_fit_is_named(model, device):
    model.spare = nn.Linear(2, 2)
    check = FrozenWeightsCheck(idle_after=3)
    with pytest.warns(UserWarning, match=r"spare\.weight, spare\.bias got no gradient"):
        fit(model, device, [FreezeScheduler({0: ["head", "spare"]}), check], epochs=2)
    assert check.checks == 5


def test_factors_train_in_a_fit_and_the_base_stays(model, device):
    lora = add_lora(model, "encoder", rank=2)
    before = values(model)
    check = FrozenWeightsCheck(mode="fingerprint")
    fit(model, device, [FreezeScheduler({0: ["head", "lora"]}), check], epochs=2)
    now = values(model)
    moved = {n for n in before if not torch.equal(now[n], before[n])}
    assert moved == {*lora.parameters, "head.weight", "head.bias"}
    assert check.checks == 5
