"""DistributedDataParallel exchanges the gradients of parameters that train, and no others."""

# Without postponed annotations: DDP compares those of a communication hook with the types.

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from lstm_freeze._torch_internals import has_comm_hook


def send_trainable_only(model: nn.Module | None) -> None:
    """Have DDP exchange the gradients of what trains, and not zeros for what is frozen.

    Where the model has a communication hook already, nothing is changed.
    """
    if not isinstance(model, DistributedDataParallel) or not model.find_unused_parameters:
        return
    if not has_comm_hook(model):
        model.register_comm_hook(model.process_group, average_trainable)


def average_trainable(
    group: Any,
    bucket: dist.GradBucket,  # type: ignore[name-defined]
) -> Future[Tensor]:
    """Average, over the ranks, the gradients in a bucket that belong to trainable parameters.

    All ranks freeze the same parameters, so all send the same parts of the bucket. A frozen
    parameter's part is never read.
    """
    buffer: Tensor = bucket.buffer()
    gradients = zip(bucket.parameters(), bucket.gradients(), strict=True)
    trained = [gradient for parameter, gradient in gradients if parameter.requires_grad]
    whole = len(trained) == len(bucket.parameters())
    if not trained:
        nothing: Future[Tensor] = Future(devices=[buffer.device] if buffer.is_cuda else None)
        nothing.set_result(buffer)
        return nothing
    message = buffer if whole else torch.cat([gradient.flatten() for gradient in trained])
    message.div_(group.size())
    sent = dist.all_reduce(message, group=group, async_op=True).get_future()

    def put_back(_: Future[Any]) -> Tensor:
        if not whole:
            parts = torch.split(message, [gradient.numel() for gradient in trained])
            for gradient, part in zip(trained, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        return buffer

    averaged: Future[Tensor] = sent.then(put_back)
    return averaged
