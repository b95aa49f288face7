"""Optimizers and wrappers as other packages build them."""

from collections import defaultdict

import torch
from torch import nn
from torch.optim import Optimizer


class SAM(Optimizer):
    """Two steps around an optimizer of its own, as in davda54/sam."""

    def __init__(self, params, base_optimizer, rho=0.05, **knobs):
        super().__init__(params, {"rho": rho, **knobs})
        self.base_optimizer = base_optimizer(self.param_groups, **knobs)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self):
        grads = [
            p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None
        ]
        scale = 0.05 / (torch.stack(grads).norm() + 1e-12)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.clone()
                    p.add_(p.grad * scale)

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.copy_(self.state[p]["old_p"])
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step()
        if closure is not None:
            with torch.enable_grad():
                closure()
        self.second_step()


class Lookahead(Optimizer):
    """Slow weights in its state, never calling torch's __init__, as in torch_optimizer."""

    def __init__(self, optimizer, k=2, alpha=0.5):
        self.optimizer = optimizer
        self.k, self.alpha, self.counter = k, alpha, 0
        self.param_groups = optimizer.param_groups
        self.state = defaultdict(dict)
        self.fast_state = optimizer.state
        self.defaults = optimizer.defaults

    @torch.no_grad()
    def step(self, closure=None):
        self.optimizer.step(closure)
        self.counter += 1
        for group in self.param_groups:
            for p in group["params"]:
                slow = self.state[p].setdefault("slow_param", p.clone())
                if self.counter % self.k == 0:
                    slow.add_(p - slow, alpha=self.alpha)
                    p.copy_(slow)


class SlowLists(Optimizer):
    """Slow weights in lists that lie as the groups do, as in lonePatient/lookahead_pytorch."""

    def __init__(self, inner):
        self._wrapped = [inner]
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.slow_weights = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        self._wrapped[0].step(closure)
        for group, slows in zip(self.param_groups, self.slow_weights, strict=True):
            for p, slow in zip(group["params"], slows, strict=True):
                slow.add_(p - slow, alpha=0.5)
                p.copy_(slow)


class PlainWrapper:
    """No torch.optim.Optimizer, with copies by the parameters' ids."""

    def __init__(self, base):
        self._base_optimizer = base
        self.shadow = {id(p): p.detach().clone() for g in base.param_groups for p in g["params"]}

    @property
    def param_groups(self):
        return self._base_optimizer.param_groups

    def zero_grad(self, set_to_none=True):
        self._base_optimizer.zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure=None):
        self._base_optimizer.step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.shadow[id(p)].lerp_(p, 0.5)
                p.copy_(self.shadow[id(p)])


class MADGRAD(Optimizer):
    """All state in the constructor, the first weights among it, as in facebookresearch/madgrad."""

    def __init__(self, params, lr=1e-2, momentum=0.9, weight_decay=0, eps=1e-6):
        super().__init__(params, {"lr": lr, "eps": eps, "momentum": momentum})
        self.state["k"] = torch.tensor([0], dtype=torch.long)
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["grad_sum_sq"] = torch.zeros_like(p)
                state["s"] = torch.zeros_like(p)
                state["x0"] = p.detach().clone()

    @torch.no_grad()
    def step(self, closure=None):
        k = self.state["k"].item()
        for group in self.param_groups:
            lamb = group["lr"] * (k + 1) ** 0.5
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["grad_sum_sq"].addcmul_(p.grad, p.grad, value=lamb)
                rms = state["grad_sum_sq"].pow(1 / 3).add_(group["eps"])
                state["s"].add_(p.grad, alpha=lamb)
                z = state["x0"].addcdiv(state["s"], rms, value=-1)
                p.mul_(group["momentum"]).add_(z, alpha=1 - group["momentum"])
        self.state["k"] += 1


class Adagrad26(Optimizer):
    """The state in the constructor, and not at a first step, as in torch 2.6's Adagrad."""

    def __init__(self, params, lr=1e-2, initial_accumulator_value=0.0, eps=1e-10):
        super().__init__(params, {"lr": lr, "initial": initial_accumulator_value, "eps": eps})
        self._start = initial_accumulator_value
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {
                    "step": torch.tensor(0.0),
                    "sum": torch.full_like(p, initial_accumulator_value),
                }

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["step"] += 1
                    state["sum"].addcmul_(p.grad, p.grad)
                    p.addcdiv_(p.grad, state["sum"].sqrt().add_(group["eps"]), value=-group["lr"])


class NeedsModel(Optimizer):
    """A constructor that cannot be called again, with momentum from the beginning."""

    def __init__(self, model: nn.Module, rate):
        super().__init__(model.parameters(), {"lr": rate})
        for p in model.parameters():
            self.state[p] = {"steps": 0, "momentum": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                state = self.state[p]
                state["steps"] += 1
                state["momentum"].mul_(0.9).add_(p.grad)
                p.sub_(state["momentum"], alpha=self.param_groups[0]["lr"])
