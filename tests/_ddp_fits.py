"""A tagger for fits on several ranks, and what is noted after each of its steps."""

import os
import warnings

import lightning.pytorch as L
import torch
import torch.distributed as dist
from _fits import QUIET
from _ranks import ranks_agree
from torch import nn
from torch.nn import functional as F

from lstm_freeze import BiLSTM, param_groups

DDP = "ddp_find_unused_parameters_true"
T, I, BATCH = 5, 3, 2


def rnn(kind):
    made = {"BiLSTM": BiLSTM, "LSTM": nn.LSTM}[kind]
    return made(I, 4, 2, bidirectional=True, batch_first=True)


class Encoder(nn.Module):
    def __init__(self, kind, norm):
        super().__init__()
        self.lstm = rnn(kind)
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.lstm(x)[0].mean(1))


def adamw(groups):
    # With a small eps the rounding of a gradient near zero would become a step of its own.
    return torch.optim.AdamW(groups, eps=1e-3)


class Tagger(L.LightningModule):
    def __init__(self, kind="BiLSTM", norm=False, optimizer=adamw, lr=0.05):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = Encoder(kind, norm)
        self.head = nn.Linear(8, 2)
        self.optimizer, self.lr = optimizer, lr

    def loss(self, batch):
        return F.cross_entropy(self.head(self.encoder(batch[0])), batch[1])

    def training_step(self, batch, index):
        return self.loss(batch)

    def validation_step(self, batch, index):
        self.log("val_loss", self.loss(batch), sync_dist=True)

    def configure_optimizers(self):
        return self.optimizer(param_groups(self, self.lr))


def share():
    """This rank's number and how many there are; Lightning may begin the group only in fit."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return 0, 1


def loader(size=24, batch=BATCH, even=True):
    """Rows in a fixed order, shared among the ranks; with even=None Lightning is to share them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, T, I, generator=generator)
    rows = torch.utils.data.TensorDataset(x, (x.sum((1, 2)) > 0).long())
    if even is None:
        return torch.utils.data.DataLoader(rows, batch)
    rank, world = share()
    sampler = range(rank, size, world)
    if even:
        sampler = torch.utils.data.DistributedSampler(rows, world, rank, shuffle=False)
    return torch.utils.data.DataLoader(rows, batch, sampler=sampler)


def weights(module):
    """Copies of all parameters; of sharded ones what all ranks hold together."""
    whole = {n: getattr(p, "full_tensor", lambda p=p: p)() for n, p in module.named_parameters()}
    return {n: p.detach().clone() for n, p in whole.items()}


class Watch(L.Callback):
    """Notes, after each step: step, whether ranks agree, what trains, and what moved."""

    def __init__(self):
        self.seen = []

    def on_train_start(self, trainer, module):
        self.step = trainer.global_step
        self.start = self.before = weights(module)

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step == self.step:  # gradients are being accumulated
            return
        self.step = trainer.global_step
        now = weights(module)
        self.seen.append(
            {
                "epoch": trainer.current_epoch,
                "step": trainer.global_step,
                "agree": ranks_agree(now.values()) if dist.is_initialized() else True,
                "on": {n for n, p in module.named_parameters() if p.requires_grad},
                "moved": {n for n in now if not torch.equal(now[n], self.before[n])},
                "initial": {n for n in now if torch.equal(now[n], self.start[n])},
            }
        )
        self.before = now


def ddp(**options):
    """A DDP strategy that finds unused parameters."""
    return L.strategies.DDPStrategy(find_unused_parameters=True, **options)


def fit(
    module,
    *callbacks,
    world=1,
    strategy=None,
    size=24,
    batch=BATCH,
    even=True,
    val=True,
    **options,
):
    """Fit on this rank with the others; gives the Trainer."""
    made = {"max_epochs": 4, "devices": world, "num_sanity_val_steps": 0, **options}
    made["use_distributed_sampler"] = even is None  # Lightning's own shuffles
    strategy = strategy or (DDP if dist.is_initialized() else "auto")
    ckpt_path = made.pop("ckpt_path", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(callbacks=list(callbacks), strategy=strategy, **{**QUIET, **made})
        loaders = loader(size, batch, even), loader(12, batch) if val else None
        trainer.fit(module, *loaders, ckpt_path=ckpt_path)
    return trainer
