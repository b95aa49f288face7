"""Small models of the builds that other packages use: own code, no copies."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropConnect(nn.Module):
    """Drops weights of an RNN it wraps: the trained weight is its own, under a longer name."""

    def __init__(self, rnn: nn.Module, names=("weight_hh_l0",), suffix: str = "_raw") -> None:
        super().__init__()
        self.inner, self.names, self.suffix = rnn, names, suffix
        for name in names:
            weight = getattr(rnn, name)
            delattr(rnn, name)
            self.register_parameter(name + suffix, nn.Parameter(weight.detach()))
            setattr(rnn, name, weight.clone())

    def forward(self, *args):
        for name in self.names:
            weight = getattr(self, name + self.suffix)
            setattr(self.inner, name, F.dropout(weight, 0.1, self.training))
        return self.inner(*args)


def drop_inside(rnn: nn.Module, names=("weight_hh_l0",), suffix: str = "_raw") -> nn.Module:
    """The same without a wrapper: until the first forward pass the tensor is not there at all."""
    for name in names:
        weight = getattr(rnn, name)
        del rnn._parameters[name]
        rnn.register_parameter(name + suffix, nn.Parameter(weight.detach()))
    plain_forward = rnn.forward

    def forward(*args):
        for name in names:
            setattr(rnn, name, F.dropout(getattr(rnn, name + suffix), 0.1, rnn.training))
        return plain_forward(*args)

    rnn.forward = forward
    return rnn


class LanguageModelEncoder(nn.Module):
    """AWD-LSTM's build: an embedding that is tied to its dropout, RNNs each in a wrapper."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.embedding_dropout = nn.ModuleDict({"embedding": self.embedding})
        self.rnns = nn.ModuleList(
            DropConnect(nn.LSTM(4, 4, batch_first=True)) for _ in range(layers)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        found = self.embedding_dropout["embedding"](tokens)
        for rnn in self.rnns:
            found, _ = rnn(found)
        return found


class Classifier(nn.Module):
    """An encoder and a head."""

    def __init__(self, encoder: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, 2)

    def forward(self, *args) -> Tensor:
        return self.head(self.encoder(*args)[:, -1])


class StackOfCells(nn.Module):
    """Steps of nn.LSTMCell, one cell above the other."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.cells = nn.ModuleList(nn.LSTMCell(4, 4) for _ in range(layers))

    def forward(self, tokens: Tensor) -> Tensor:
        rows = self.embedding(tokens)
        for cell in self.cells:
            state, outputs = None, []
            for row in rows.unbind(1):
                state = cell(row, state)
                outputs.append(state[0])
            rows = torch.stack(outputs, 1)
        return rows


class HighwayCell(nn.Module):
    """A recurrent layer of one's own, of which nothing is torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.from_input = nn.Linear(4, 8)
        self.from_state = nn.Linear(4, 8)

    def forward(self, row: Tensor, state: Tensor) -> Tensor:
        gate, new = (self.from_input(row) + self.from_state(state)).chunk(2, -1)
        return gate.sigmoid() * new.tanh() + (1 - gate.sigmoid()) * state


class BiLSTMCell(nn.Module):
    """One layer of two directions, each a cell."""

    def __init__(self, named: bool = True) -> None:
        super().__init__()
        if named:
            self.fwd, self.bwd = nn.LSTMCell(4, 2), nn.LSTMCell(4, 2)
        else:
            self.cells = nn.ModuleList(nn.LSTMCell(4, 2) for _ in range(2))


class AlternatingEncoder(nn.Module):
    """AllenNLP's build: both directions of all layers as children of one module."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        for layer in range(layers):
            self.add_module(f"forward_layer_{layer}", HighwayCell())
            self.add_module(f"backward_layer_{layer}", HighwayCell())


class DualPathBlock(nn.Module):
    """One block of a dual-path separator: along the chunk, then across chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.intra_rnn = nn.LSTM(4, 4, bidirectional=True)
        self.inter_rnn = nn.LSTM(4, 4, bidirectional=True)
        self.intra_linear, self.intra_norm = nn.Linear(8, 4), nn.LayerNorm(4)
        self.inter_linear, self.inter_norm = nn.Linear(8, 4), nn.LayerNorm(4)


class Separator(nn.Module):
    """A dual-path separator: filters, blocks, a mask."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.filters = nn.Conv1d(1, 4, 2)
        self.masker = nn.ModuleDict(
            {
                "bottleneck": nn.Conv1d(4, 4, 1),
                "net": nn.Sequential(*(DualPathBlock() for _ in range(blocks))),
                "mask": nn.Conv1d(4, 8, 1),
            }
        )
        self.decoder = nn.ConvTranspose1d(4, 1, 2)


class Policy(nn.Module):
    """A recurrent policy: its heads are registered before its LSTMs, a Parameter before all."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(2))
        self.features = nn.Linear(3, 4)
        self.action_net = nn.Linear(4, 2)
        self.value_net = nn.Linear(4, 1)
        self.lstm_actor = nn.LSTM(4, 4)
        self.lstm_critic = nn.LSTM(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        actor, critic = self.lstm_actor(features)[0], self.lstm_critic(features)[0]
        return self.action_net(actor) * self.log_std.exp(), self.value_net(critic)


class Forecaster(nn.Module):
    """A forecasting transformer's build: LSTMs among many siblings."""

    def __init__(self) -> None:
        super().__init__()
        self.input_embeddings = nn.ModuleDict({"a": nn.Embedding(5, 4), "b": nn.Embedding(5, 4)})
        self.prescalers = nn.ModuleDict({"x": nn.Linear(1, 4)})
        self.static_selection = nn.Linear(4, 4)
        self.encoder_selection = nn.Linear(4, 4)
        self.decoder_selection = nn.Linear(4, 4)
        self.initial_hidden = nn.Linear(4, 4)
        self.initial_cell = nn.Linear(4, 4)
        self.lstm_encoder = nn.LSTM(4, 4)
        self.lstm_decoder = nn.LSTM(4, 4)
        self.gate_encoder = nn.Linear(4, 4)
        self.attention = nn.Linear(4, 4)
        self.gate_norm = nn.LayerNorm(4)
        self.output_layer = nn.Linear(4, 3)


class Factor(nn.Module):
    """An adapter's layer: the weight in `base_layer`, two factors beside it."""

    def __init__(self, base: nn.Module, parameter: str | None = None) -> None:
        super().__init__()
        self.base_layer = base
        if parameter is not None:
            self.parameter_name = parameter
        shape = getattr(base, parameter or "weight").shape
        self.lora_A = nn.ModuleDict({"default": nn.Linear(shape[1], 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, shape[0], bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


class Adapter(nn.Module):
    """An adapter package's two shells around a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def forward(self, *args):
        return self.base_model.model(*args)


class PackedLSTM(nn.LSTM):
    """nn.LSTM that packs what it is given."""

    def forward(self, x: Tensor, lengths=None):
        if lengths is None:
            return super().forward(x)
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=self.batch_first, enforce_sorted=False
        )
        output, state = super().forward(packed)
        padded, _ = nn.utils.rnn.pad_packed_sequence(output, batch_first=self.batch_first)
        return padded, state
