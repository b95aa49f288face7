"""The hooks of docs/other_loops.md in the real packages, and recipes on their real models.

Each runs where its package is installed (the extra `clients`; some of them also come with `dev`).
"""

import functools
import importlib
import re
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from _models import moved, snapshot, trainable
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lstm_freeze import (
    BiLSTM,
    FreezeSchedule,
    FrozenGuard,
    freeze,
    param_groups,
    replace_lstm,
    select,
    status,
    unfreeze,
)

PAGE = (Path(__file__).parents[1] / "docs" / "other_loops.md").read_text()

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


def needed(name):
    """A package, or a skip that says why: it is absent, or its binary is for another torch."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"{name}: {type(error).__name__}: {str(error)[:80]}")


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(4, 8, 2, batch_first=True)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.encoder(x)[0][:, -1])


class Seen:
    """A schedule that notes, each time it is applied, what trained until then and what trains."""

    def __init__(self, model):
        self.schedule = FreezeSchedule.gradual_unfreezing(model)
        self.epochs, self.trained, self.moved, self.guards, self.before = [], [], [], [], None

    def apply(self, model, epoch, optimizer=None):
        self.look(model)
        handle = self.schedule.apply(model, epoch, optimizer)
        self.epochs.append(epoch)
        self.trained.append(parts(trainable(bare(model))))
        self.guards.append(FrozenGuard(bare(model)))
        return handle

    def look(self, model):
        """Compare the bits with those at the start of the epoch; what was frozen is as it was."""
        if self.before is not None:
            self.guards[-1].check()
            self.moved.append(parts(moved(bare(model), self.before)))
        self.before = snapshot(bare(model))


def bare(model):
    return model["model"] if isinstance(model, nn.ModuleDict) else model


def parts(names):
    """Parameter names as head, upper and lower."""
    return {"head" if "head" in n else "upper" if "_l1" in n else "lower" for n in names}


EPOCHS = [{"head"}, {"head", "upper"}, {"head", "upper", "lower"}]


def hook(client, **names):
    """The names that the page's block for a client defines."""
    code = re.search(rf'```py title="{client}"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)[1]
    namespace = {"torch": torch, "nn": nn, "Reader": Reader, **names}
    exec(compile(textwrap.dedent(code), f"other_loops.md, {client}", "exec"), namespace)
    return namespace


def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(8, 5, 4, generator=generator), torch.randint(2, (8,), generator=generator)


def check(seen, model, trains=EPOCHS):
    seen.look(model)
    assert seen.epochs == list(range(len(trains)))
    assert seen.trained == trains
    assert seen.moved == trains


class TestHooks:
    def test_fastai(self):
        needed("fastai.callback.progress")  # for no_bar
        from fastai.data.core import DataLoaders
        from fastai.learner import Learner

        model = Reader()
        seen = Seen(model)
        names = hook("fastai", schedule=seen)
        loader = DataLoader(TensorDataset(*data()), batch_size=4)
        learner = Learner(
            DataLoaders(loader, loader), model, loss_func=nn.CrossEntropyLoss(),
            opt_func=names["opt_func"], cbs=names["Scheduled"](),
        )  # fmt: skip
        with learner.no_bar(), learner.no_logging():
            learner.fit(3, 1e-2)
        check(seen, model)

    def test_fastai_s_own_optimizer_is_refused_by_name_and_safe_without(self):
        needed("fastai.optimizer")
        from fastai.optimizer import Adam

        model = Reader()
        optimizer = Adam(list(model.parameters()), lr=0.1)
        with pytest.raises(TypeError, match=r"got fastai.optimizer.Optimizer, .*OptimWrapper"):
            freeze(model, "encoder", optimizer=optimizer)
        x, y = data()
        for _ in range(2):
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        freeze(model, "encoder")
        before = snapshot(model)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert moved(model, before) == {"head.weight", "head.bias"}

    def test_transformers(self, tmp_path):
        transformers = needed("transformers")
        needed("accelerate")

        class WithLoss(Reader):
            def forward(self, x, labels):
                logits = super().forward(x)
                return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

        model = WithLoss()
        seen = Seen(model)
        x, y = data()
        rows = [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4,
            report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
            remove_unused_columns=False, learning_rate=1e-2,
        )  # fmt: skip
        callback = hook("transformers", schedule=seen)["Scheduled"]()
        transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[callback]).train()
        check(seen, model)

    def test_skorch(self):
        skorch = needed("skorch")
        first = Reader()
        seen = Seen(first)
        callback = hook("skorch", schedule=seen)["Scheduled"]()
        net = skorch.NeuralNetClassifier(
            Reader, criterion=nn.CrossEntropyLoss, max_epochs=3, batch_size=4, verbose=0,
            train_split=None, callbacks=[callback], lr=0.1,
        )  # fmt: skip
        x, y = (t.numpy() for t in data())
        net.fit(x, y)
        check(seen, net.module_)

    def test_skorch_builds_the_module_anew(self):
        skorch = needed("skorch")
        net = skorch.NeuralNetClassifier(
            Reader, criterion=nn.CrossEntropyLoss, max_epochs=1, verbose=0, train_split=None
        ).initialize()
        freeze(net.module_, "encoder")
        x, y = (t.numpy() for t in data())
        net.partial_fit(x, y)
        assert parts(trainable(net.module_)) == {"head"}
        net.fit(x, y)
        assert parts(trainable(net.module_)) == {"head", "upper", "lower"}

    def test_flair(self, tmp_path):
        flair = needed("flair")
        from flair.data import Corpus, Sentence
        from flair.datasets import FlairDatapointDataset
        from flair.embeddings import OneHotEmbeddings
        from flair.models import SequenceTagger
        from flair.trainers import ModelTrainer

        def sentences():
            found = [Sentence("the cat sat"), Sentence("a dog ran away")]
            for sentence in found:
                for token in sentence:
                    token.add_label("pos", "N" if token.text in ("cat", "dog") else "O")
            return FlairDatapointDataset(found)

        corpus = Corpus(sentences(), sentences(), sentences(), name="tiny")
        tagger = SequenceTagger(
            OneHotEmbeddings.from_corpus(corpus, min_freq=1, embedding_length=4),
            corpus.make_label_dictionary("pos"), "pos", hidden_size=4, rnn_layers=2, use_crf=False,
        )  # fmt: skip
        replaced = FreezeSchedule.gradual_unfreezing(tagger, encoder="rnn", head="linear")
        seen, epochs = [], []

        class Spy:
            def apply(self, model, epoch, optimizer):
                epochs.append(epoch)
                replaced.apply(model, epoch, optimizer)
                guard = FrozenGuard(model).attach(optimizer)
                seen.append((guard, trainable(model)))

        plugin = hook("flair", schedule=Spy())["Scheduled"]()
        ModelTrainer(tagger, corpus).train(
            tmp_path, max_epochs=3, mini_batch_size=2, plugins=[plugin], learning_rate=0.1,
            embeddings_storage_mode="none", shuffle=False,
        )  # fmt: skip
        for guard, _ in seen:
            guard.detach()
        assert epochs == [0, 1, 2]
        assert [any("_l0" in n for n in names) for _, names in seen] == [False, False, True]
        assert [any("_l1" in n for n in names) for _, names in seen] == [False, True, True]
        assert flair.__version__

    def test_speechbrain(self):
        speechbrain = needed("speechbrain")
        model = Reader()
        seen = Seen(nn.ModuleDict({"model": model})["model"])
        seen.schedule = FreezeSchedule.gradual_unfreezing(
            nn.ModuleDict({"model": model}), encoder="model.encoder", head="model.head"
        )
        base = hook("speechbrain", schedule=seen)["Scheduled"]

        class Brain(base):
            def compute_forward(self, batch, stage):
                return self.modules["model"](batch[0])

            def compute_objectives(self, predictions, batch, stage):
                return nn.functional.cross_entropy(predictions, batch[1])

        brain = Brain({"model": model}, functools.partial(torch.optim.AdamW, lr=1e-2))
        loader = DataLoader(TensorDataset(*data()), batch_size=4)
        brain.fit(range(1, 4), loader, progressbar=False)
        check(seen, brain.modules["model"])
        assert speechbrain.__version__

    def test_ignite(self):
        needed("ignite")
        from ignite.engine import create_supervised_trainer

        model = Reader()
        seen = Seen(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
        hook("ignite", schedule=seen)["schedule_on"](trainer, model, optimizer)
        trainer.run(DataLoader(TensorDataset(*data()), batch_size=4), max_epochs=3)
        check(seen, model)

    def test_accelerate(self):
        needed("accelerate")
        model = Reader()
        seen = Seen(model)
        names = hook("accelerate", schedule=seen, model=model)
        assert seen.epochs == [0, 1, 2, 3]
        x, y = data()
        freeze(model, "encoder", optimizer=names["optimizer"])
        before = snapshot(model)
        names["accelerator"].backward(nn.functional.cross_entropy(names["net"](x), y))
        names["optimizer"].step()
        assert moved(model, before) == {"head.weight", "head.bias"}
        assert [group["lr"] for group in names["optimizer"].param_groups] == [1e-3]
        table = status(model, names["optimizer"])
        assert all(row.groups for row in table.rows)

    def test_peft(self):
        needed("peft")
        adapted = hook("peft")["adapted"]
        names = {n for n, p in select(adapted).items() if p.requires_grad}
        factors = {"head.lora_A.default.weight", "head.lora_B.default.weight"}
        assert names == factors | set(select(adapted, "encoder[1]"))
        assert not any("base_model" in n for n in names)
        assert {n for n in select(adapted, "head.weight") if "lora" in n} < names
        assert [g["name"] for g in param_groups(adapted, 1.0)] == [
            "encoder[0].forward", "encoder[1].forward", "head",
        ]  # fmt: skip
        x, y = data()
        optimizer = torch.optim.AdamW(param_groups(adapted, 0.1))
        before = snapshot(adapted)
        for _ in range(2):
            nn.functional.cross_entropy(adapted(x), y).backward()
            optimizer.step()
        assert {n.removeprefix("base_model.model.") for n in moved(adapted, before)} == names

    def test_peft_on_the_weights_of_an_lstm(self):
        peft = needed("peft")
        config = peft.LoraConfig(target_modules=[], target_parameters=["encoder.weight_hh_l1"])
        adapted = peft.get_peft_model(Reader(), config)
        factors = {n for n in select(adapted) if "lora" in n}
        assert len(factors) == 2
        assert factors < set(select(adapted, "encoder[1].forward.weight_hh"))
        assert factors.isdisjoint(select(adapted, "encoder[0]"))


class TestModels:
    def test_awd_lstm_is_split_as_its_own_splitter_does(self):
        needed("fastai.optimizer")
        from fastai.text.models.awdlstm import (
            AWD_LSTM,
            awd_lstm_clas_config,
            awd_lstm_clas_split,
        )  # fmt: skip
        from fastai.text.models.core import get_text_classifier

        config = {**awd_lstm_clas_config, "n_hid": 16, "emb_sz": 8}
        model = get_text_classifier(AWD_LSTM, 50, 2, config=config)
        own = [{id(p) for p in group} for group in awd_lstm_clas_split(model)]
        by_rate = {}
        for group in param_groups(model, 1.0, layer_decay=1 / 2.6):
            by_rate.setdefault(group["lr"], set()).update(map(id, group["params"]))
        assert list(by_rate.values()) == own
        assert list(by_rate) == pytest.approx([2.6**-depth for depth in (4, 3, 2, 1, 0)])

        def ids():
            return {id(p) for p in model.parameters() if p.requires_grad}

        schedule = FreezeSchedule.gradual_unfreezing(model, encoder="0", head="1")
        for epoch in range(5):
            schedule.apply(model, epoch)
            assert ids() == set().union(*own[4 - epoch :])
        unfreeze(model, "1", only=True)
        assert ids() == own[-1]
        unfreeze(model, "0.module.rnns.2", "1", only=True)
        assert ids() == own[-1] | own[-2]
        before = snapshot(model)
        optimizer = torch.optim.AdamW(param_groups(model, 0.1))
        model.train()
        model(torch.randint(2, 50, (3, 12)))[0].square().sum().backward()
        optimizer.step()
        names = moved(model, before)
        assert "0.module.rnns.2.weight_hh_l0_raw" in names
        assert not any("rnns.1" in n or "rnns.0" in n or "encoder" in n for n in names)

    def test_a_recurrent_policy(self):
        needed("sb3_contrib")
        import numpy as np
        from gymnasium.spaces import Box, Discrete
        from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

        space = Box(-np.ones(3, "float32"), np.ones(3, "float32"))
        policy = RecurrentActorCriticPolicy(space, Discrete(2), lambda _: 1e-3, lstm_hidden_size=8)
        groups = [["lstm_*"], ["mlp_extractor"], ["action_net", "value_net"]]
        rates = {
            g["name"]: g["lr"] for g in param_groups(policy, 1.0, layer_decay=0.1, groups=groups)
        }
        assert rates["lstm_actor[0].forward"] == rates["lstm_critic[0].forward"]
        assert rates["action_net"] == rates["value_net"] == 1.0
        schedule = FreezeSchedule.gradual_unfreezing(policy, groups=groups)
        schedule.apply(policy, 0)
        assert {n.split(".")[0] for n in trainable(policy)} == {"action_net", "value_net"}
        with pytest.raises(ValueError, match='"lstm_actor", "lstm_critic"'):
            FreezeSchedule.gradual_unfreezing(policy)

    def test_a_forecasting_package_s_lstm_is_replaced(self):
        needed("pytorch_forecasting")
        try:
            from pytorch_forecasting.layers import LSTM
        except ImportError:
            from pytorch_forecasting.models.nn import LSTM

        model = nn.ModuleDict({"lstm": LSTM(4, 8, 2, batch_first=True)})
        x, lengths = torch.randn(3, 5, 4), torch.tensor([5, 2, 3])
        expected = model.lstm(x, lengths=lengths, enforce_sorted=False)[0]
        assert replace_lstm(model, subclasses=True) == ("lstm",)
        assert isinstance(model.lstm, BiLSTM)
        found = model.lstm(x, lengths=lengths, enforce_sorted=False)[0]
        if isinstance(found, nn.utils.rnn.PackedSequence):
            found, expected = found.data, expected.data
        torch.testing.assert_close(found, expected)


def test_every_block_of_the_page_is_run_here():
    blocks = set(re.findall(r'```py title="(\w+)"', PAGE))
    run = {n.removeprefix("test_") for n in vars(TestHooks) if n.startswith("test_")}
    assert blocks <= run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(blocks) == 8
