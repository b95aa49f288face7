"""status: what it counts, what it notes, and how it prints."""

import html.parser
import re

import pytest
import torch
from torch import nn

from lstm_freeze import BiLSTM, PrefixCache, Status, freeze, param_groups, status


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.lstm = BiLSTM(4, 3, num_layers=2)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.head = nn.Linear(6, 10)


def row_of(table, name):
    (row,) = (row for row in table.rows if row.name == name)
    return row


def lines_of(table):
    return str(table).splitlines()


# Rows and counts


def test_the_table_a_newcomer_sees_first():
    lstm = BiLSTM(4, 8, num_layers=2)
    expected = """\
[layer].direction  state      trainable/all params
--------------------------------------------------
[0].forward        frozen                  0 / 448
[0].reverse        frozen                  0 / 448
[1].forward        trainable             832 / 832
[1].reverse        trainable             832 / 832
trainable params: 1,664 || all params: 2,560 || trainable%: 65.0000"""
    handle = freeze(lstm, layers=[0])
    assert str(handle) == expected
    assert repr(status(lstm)) == str(status(lstm)) == expected


def test_rows_by_layer_and_by_parameter():
    model = Model()
    freeze(model, "encoder.lstm[1].forward", "head.bias")
    by_layer, by_parameter = status(model), status(model, by="parameter")
    assert isinstance(by_layer, Status)
    assert [(row.name, row.state) for row in by_layer.rows] == [
        ("encoder.embedding", "trainable"),
        ("encoder.lstm[0].forward", "trainable"),
        ("encoder.lstm[0].reverse", "trainable"),
        ("encoder.lstm[1].forward", "frozen"),
        ("encoder.lstm[1].reverse", "trainable"),
        ("head", "mixed"),
    ]
    assert (row_of(by_layer, "head").trainable, row_of(by_layer, "head").total) == (60, 70)
    assert [row.name for row in by_parameter.rows] == [n for n, _ in model.named_parameters()]
    for row, parameter in zip(by_parameter.rows, model.parameters(), strict=True):
        assert row.state == ("trainable" if parameter.requires_grad else "frozen")
        assert row.total == parameter.numel()
    for table in (by_layer, by_parameter):
        assert table.total == sum(p.numel() for p in model.parameters())
        assert table.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_the_state_is_live():
    model = Model()
    before = status(model)
    model.head.requires_grad_(False)
    assert row_of(before, "head").state == "trainable"
    assert row_of(status(model), "head").state == "frozen"


def test_the_summary_has_pefts_form():
    model = nn.Linear(1000, 1000)
    model.bias.requires_grad_(False)
    assert lines_of(status(model))[-1] == (
        "trainable params: 1,000,000 || all params: 1,001,000 || trainable%: 99.9001"
    )


def test_a_mixed_row_of_an_rnn_names_the_frozen_kinds():
    model = Model()
    freeze(model, "encoder.lstm[0].reverse.bias", "encoder.lstm[0].reverse.weight_hh")
    row = row_of(status(model), "encoder.lstm[0].reverse")
    assert row.state == "mixed"
    assert row.notes == ("frozen here: weight_hh, bias_ih, bias_hh",)
    assert "  ! frozen here: weight_hh, bias_ih, bias_hh" in lines_of(status(model))
    nn.utils.parametrizations.weight_norm(model.encoder.lstm, "weight_hh_l1")
    freeze(model, "encoder.lstm[1].forward.weight_hh")
    assert row_of(status(model), "encoder.lstm[1].forward").notes == ("frozen here: weight_hh",)


def test_a_mixed_row_of_another_part_names_the_frozen_parameters():
    model = nn.ModuleDict({"lstm": nn.LSTM(2, 2), "head": nn.Sequential(nn.Linear(2, 2))})
    freeze(model, "head.0.bias")
    assert row_of(status(model), "head").notes == ("frozen here: 0.bias",)


def test_tied_parameters_are_counted_once_and_listed():
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    table = status(model)
    assert table.total == 9 + 3 + 3
    assert row_of(table, "a").ties == ("b.weight",)
    assert row_of(table, "b").ties == ()
    assert "  ! tied: also b.weight" in lines_of(table)
    assert row_of(status(model, by="parameter"), "a.weight").ties == ("b.weight",)


def test_integer_parameters_do_not_make_a_part_mixed():
    model = nn.Linear(2, 2)
    model.table = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)
    assert [(r.state, r.trainable, r.total) for r in status(model).rows] == [("trainable", 6, 9)]
    freeze(model)
    assert [(r.state, r.trainable, r.total) for r in status(model).rows] == [("frozen", 0, 9)]
    only = nn.ParameterList([nn.Parameter(torch.zeros(3).int(), requires_grad=False)])
    assert [(r.state, r.trainable, r.total) for r in status(only).rows] == [("frozen", 0, 3)]


def test_lazy_parameters_count_as_nothing_yet():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
    table = status(model)
    assert (row_of(table, "0").state, row_of(table, "0").total, table.total) == ("trainable", 0, 5)
    assert "  ! not initialised yet (lazy), counted as 0" in lines_of(table)


def test_a_module_without_parameters():
    table = status(nn.ReLU())
    assert (table.rows, table.trainable, table.total) == ((), 0, 0)
    assert lines_of(table)[-2:] == [
        "note: this module has no parameters",
        "trainable params: 0 || all params: 0 || trainable%: 0.0000",
    ]


def test_wrappers_are_not_named():
    model = Model()
    assert str(status(nn.DataParallel(model))) == str(status(model))


# Gradients and optimizers


def test_a_stale_gradient_is_shown_until_it_is_cleared():
    model = Model()
    model.head(torch.ones(1, 6)).sum().backward()
    model.head.bias.requires_grad = False
    table = status(model)
    assert row_of(table, "head").stale == ("head.bias",)
    assert "  ! frozen with a stale gradient: bias" in lines_of(table)
    assert "note: a stale gradient moves a frozen weight at the next optimizer step;" in str(table)
    model.head.weight.requires_grad = False
    assert "  ! frozen with a stale gradient" in lines_of(status(model))
    freeze(model, "head")
    assert "stale" not in str(status(model))


def test_groups_and_rates_of_an_optimizer():
    model = Model()
    optimizer = torch.optim.AdamW(param_groups(model, 0.01, layer_decay=0.5, weight_decay=0.1))
    table = status(model, optimizer)
    row = row_of(table, "encoder.lstm[1].forward")
    assert row.groups == ("5 encoder.lstm[1].forward", "6 encoder.lstm[1].forward (no decay)")
    assert row.lrs == (0.005,)
    line = next(line for line in lines_of(table) if line.startswith(row.name))
    assert re.fullmatch(r"encoder.lstm\[1\].forward +trainable +132 / 132 +5, 6 +0\.005", line)
    assert lines_of(table)[0].split()[-2:] == ["group", "lr"]
    assert "group" not in str(status(model))


def test_several_rates_and_several_optimizers():
    model = Model()
    head = torch.optim.SGD(
        [
            {"params": [model.head.weight], "lr": 0.1, "name": "heads"},
            {"params": [model.head.bias], "lr": torch.tensor(0.25)},
        ]
    )
    rest = torch.optim.SGD(model.encoder.parameters(), lr=1e-5)
    table = status(model, [rest, head])
    assert row_of(table, "head").groups == ("1:0 heads", "1:1")
    assert row_of(table, "head").lrs == (0.1, 0.25)
    lines = lines_of(status(nn.ModuleDict({"head": model.head}), [rest, head]))
    assert re.search(r"1:0 heads, 1:1  0\.1, 0\.25$", lines[2])
    assert row_of(table, "encoder.embedding").groups == ("0:0",)


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_an_optimizer_in_a_wrapper_is_looked_through():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert str(status(model, Wrapper(optimizer))) == str(status(model, optimizer))


def test_what_is_trainable_but_in_no_optimizer_is_shown():
    model = Model()
    freeze(model, "encoder.embedding")
    held = [p for p in model.parameters() if p.requires_grad and p is not model.head.bias]
    optimizer = torch.optim.SGD(held, lr=0.1)
    freeze(model, "encoder.lstm[0]")
    table = status(model, optimizer)
    assert row_of(table, "head").notes == ("trainable but in no optimizer: bias",)
    assert row_of(table, "encoder.embedding").notes == ()
    assert row_of(table, "encoder.embedding").lrs == ()
    assert "note: what is in no optimizer never trains;" in str(table)
    assert "does not have" not in str(table)
    model.encoder.embedding.requires_grad_(True)
    table = status(model, optimizer)
    assert row_of(table, "encoder.embedding").notes == ("trainable but in no optimizer",)


def test_a_parameter_replaced_after_the_optimizer_was_built_is_shown():
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model.encoder.lstm.weight_hh_l0 = nn.Parameter(torch.zeros(12, 3))
    table = status(model, optimizer)
    assert row_of(table, "encoder.lstm[0].forward").notes == (
        "trainable but in no optimizer: weight_hh",
    )
    text = " ".join(str(table).split())
    assert "It holds 1 that this module does not have: was a Parameter replaced after" in text


def test_an_optimizer_over_frozen_parameters_only_is_noted():
    model = Model()
    optimizer = torch.optim.SGD(model.encoder.parameters(), lr=0.1)
    freeze(model, "encoder")
    assert (
        "note: optimizer 0 holds only frozen parameters; a GradScaler's step of it raises"
        in str(status(model, optimizer))
    )


# Hazards that can be seen in the state


def notes_of(model):
    return "\n".join(status(model).notes)


def test_nothing_trainable_is_noted():
    model = Model()
    assert notes_of(model) == ""
    freeze(model)
    assert notes_of(model) == "nothing here is trainable"


@pytest.mark.parametrize(
    ("mistake", "note"),
    [
        (
            lambda m: setattr(m.encoder, "requires_grad", False),
            "encoder.requires_grad = False freezes nothing; call freeze(...)",
        ),
        (
            lambda m: setattr(m, "require_grad", False),
            "Model.require_grad = False freezes nothing; call freeze(...)",
        ),
        (
            lambda m: setattr(m.head.bias, "require_grad", False),
            "head.bias.require_grad means nothing to torch; the attribute is requires_grad",
        ),
    ],
)
def test_misspelled_freezing_is_noted(mistake, note):
    model = Model()
    mistake(model)
    assert notes_of(model) == note


def test_a_normalisation_layer_frozen_by_hand_is_noted():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[1].requires_grad_(False)
    assert "1 is frozen, but its statistics move in train(); freeze(...) holds them" in notes_of(
        model
    )
    model.eval()
    assert notes_of(model) == ""
    model.train()
    freeze(model, "1")
    assert notes_of(model) == ""


def test_a_frozen_embedding_with_max_norm_is_noted():
    model = nn.Sequential(nn.Embedding(3, 2, max_norm=1.0), nn.Linear(2, 2))
    assert notes_of(model) == ""
    freeze(model, "0")
    assert notes_of(model) == "0 is frozen, but max_norm rewrites its rows in the forward pass"


@pytest.mark.parametrize("make", [nn.LSTM, BiLSTM])
def test_dropout_between_frozen_layers_is_noted(make):
    model = nn.Sequential(make(2, 2, num_layers=3, dropout=0.5), nn.Linear(2, 2))
    note = "0: dropout between frozen layers is random in train(); freeze(..., dropout="
    freeze(model, "0[0]", "0[2]")
    assert notes_of(model) == ""
    freeze(model, "0[0:2]")
    assert notes_of(model).startswith(note)
    model.eval()
    assert notes_of(model) == ""
    model.train()
    freeze(model, "0", dropout="off")
    assert notes_of(model) == ""


class Cache(PrefixCache):
    def stats(self):
        return {"hits": 12345, "misses": 3, "bytes": 4096, "evictions": 0}


def test_a_prefix_cache_tells_its_numbers():
    model = Model()
    model.encoder.lstm.prefix_cache = None
    assert "cache" not in str(status(model))
    model.encoder.lstm.prefix_cache = Cache()
    assert notes_of(model) == (
        "prefix cache of encoder.lstm: hits 12,345, misses 3, bytes 4,096, evictions 0"
    )
    assert "note: prefix cache of encoder.lstm: hits 12,345," in str(status(model))


# Printing


class Deep(nn.Module):
    """A usual encoder with long names, and everything that makes rows wide."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(40_000, 300)
        self.encoder = nn.ModuleDict({"lstm": nn.LSTM(300, 512, 3, bidirectional=True)})
        self.classifier = nn.Linear(1024, 40_000)


@pytest.mark.parametrize("by", ["layer", "parameter"])
def test_usual_models_fit_into_80_columns(by):
    model = Deep()
    model.classifier.weight.requires_grad_(False)
    model.classifier.weight.grad = torch.zeros(40_000, 1024)
    model.embedding.require_grad = False
    optimizer = torch.optim.SGD(param_groups(model, 1.23456e-5, layer_decay=0.5), lr=0.1)
    model.extra = nn.Linear(2, 2)
    assert max(map(len, lines_of(status(model, by=by)))) <= 80
    wide = lines_of(status(model, optimizer, by=by))
    assert max(map(len, wide)) <= 80
    assert all(line == line.rstrip() for line in wide)


def test_by_parameter_the_state_says_what_counts():
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    assert (
        str(status(model, by="parameter"))
        == """\
parameter  state      params
----------------------------
weight     trainable       4
bias       frozen          2
trainable params: 4 || all params: 6 || trainable%: 66.6667"""
    )


def test_columns_are_aligned():
    lines = [line for line in lines_of(status(Deep())) if " / " in line]
    assert len({line.index(" / ") for line in lines}) == 1
    assert len({re.search("trainable", line).start() for line in lines}) == 1


def test_200_modules_stay_readable():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(200)))
    freeze(model, [str(i) for i in range(150)])
    optimizer = torch.optim.SGD(param_groups(model, 0.1, layer_decay=0.99))
    table = status(model, optimizer)
    assert len(table.rows) == 200
    lines = lines_of(table)
    assert len(lines) == 5
    assert re.fullmatch(
        r"0 \.\.\. 149 \(150 rows\) +frozen +0 / 900 +0, \.\.\., 149 +0\.01353, 0\.06050*\d?",
        lines[2],
    )
    assert re.fullmatch(r"150 \.\.\. 199 \(50 rows\) +trainable +300 / 300 .*", lines[3])
    model[60].weight.grad = torch.ones(2, 2)
    text = str(status(model))
    assert "0 ... 59 (60 rows)" in text
    assert "61 ... 149 (89 rows)" in text
    assert "! frozen with a stale gradient: weight" in text


def test_rows_of_a_short_table_are_not_joined():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(40)))
    assert len(lines_of(status(model))) == 43


class Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.rows, self.text = [], 0, ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.rows += tag == "tr"
        assert "color" not in str(attrs)
        assert "background" not in str(attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_is_well_formed_has_no_colours_and_says_the_same():
    model = Model()
    model.add_module("<b>", nn.Linear(1, 1))
    model.head(torch.ones(1, 6)).sum().backward()
    model.head.bias.requires_grad = False
    table = status(model, torch.optim.SGD(model.head.parameters(), lr=0.1))
    reader = Reader()
    reader.feed(table._repr_html_())
    assert reader.open == []
    assert reader.rows == 1 + len(table.rows) + sum(len(row.notes) for row in table.rows)
    for row in table.rows:
        assert row.name in reader.text
        assert all(note in reader.text for note in row.notes)
    assert all(note in reader.text for note in table.notes)
    assert lines_of(table)[-1] in reader.text
    assert freeze(model, "head")._repr_html_() == status(model)._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        (([],), TypeError, r"`module` must be a torch\.nn\.Module, got list"),
        (
            (nn.ReLU(), None, "kind"),
            ValueError,
            '`by` must be "layer" or "parameter", got \'kind\'',
        ),
        ((nn.ReLU(), 3), TypeError, r"`optimizer` must be a torch\.optim\.Optimizer"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        status(*arguments)
