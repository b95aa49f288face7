"""Wrong arguments through both doors: the type, what the message says, and that nothing changed."""

# ruff: noqa: E501  (a row of the table is a line)

import copy
import re

import matplotlib
import pytest
import torch
from _models import everything, snapshot
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import lstm_freeze
import lstm_freeze.callbacks
from lstm_freeze import (
    BiLSTM,
    Choice,
    FreezeSchedule,
    FrozenGuard,
    Phase,
    PrefixCache,
    add_lora,
    anchor,
    compare,
    fingerprints,
    freeze,
    freeze_up_to,
    interpolate,
    load_changes,
    param_groups,
    replace_lstm,
    save_changes,
    select,
    slanted_triangular,
    status,
    unfreeze,
)
from lstm_freeze._guard.attached import attached_to
from lstm_freeze.callbacks import (
    FreezeScheduler,
    FrozenWeightsCheck,
    GradualUnfreezing,
    Plateau,
    SaveChanges,
    WeightAnchor,
    WeightDrift,
)

matplotlib.use("Agg")

X = torch.zeros(5, 2, 3)
PACKED = pack_sequence([torch.zeros(3, 3), torch.zeros(2, 3)])
TWO = nn.ModuleDict({"a": nn.LSTM(2, 2), "b": nn.LSTM(2, 2)})
NAN, INF = float("nan"), float("inf")
BAD_MODULE = "`module` must be a torch.nn.Module, got str"
BAD_OPTIMIZER = "`optimizer` must be a torch.optim.Optimizer or several of them, got "
BAD_TARGETS = " must be strings (module or parameter paths) or lists of them, got int"
EMPTY = " got an empty list, which names nothing; None means all"
NOTHING_EXCLUDED = " got an empty list, which names nothing; None leaves nothing out"


def states(*sizes, **options):
    return (torch.zeros(*sizes, **options),) * 2


def lbfgs(m):
    return torch.optim.LBFGS(m.parameters())


def head_only(m):
    return torch.optim.SGD(m["head"].parameters(), 0.1)


# Each row: a call of a model m and its optimizer o, the exception, and what its message must hold:
# the argument, the requirement or remedy, and the value.
# fmt: off
BILSTM = [
    (lambda m, o: BiLSTM(3.0, 4), TypeError, "input_size should be of type int, got: float"),
    (lambda m, o: BiLSTM(0, 4), ValueError, "input_size must be greater than zero, got 0"),
    (lambda m, o: BiLSTM(3, "4"), TypeError, "hidden_size should be of type int, got: str"),
    (lambda m, o: BiLSTM(3, -4), ValueError, "hidden_size must be greater than zero, got -4"),
    (lambda m, o: BiLSTM(3, 4, 1.5), TypeError, "num_layers should be of type int, got: float"),
    (lambda m, o: BiLSTM(3, 4, 0), ValueError, "num_layers must be greater than zero, got 0"),
    (lambda m, o: BiLSTM(3, 4, bias=1), TypeError, "bias should be of type bool, got: int"),
    (lambda m, o: BiLSTM(3, 4, batch_first="yes"), TypeError, "batch_first should be of type bool, got: str"),
    (lambda m, o: BiLSTM(3, 4, dropout=2), ValueError, "dropout should be a number in range [0, 1] representing the probability of an element being zeroed, got 2"),
    (lambda m, o: BiLSTM(3, 4, dropout="x"), ValueError, "dropout should be a number in range [0, 1], got 'x'"),
    (lambda m, o: BiLSTM(3, 4, bidirectional="no"), TypeError, "bidirectional should be of type bool, got: str"),
    (lambda m, o: BiLSTM(3, 4, proj_size="1"), TypeError, "proj_size should be of type int, got: str"),
    (lambda m, o: BiLSTM(3, 4, proj_size=1.5), TypeError, "proj_size should be of type int, got: float"),
    (lambda m, o: BiLSTM(3, 4, proj_size=-1), ValueError, "proj_size should be a positive integer or zero to disable projections, got -1"),
    (lambda m, o: BiLSTM(3, 4, proj_size=4), ValueError, "proj_size has to be smaller than hidden_size, got proj_size=4 and hidden_size=4"),
    (lambda m, o: m["encoder"]([1.0]), AttributeError, "input must be a Tensor or a PackedSequence, got list"),
    (lambda m, o: m["encoder"](torch.zeros(5)), ValueError, "Expected input to be 2D or 3D, got 1D instead: pass (T, I), (T, B, I) or, with batch_first, (B, T, I)"),
    (lambda m, o: m["encoder"](torch.zeros(5, 2, 4)), RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 4"),
    (lambda m, o: m["encoder"](torch.zeros(0, 2, 3)), RuntimeError, "Expected sequence length to be larger than 0 in RNN, got 0"),
    (lambda m, o: m["encoder"](X.double()), ValueError, "input dtype (torch.float64) does not match weight dtype (torch.float32). Convert input: input.to(torch.float32)"),
    (lambda m, o: m["encoder"](X.to_sparse()), RuntimeError, "input must be dense, got a sparse tensor (torch.sparse_coo): pass input.to_dense()"),
    (lambda m, o: m["encoder"](X, 3), TypeError, "hx must be a tuple of two tensors (h_0, c_0), got int"),
    (lambda m, o: m["encoder"](X, states(4, 2, 4)[:1]), IndexError, "hx must be a tuple of two tensors (h_0, c_0), got tuple of (Tensor)"),
    (lambda m, o: m["encoder"](X, states(4, 2, 4) * 2), RuntimeError, "lstm expects two hidden states, hx = (h_0, c_0), got 4"),
    (lambda m, o: m["encoder"](X, states(4, 2, 5)), RuntimeError, "Expected hidden[0] size (4, 2, 4), got [4, 2, 5]"),
    (lambda m, o: m["encoder"](X, states(4, 2)), RuntimeError, "hx and cx should also be 3-D but got (2-D, 2-D) tensors"),
    (lambda m, o: m["encoder"](X, states(4, 2, 4, dtype=torch.float64)), RuntimeError, "hx must have the weights' dtype. Expected torch.float32, got torch.float64 for hx[0]: convert it"),
    (lambda m, o: m["encoder"](PACKED, states(4, 3, 4)), RuntimeError, "Expected hidden[0] size (4, 2, 4), got [4, 3, 4]"),
    (lambda m, o: BiLSTM.from_lstm(nn.GRU(3, 4)), TypeError, "lstm must be an nn.LSTM, got GRU"),
    (lambda m, o: BiLSTM.from_lstm(None), TypeError, "lstm must be an nn.LSTM, got NoneType"),
    (lambda m, o: replace_lstm(nn.LSTM(3, 4)), ValueError, "model must contain nn.LSTM modules, got an nn.LSTM itself, which cannot be replaced in place: use BiLSTM.from_lstm(model)"),
    (lambda m, o: replace_lstm("model"), TypeError, "`model` must be a torch.nn.Module, got str"),
    (lambda m, o: replace_lstm(nn.DataParallel(nn.Sequential(nn.LSTM(3, 4)))), ValueError, "model must not be wrapped yet, but model is a DataParallel, which already holds on to the nn.LSTM modules: call replace_lstm before wrapping"),
    (lambda m, o: setattr(m["encoder"], "prefix_cache", 3), TypeError, "`prefix_cache` must be a PrefixCache or None, got 3; lstm.prefix_cache = PrefixCache("),
    (lambda m, o: PrefixCache("2G"), TypeError, "`max_bytes` must be an integer, got '2G'"),
    (lambda m, o: PrefixCache(-1), ValueError, "`max_bytes` must not be negative, got -1"),
    (lambda m, o: PrefixCache(keep_levels=3), TypeError, "`keep_levels` must be several integers, got 3"),
    (lambda m, o: PrefixCache(keep_levels="1"), TypeError, "`keep_levels` must be an integer, got '1'"),
    (lambda m, o: PrefixCache(keep_levels=[0]), ValueError, "`keep_levels` must be at least 1, got 0"),
]
# What select refuses, freeze and unfreeze refuse alike: targets, keywords, exception, message.
CHOICES = [
    ((3,), {}, TypeError, "`targets`" + BAD_TARGETS),
    ((["head", 3],), {}, TypeError, "`targets` must hold strings, got int"),
    (([],), {}, ValueError, "`targets`" + EMPTY),
    (("",), {}, ValueError, '"": no such module; valid: "encoder", "norm", "head"'),
    (("encodr",), {}, ValueError, '"encodr": no such module; did you mean "encoder"?'),
    (("head.wieght",), {}, ValueError, '"head.wieght": no such module or parameter; did you mean "head.weight"?'),
    (("zz*",), {}, ValueError, '"zz*": matches no module and no parameter; valid: "encoder", "norm", "head"'),
    (("encoder[5]",), {}, ValueError, '"encoder[5]": this LSTM has 2 layers; valid: 0, 1, or -2, -1'),
    (("encoder[0].sideways",), {}, ValueError, 'may stand a direction ("forward", "reverse") and a kind ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight", "bias", "lora"), got "sideways"'),
    (("encoder[0",), {}, ValueError, '"encoder[0": brackets stand once, after the path of an RNN'),
    (("encoder[a]",), {}, ValueError, "\"encoder[a]\": between brackets stands a layer (0, -1) or a slice (0:2), got 'a'"),
    (("head[0]",), {}, ValueError, '"head[0]": "head" is a Linear, and brackets belong to RNNs; the RNNs here: "encoder"'),
    (("[0]",), {}, ValueError, '"[0]": the module itself is a ModuleDict, and brackets belong to RNNs; the RNNs here: "encoder"'),
    ((), {"layers": [3]}, ValueError, "layers=[3]: this LSTM has 2 layers; valid: 0, 1, or -2, -1"),
    ((), {"layers": slice(5, 9)}, ValueError, "layers=slice(5, 9, None): this LSTM has 2 layers; valid: 0, 1"),
    ((), {"layers": []}, ValueError, "`layers`" + EMPTY),
    ((), {"layers": "0"}, TypeError, "`layers` must be integers or slices, got '0'"),
    ((), {"layers": 1.0}, TypeError, "`layers` must be integers or slices, got 1.0"),
    ((), {"layers": True}, TypeError, "`layers` must be integers or slices, got True"),
    ((), {"directions": "up"}, ValueError, 'directions="up": this LSTM has no "up"; valid: "forward", "reverse"'),
    ((), {"directions": []}, ValueError, "`directions`" + EMPTY),
    ((), {"directions": 3}, TypeError, "`directions` must be strings, got 3"),
    ((), {"kinds": "wieght"}, ValueError, 'kinds="wieght": this LSTM has no "wieght"; valid: "weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight", "bias"; did you mean "weight"?'),
    ((), {"kinds": []}, ValueError, "`kinds`" + EMPTY),
    ((), {"kinds": 0}, TypeError, "`kinds` must be strings, got 0"),
    (("head",), {"layers": [0]}, ValueError, "targets ['head'] and the keywords together select nothing: keywords choose within the RNN; drop one of the two"),
    ((), {"exclude": []}, ValueError, "`exclude`" + NOTHING_EXCLUDED),
    ((), {"exclude": 3}, TypeError, "`exclude`" + BAD_TARGETS),
    ((), {"exclude": "hed"}, ValueError, 'exclude="hed": no such module; did you mean "head"?'),
    ((), {"exclude": "*"}, ValueError, "exclude='*' leaves nothing selected; exclude less"),
]
FREEZING = [
    *((lambda m, o, call=call: call("m"), TypeError, BAD_MODULE) for call in (select, freeze, unfreeze, status, FrozenGuard)),
    *((lambda m, o, call=call: call(TWO, layers=[0]), ValueError, 'layers= needs a module that is or contains exactly one RNN; the RNNs here: "a", "b"; use targets, like "a[0]"') for call in (select, freeze, unfreeze)),
    *((lambda m, o, call=call: call(nn.Linear(2, 2), kinds="bias"), ValueError, "kinds= needs a module that is or contains exactly one RNN; this module has no RNN (BiLSTM, nn.LSTM, nn.GRU, nn.RNN); use targets") for call in (select, freeze, unfreeze)),
    *((lambda m, o, call=call: call(m, only="head"), TypeError, "`only` must be a bool, got 'head'; what to choose are the targets") for call in (freeze, unfreeze)),
    *((lambda m, o, call=call: call(m, "head", optimizer="adam"), TypeError, BAD_OPTIMIZER + "str") for call in (freeze, unfreeze)),
    *((lambda m, o, call=call: call(m, "head", optimizer=[]), ValueError, "`optimizer` must be at least one optimizer, got []") for call in (freeze, unfreeze)),
    *((lambda m, o, call=call: call(m, "head", optimizer=[o, 3]), TypeError, BAD_OPTIMIZER + "int") for call in (freeze, unfreeze)),
    (lambda m, o: freeze(m, "head", optimizer=lbfgs(m)), ValueError, "`optimizer` is an LBFGS that holds what is frozen, and its flat history moves every parameter it holds; use another optimizer"),
    (lambda m, o: unfreeze(m, "encoder", optimizer=head_only(m)), ValueError, "`optimizer` holds no encoder.weight_ih_l0, encoder.weight_hh_l0, encoder.bias_ih_l0 and 13 more: unfrozen, it would never train; build the optimizer over all parameters"),
    (lambda m, o: freeze(m, "encoder", dropout="on"), ValueError, "`dropout` must be \"keep\" or \"off\", got 'on'"),
    (lambda m, o: freeze(m, "encoder", dropout=None), ValueError, '`dropout` must be "keep" or "off", got None'),
    (lambda m, o: freeze(nn.ModuleDict({"rnn": nn.LSTM(3, 4, 2, dropout=0.5)}), layers=[0], dropout="off"), ValueError, "dropout=\"off\": LSTM 'rnn' would be frozen only in part, and a LSTM has one dropout for all of its layers; make it a BiLSTM with replace_lstm(model)"),
    (lambda m, o: freeze(nn.LSTM(3, 4, 2, dropout=0.5), layers=[0], dropout="off"), ValueError, "dropout=\"off\": this LSTM would be frozen only in part"),
    (lambda m, o: freeze_up_to("m", 0), TypeError, BAD_MODULE),
    *((lambda m, o, bad=bad: freeze_up_to(m, bad), TypeError, f"`layer_or_target` must be a layer (an int) or a target (a string), got {bad!r}") for bad in (1.5, True, None, slice(2))),
    (lambda m, o: freeze_up_to(m, 9), ValueError, "layer_or_target=9: this LSTM has 2 layers; valid: 0, 1, or -2, -1"),
    (lambda m, o: freeze_up_to(m, []), ValueError, "`layer_or_target` got an empty list, which names nothing; name a layer or a target"),
    (lambda m, o: freeze_up_to(m, [0]), TypeError, "`layer_or_target` must hold strings, got int"),
    (lambda m, o: freeze_up_to(TWO, 0, groups=[["a"], ["b"]]), ValueError, 'layer_or_target=0 needs a module that is or contains exactly one RNN; the RNNs here: "a", "b"; use targets, like "a[0]"'),
    (lambda m, o: freeze_up_to(m, "encodr"), ValueError, '"encodr": no such module; did you mean "encoder"?'),
    (lambda m, o: status(m, optimizer="x"), TypeError, BAD_OPTIMIZER + "str"),
    (lambda m, o: status(m, by="row"), ValueError, "`by` must be \"layer\" or \"parameter\", got 'row'"),
    (lambda m, o: FrozenGuard(m, mode="quick"), ValueError, "`mode` must be \"exact\" or \"fingerprint\", got 'quick'"),
    *((lambda m, o, bad=bad: FrozenGuard(m).check(step=bad), TypeError, f"`step` must be an int or None (the steps counted), got {bad!r}") for bad in ("a", 1.5, True)),
    (lambda m, o: FrozenGuard(m).attach("o"), TypeError, BAD_OPTIMIZER + "str"),
    (lambda m, o: FrozenGuard(m).attach([]), ValueError, "`optimizer` must be at least one optimizer, got []"),
    *((lambda m, o, bad=bad: FrozenGuard(m, idle_after=bad), TypeError, f"`idle_after` must be an integer, got {bad!r}") for bad in (1.5, True, "a")),
    (lambda m, o: FrozenGuard(m, idle_after=0), ValueError, "`idle_after` must be at least 1, got 0"),
    (lambda m, o: FrozenGuard(m).attach(o, 0), ValueError, "`every_n_steps` must be at least 1, got 0"),
    (lambda m, o: FrozenGuard(m).attach(o, 1.5), TypeError, "`every_n_steps` must be an integer, got 1.5"),
]
GROUPS = [
    (lambda m, o: param_groups("m", 0.1), TypeError, BAD_MODULE),
    *((lambda m, o, bad=bad: param_groups(m, bad), TypeError, f"`lr` must be a number, got {bad!r}") for bad in ("0.1", True, None)),
    *((lambda m, o, bad=bad: param_groups(m, bad), ValueError, f"`lr` must be finite and at least 0, got {bad}") for bad in (-1, NAN, INF)),
    (lambda m, o: param_groups(m, 0.1, layer_decay=0), ValueError, "`layer_decay` must be more than 0, got 0; ULMFiT's is 1 / 2.6"),
    (lambda m, o: param_groups(m, 0.1, layer_decay=2), ValueError, "`layer_decay` must be finite and between 0 and 1, got 2"),
    (lambda m, o: param_groups(m, 0.1, weight_decay=-1), ValueError, "`weight_decay` must be finite and at least 0, got -1"),
    (lambda m, o: param_groups(m, 0.1, weight_decay="a"), TypeError, "`weight_decay` must be a number, got 'a'"),
    (lambda m, o: param_groups(m, 0.1, no_decay=3), TypeError, "`no_decay`" + BAD_TARGETS),
    (lambda m, o: param_groups(m, 0.1, no_decay=[]), ValueError, "`no_decay`" + EMPTY + " decay"),
    (lambda m, o: param_groups(m, 0.1, groups=[[], "head"]), ValueError, "`groups[0]` got an empty list, which names nothing; leave the group out"),
    (lambda m, o: slanted_triangular("o", 10), TypeError, BAD_OPTIMIZER + "str"),
    (lambda m, o: slanted_triangular([o, o], 10), ValueError, "`optimizer` must be one optimizer, got 2"),
    (lambda m, o: slanted_triangular(o, 0), ValueError, "`total_steps` must be at least 1, got 0"),
    (lambda m, o: slanted_triangular(o, 1.5), TypeError, "`total_steps` must be an integer, got 1.5"),
    (lambda m, o: slanted_triangular(o, 9, cut_frac=1), ValueError, "`cut_frac` must lie between 0 and 1, both excluded, got 1"),
    (lambda m, o: slanted_triangular(o, 9, cut_frac="a"), TypeError, "`cut_frac` must be a number, got 'a'"),
    (lambda m, o: slanted_triangular(o, 9, ratio=0.5), ValueError, "`ratio` must be finite and at least 1, got 0.5"),
]
S = FreezeSchedule({0: ["head"], 1: ["*"]})
RECIPES = (FreezeSchedule.gradual_unfreezing, FreezeSchedule.chain_thaw, FreezeSchedule.linear_probing)
BETWEEN = [
    *((lambda m, o, call=call: call("m"), TypeError, BAD_MODULE) for call in (
        fingerprints,
        add_lora,
        lambda m: anchor(m, None, strength=1),
        lambda m: interpolate(m, {}, 0.5),
        lambda m: save_changes(m, "a.pt", {}),
        lambda m: load_changes(m, "a.pt"),
    )),
    (lambda m, o: add_lora(m, rank=0), ValueError, "`rank` must be at least 1, got 0"),
    (lambda m, o: add_lora(m, alpha=-1), ValueError, "`alpha` must be above 0, got -1"),
    (lambda m, o: add_lora(m, "norm"), ValueError, '"norm": names no weight of a BiLSTM or nn.Linear; LoRA factors serve those only'),
    (lambda m, o: add_lora(TWO), ValueError, '"a" is an nn.LSTM, which can have no LoRA factors; make it a BiLSTM with replace_lstm(model)'),
    (lambda m, o: add_lora(m, optimizer=lbfgs(m)), ValueError, "`optimizer` is an LBFGS"),
    (lambda m, o: anchor(m, o, strength=-1), ValueError, "`strength` must be finite and at least 0, got -1"),
    (lambda m, o: anchor(m, o, strength="1"), TypeError, "`strength` must be a number, got '1'"),
    (lambda m, o: anchor(m, 3, strength=1), TypeError, BAD_OPTIMIZER + "int"),
    (lambda m, o: anchor(m, head_only(m), strength=1), ValueError, "`optimizer` holds no encoder.weight_ih_l1, "),
    (lambda m, o: interpolate(m, {}, 2), ValueError, "`share` must be finite and between 0 and 1, got 2"),
    (lambda m, o: interpolate(m, 3, 0.5), TypeError, "`start` must be a state_dict from before fine-tuning, got int"),
    (lambda m, o: interpolate(m, m.state_dict(), 0.5), ValueError, "copy.deepcopy(model.state_dict())"),
    (lambda m, o: save_changes(m, 3, {}), TypeError, "`path` must be a file's path, got int"),
    (lambda m, o: save_changes(m, "a.pt", {"head.weight": "?"}), ValueError, "`base` must hold fingerprints of 16 hex digits, got '?' for 'head.weight'"),
    (lambda m, o: load_changes(m, "no such.pt"), FileNotFoundError, "no such.pt"),
    (lambda m, o: SaveChanges(3), TypeError, "`base` must be the fingerprints of the base, as fingerprints(module) gives them before training, got int"),
    (lambda m, o: WeightAnchor([], 1), ValueError, "`targets`" + EMPTY),
    (lambda m, o: WeightAnchor(["head", 3], 1), TypeError, "`targets` must hold strings, got int"),
    (lambda m, o: WeightAnchor("head", NAN), ValueError, "`strength` must be finite and at least 0, got nan"),
]
SCHEDULES = [
    *((lambda m, o, bad=bad: Phase(bad, "head"), TypeError, f"`start` must be an integer, got {bad!r}") for bad in (1.5, "0", True)),
    (lambda m, o: Phase(-1, "head"), ValueError, "`start` must not be negative, got -1"),
    (lambda m, o: Phase(0, []), ValueError, "`train`" + EMPTY),
    (lambda m, o: Phase(0, 3), TypeError, "`train`" + BAD_TARGETS),
    (lambda m, o: Phase(0, "head", lr=-1), ValueError, "`lr` must be above 0, got -1; to freeze a target, leave it out of `train`"),
    (lambda m, o: Phase(0, "head", lr="x"), TypeError, "`lr` must be a number, got 'x'"),
    (lambda m, o: Phase(0, "head", lr={}), ValueError, "`lr` got an empty mapping, which sets nothing; None leaves rates alone"),
    (lambda m, o: Phase(0, "head", lr={3: 1.0}), TypeError, "`lr` must map targets (strings) to numbers, got 3"),
    (lambda m, o: Phase(0, "head", lr={"head": 0}), ValueError, "`lr['head']` must be above 0, got 0"),
    (lambda m, o: Phase(0, "head", warmup=-1), ValueError, "`warmup` must not be negative, got -1"),
    (lambda m, o: Phase(0, "head", warmup=1.5), TypeError, "`warmup` must be an integer, got 1.5"),
    *((lambda m, o, bad=bad: FreezeSchedule(bad), TypeError, f"`phases` must be a mapping start -> targets or a list of Phase, got {type(bad).__name__}; for example {{0: ['head'], 2: ['*']}}") for bad in (3, "head", None)),
    *((lambda m, o, bad=bad: FreezeSchedule([bad]), TypeError, f"`phases` must hold Phase objects, got {bad!r}; write Phase(start, train), for example Phase(0, [\"head\"])") for bad in (3, {"start": 0, "train": "head"})),
    (lambda m, o: FreezeSchedule({0: {"train": "head"}}), ValueError, "phase 0: `train` must be targets, got {'train': 'head'}; a phase that says more stands in a list, with start, train, lr and warmup"),
    (lambda m, o: FreezeScheduler([{"start": 0}]), ValueError, "`phases[0]` must have start and train, got {'start': 0} without train; for example {'start': 0, 'train': ['head']}"),
    (lambda m, o: FreezeScheduler([{"start": 0, "trian": "head"}]), ValueError, "`phases[0]` has the key 'trian', and a phase has start, train, lr, warmup; did you mean \"train\"?"),
    (lambda m, o: FreezeScheduler({"phases": [3]}), TypeError, "`phases[0]` must be a mapping with start and train, got 3; for example {'start': 0, 'train': ['head']}"),
    (lambda m, o: FreezeScheduler({"phases": 3}), TypeError, "`phases` must be a mapping start -> targets or a list of Phase, got int"),
    (lambda m, o: FreezeScheduler({"phases": {0: "head"}, "unti": "step"}), ValueError, "a schedule has no 'unti'; its keys: phases, unit, scope, exclude, rest; did you mean \"unit\"?"),
    (lambda m, o: FreezeSchedule({}), ValueError, "`phases` must have a phase that starts at 0, but it is empty"),
    (lambda m, o: FreezeSchedule({1: "*"}), ValueError, "`phases` must have a phase that starts at 0, but the first starts at 1"),
    (lambda m, o: FreezeSchedule([Phase(0, "*"), Phase(0, "head")]), ValueError, "`phases` has two phases that start at 0; name all that trains in one"),
    (lambda m, o: FreezeSchedule({0: "*"}, unit="batch"), ValueError, "`unit` must be \"epoch\" or \"step\", got 'batch'"),
    (lambda m, o: FreezeSchedule({0: "*"}, scope=[]), ValueError, "`scope`" + EMPTY),
    (lambda m, o: FreezeSchedule({0: "*"}, scope=3), TypeError, "`scope`" + BAD_TARGETS),
    (lambda m, o: FreezeSchedule({0: "*"}, exclude=[]), ValueError, "`exclude`" + NOTHING_EXCLUDED),
    (lambda m, o: FreezeSchedule({0: "*"}, exclude=3), TypeError, "`exclude`" + BAD_TARGETS),
    (lambda m, o: S.apply("m", 0), TypeError, BAD_MODULE),
    (lambda m, o: S.apply(m, -1), ValueError, "`epoch` must not be negative, got -1"),
    (lambda m, o: S.apply(m, "0"), TypeError, "`epoch` must be a number, got '0'"),
    (lambda m, o: S.apply(m, NAN), ValueError, "`epoch` must be finite, got nan"),
    (lambda m, o: S.apply(m, 0, "x"), TypeError, BAD_OPTIMIZER + "str"),
    (lambda m, o: FreezeSchedule({0: "hed"}).apply(m, 0, o), ValueError, 'phase at epoch 0: "hed": no such module; did you mean "head"?'),
    (lambda m, o: FreezeSchedule({0: "head", 9: "encodr"}).apply(m, 0, o), ValueError, 'phase at epoch 9: "encodr": no such module; did you mean "encoder"?'),
    (lambda m, o: S.trainable_at(-1), ValueError, "`epoch` must not be negative, got -1"),
    (lambda m, o: S.trainable_at("x"), TypeError, "`epoch` must be a number, got 'x'"),
    *((lambda m, o, show=show: show(3, 4), TypeError, "`model` must be a torch.nn.Module, got int") for show in (S.preview, S.plot)),
    (lambda m, o: S.plot(m, 4, ax=3), TypeError, "`ax` must be an Axes of matplotlib or None (a new figure), got 3"),
    *((lambda m, o, show=show: show(m, 0), ValueError, "`epochs` must be at least 1, got 0") for show in (S.preview, S.plot)),
    *((lambda m, o, show=show: show(m, 1.5), TypeError, "`epochs` must be an integer, got 1.5") for show in (S.preview, S.plot)),
    *((lambda m, o, make=make: make("m"), TypeError, "`model` must be a torch.nn.Module, got str") for make in RECIPES),
    *((lambda m, o, make=make: make(m, encoder="encodr"), ValueError, 'encoder="encodr": no such module; did you mean "encoder"?') for make in RECIPES),
    *((lambda m, o, make=make: make(m, head=["head"]), TypeError, "`head` must be one target (a string), got ['head']") for make in RECIPES),
    *((lambda m, o, make=make: make(m, head="encoder"), ValueError, 'head="encoder" holds all of encoder="encoder"; name two different parts') for make in RECIPES),
    *((lambda m, o, make=make: make(m, every=0), ValueError, "`every` must be at least 1, got 0") for make in RECIPES),
    *((lambda m, o, make=make: make(m, every=1.5), TypeError, "`every` must be an integer, got 1.5") for make in RECIPES),
    *((lambda m, o, make=make: make(m, lr=0), ValueError, "`lr` must be above 0, got 0") for make in RECIPES),
    *((lambda m, o, kw=kw, kind=kind, said=said: FreezeSchedule.progressive_freezing(m, **{"total": 9, **kw}), kind, said) for kw, kind, said in (
        ({"total": 0}, ValueError, "`total` must be at least 1, got 0"),
        ({"total": "9"}, TypeError, "`total` must be an integer, got '9'"),
        ({"t0": 0}, ValueError, "`t0` must be above 0 and at most 1, got 0"),
        ({"t0": "x"}, TypeError, "`t0` must be a number, got 'x'"),
        ({"how": "square"}, ValueError, '`how` must be "linear", "squared" or "cubic", got \'square\''),
        ({"how": ["cubic"]}, ValueError, "`how` must be \"linear\", \"squared\" or \"cubic\", got ['cubic']"),
        ({"scaled": 1}, TypeError, "`scaled` must be a bool, got 1"),
    )),
    (lambda m, o: FreezeSchedule.recipe("thaw"), ValueError, "no recipe 'thaw'; the recipes: chain_thaw, gradual_unfreezing, linear_probing, progressive_freezing"),
    (lambda m, o: FreezeSchedule.recipe("chain_thaw", evry=1), ValueError, "chain_thaw takes no 'evry'; its arguments: encoder, head, every, lr, groups, rest; did you mean \"every\"?"),
    (lambda m, o: FreezeSchedule.recipe("progressive_freezing"), ValueError, "progressive_freezing needs `total`"),
    (lambda m, o: FreezeSchedule.from_yaml("no such.yaml"), FileNotFoundError, "no such.yaml"),
    (lambda m, o: S.to_yaml("no such/folder.yaml"), FileNotFoundError, "no such/folder.yaml"),
]
CALLBACKS = [
    *((lambda m, o, bad=bad: FreezeScheduler(bad), TypeError, f"`schedule` must be a FreezeSchedule, a mapping start -> targets, the path of a YAML file or a function module -> FreezeSchedule, got {type(bad).__name__}") for bad in (3, None)),
    (lambda m, o: FreezeScheduler({1: "head"}), ValueError, "`phases` must have a phase that starts at 0, but the first starts at 1"),
    (lambda m, o: FreezeScheduler("no such.yaml"), FileNotFoundError, "no such.yaml"),
    (lambda m, o: FreezeScheduler({0: "*"}, check="batch"), ValueError, "`check` must be \"step\", \"epoch\" or None, got 'batch'"),
    (lambda m, o: FreezeScheduler({0: "*"}, advance="val_loss"), TypeError, "`advance` must be a Plateau or None, got 'val_loss'"),
    (lambda m, o: GradualUnfreezing(encoder=3), TypeError, "`encoder` must be one target (a string), got 3"),
    (lambda m, o: GradualUnfreezing(head=""), ValueError, "`head` must name a part of the module, got ''"),
    (lambda m, o: GradualUnfreezing(encoder=""), ValueError, "`encoder` must name a part of the module, got ''"),
    (lambda m, o: GradualUnfreezing(head=["a"]), TypeError, "`head` must be one target (a string), got ['a']"),
    (lambda m, o: GradualUnfreezing(every_n_epochs=0), ValueError, "`every_n_epochs` must be at least 1, got 0"),
    (lambda m, o: GradualUnfreezing(every_n_epochs=1.5), TypeError, "`every_n_epochs` must be an integer, got 1.5"),
    (lambda m, o: GradualUnfreezing(check="always"), ValueError, "`check` must be \"step\", \"epoch\" or None, got 'always'"),
    (lambda m, o: GradualUnfreezing(advance=3), TypeError, "`advance` must be a Plateau or None, got 3"),
    *((lambda m, o, make=make: make(0), ValueError, "`every_n_steps` must be at least 1, got 0") for make in (FrozenWeightsCheck, WeightDrift)),
    *((lambda m, o, make=make: make("1"), TypeError, "`every_n_steps` must be an integer, got '1'") for make in (FrozenWeightsCheck, WeightDrift)),
    (lambda m, o: FrozenWeightsCheck(mode="x"), ValueError, "`mode` must be \"exact\" or \"fingerprint\", got 'x'"),
    (lambda m, o: Plateau(monitor=3), TypeError, "`monitor` must be a metric's name (a string), got 3"),
    (lambda m, o: Plateau(mode="down"), ValueError, "`mode` must be \"min\" or \"max\", got 'down'"),
    *((lambda m, o, bad=bad: Plateau(patience=bad), TypeError, f"`patience` must be an integer, got {bad!r}") for bad in (1.5, True)),
    (lambda m, o: Plateau(patience=0), ValueError, "`patience` must be at least 1, got 0"),
    (lambda m, o: Plateau(max_epochs_per_phase=0), ValueError, "`max_epochs_per_phase` must be at least 1, got 0"),
    *((lambda m, o, bad=bad: Plateau(min_delta=bad), ValueError, f"`min_delta` must be finite and at least 0, got {bad!r}") for bad in (-1, NAN)),
    (lambda m, o: Plateau(min_delta="x"), TypeError, "`min_delta` must be a number, got 'x'"),
    (lambda m, o: Plateau(restore_best="yes"), TypeError, "`restore_best` must be a bool, got 'yes'"),
]
# fmt: on
CHOOSING = [
    (lambda m, o, call=call, a=a, k=k: call(m, *a, **k), kind, said)
    for a, k, kind, said in CHOICES
    for call in (select, freeze, unfreeze)
]
# The other rows of compare are in test_comparing.py.
# fmt: off
COMPARING = [
    (lambda m, o: compare(m, {"a": {"lr": 1}}, 5), ValueError, "splits=5 makes stratified folds and needs `labels=`"),
    (lambda m, o: compare(print, {"a": {"model": m}}, "5"), TypeError, "methods['a'] does not fit score("),
    (lambda m, o: compare(lambda train, test, seed, model: 0, {"a": {"model": m}}, "5"), TypeError, "`splits` must be pairs (train, test) of index arrays, or a number of folds, got '5'"),
    (lambda m, o: Choice("abc"), TypeError, "Choice takes a list of values, got 'abc'"),
]
# fmt: on
TABLE = [*BILSTM, *CHOOSING, *FREEZING, *GROUPS, *BETWEEN, *SCHEDULES, *CALLBACKS, *COMPARING]


def in_training():
    """A model in the midst of training, half of it frozen, with gradients, momentum and hooks."""
    torch.manual_seed(0)
    encoder, norm, head = BiLSTM(3, 4, 2, dropout=0.5), nn.BatchNorm1d(8), nn.Linear(8, 2)
    model = nn.ModuleDict({"encoder": encoder, "norm": norm, "head": head})
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1))
    model["head"](model["norm"](model["encoder"](torch.randn(5, 2, 3))[0][0])).sum().backward()
    optimizer.step()
    freeze(model, "encoder[0]", "norm", dropout="off")
    model["head"].eval()
    return model, optimizer


@pytest.fixture(scope="module")
def trained():
    return in_training()


def state(model, optimizer):
    """All of a model and of its optimizer that a refused call must leave alone."""
    groups = [
        {**group, "params": [id(p) for p in group["params"]]} for group in optimizer.param_groups
    ]
    moments = {
        id(p): {name: torch.as_tensor(value).tolist() for name, value in kept.items()}
        for p, kept in optimizer.state.items()
    }
    gradients = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
    hooks = [
        len(h) for h in (optimizer._optimizer_step_post_hooks, optimizer._optimizer_step_pre_hooks)
    ]
    hooks.append(len(attached_to(model)))
    whole = everything(model, optimizer), snapshot(model), gradients, groups, moments, hooks
    return copy.deepcopy(whole)


@pytest.mark.parametrize(("call", "kind", "said"), TABLE)
def test_a_wrong_argument_is_said_and_changes_nothing(call, kind, said, trained):
    model, optimizer = trained
    before = state(model, optimizer)
    with pytest.raises(kind, match=re.escape(said)) as caught:
        call(model, optimizer)
    assert type(caught.value) is kind
    assert state(model, optimizer) == before


@pytest.mark.parametrize(
    "change",
    [
        lambda m, o: unfreeze(m, "encoder[0].forward.bias_ih"),
        lambda m, o: m["head"].weight.grad.mul_(2),
        lambda m, o: m["head"].train(),
        lambda m, o: m["norm"].register_forward_hook(print),
        lambda m, o: o.state[m["head"].weight]["exp_avg"].add_(1),
        lambda m, o: o.param_groups[0].update(lr=3.0),
        lambda m, o: FrozenGuard(m).attach(o),
    ],
)
def test_the_state_compared_sees_a_change(change):
    model, optimizer = in_training()
    before = state(model, optimizer)
    change(model, optimizer)
    assert state(model, optimizer) != before


@pytest.mark.parametrize("door", [lstm_freeze, lstm_freeze.callbacks])
def test_every_public_call_is_in_the_table(door):
    # Made by the library and not by users.
    results = {
        "Anchor",
        "LoRA",
        "Freeze",
        "FrozenWeightsChanged",
        "ParameterGroup",
        "Recipe",
        "Selection",
    }
    results |= {"Comparison", "Status"}
    here = {
        name
        for call, _, _ in TABLE
        for name in (*call.__code__.co_names, *map(_name, call.__defaults__ or ()))
    }
    without_arguments = {"release_memory", "show_config"}
    assert set(door.__all__) - results - here - without_arguments - {"FreezeSchedule"} == set()


def _name(value):
    return getattr(value, "__name__", "")
