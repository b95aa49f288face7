"""A small classifier for real Lightning fits, for either Lightning."""

import importlib
import warnings

import torch
from torch import nn
from torch.nn import functional as F

from lstm_freeze import param_groups

LIGHTNINGS = ("lightning.pytorch", "pytorch_lightning")
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
    "enable_checkpointing": False,
}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.lstm = nn.LSTM(4, 3, 2, bidirectional=True, batch_first=True)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.norm(self.lstm(self.embedding(x))[0].mean(1))


def data(size=16, batch=4, workers=0):
    torch.manual_seed(1)
    x = torch.randint(0, 10, (size, 5))
    rows = torch.utils.data.TensorDataset(x, (x.sum(1) % 2))
    return torch.utils.data.DataLoader(rows, batch, num_workers=workers)


class Stateful(torch.utils.data.DataLoader):
    """A loader that goes on where a checkpoint was made, as a resume in mid-epoch needs it."""

    begun = 0

    def __iter__(self):
        skip, self.begun = self.begun, 0
        for i, batch in enumerate(super().__iter__()):
            if i >= skip:
                self.begun = (i + 1) % len(self)
                yield batch

    def state_dict(self):
        return {"begun": self.begun}

    def load_state_dict(self, state):
        self.begun = state["begun"]


def lightning(name="lightning.pytorch"):
    return importlib.import_module(name)


def module(L, optimizer=torch.optim.AdamW, scheduler=None, seed=0, lr=1e-2, dropout=0.0):
    """A new LightningModule; the same seed gives the same weights."""

    class Classifier(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.encoder = Encoder()
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(6, 2)
            self.losses = []

        def forward(self, x):
            return self.head(self.dropout(self.encoder(x)))

        def training_step(self, batch, index):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.losses.append(float(loss.detach()))
            return loss

        def validation_step(self, batch, index):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("val_loss", loss)

        def configure_optimizers(self):
            made = optimizer(param_groups(self, lr))
            return made if scheduler is None else ([made], [scheduler(made)])

    torch.manual_seed(seed)
    return Classifier()


def trainer(L, *callbacks, **options):
    return L.Trainer(callbacks=list(callbacks), **{"max_epochs": 3, **QUIET, **options})


def fit(L, model, *callbacks, val=True, ckpt_path=None, loader=None, made=None, **options):
    """Fit, with warnings about workers and intervals silenced; gives the Trainer (or goes on)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers")
        warnings.filterwarnings("ignore", message=".*smaller than the logging interval")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch|lightning")
        warnings.filterwarnings("ignore", message=".*LeafSpec")
        made = trainer(L, *callbacks, **options) if made is None else made
        made.fit(
            model,
            data() if loader is None else loader,
            data() if val else None,
            ckpt_path=ckpt_path,
        )
    return made


def on(model):
    return {n for n, p in model.named_parameters() if p.requires_grad}


def names(model, *starts):
    return {n for n, _ in model.named_parameters() if n.startswith(starts)}


def bits(model):
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same(a, b):
    """Bit for bit."""
    assert a.keys() == b.keys()
    return all(torch.equal(a[n], b[n]) for n in a)


def recorder(L, look):
    """A callback that notes look(trainer, module) at each train batch's start."""

    class Recorder(L.Callback):
        def __init__(self):
            self.seen = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(look(trainer, pl_module))

    return Recorder()
