"""Schedules in YAML files: round trips, and errors that say line and key."""

import re
import subprocess
import sys

import pytest
from torch import nn

from lstm_freeze import FreezeSchedule, Phase


def model():
    encoder = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "lstm": nn.LSTM(4, 3, 2)})
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(3, 2)})


SCHEDULES = {
    "mapping": lambda m: FreezeSchedule({0: "head", 3: ["*"], 5: ["head", "encoder.lstm[-1]"]}),
    "options": lambda m: FreezeSchedule({0: "*"}, unit="step", scope=["encoder"], exclude="x.*"),
    "phases": lambda m: FreezeSchedule(
        [Phase(0, "head", lr=1e-5, warmup=3), Phase(9, "*", lr={"head": 0.1, "*": 2e-7})]
    ),
    "gradual_unfreezing": lambda m: FreezeSchedule.gradual_unfreezing(m, every=2, lr=1e-3),
    "chain_thaw": lambda m: FreezeSchedule.chain_thaw(m, lr=1e-3),
    "linear_probing": lambda m: FreezeSchedule.linear_probing(m, lr={"head": 1.0}),
    "progressive_freezing": lambda m: FreezeSchedule.progressive_freezing(m, 7, t0=0.5),
    "recipe": lambda m: FreezeSchedule.recipe("chain_thaw", encoder="enc", lr=1e-3),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_round_trip(name, tmp_path):
    schedule = SCHEDULES[name](model())
    path = tmp_path / "schedule.yaml"
    schedule.to_yaml(path)
    again = FreezeSchedule.from_yaml(str(path))
    assert again == schedule
    assert again.describe() == schedule.describe()
    if name != "recipe":
        assert again.phases == schedule.phases
        assert (again.unit, again.scope, again.exclude) == (
            schedule.unit,
            schedule.scope,
            schedule.exclude,
        )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phases: {0: head, 2: '*'}", FreezeSchedule({0: "head", 2: "*"})),
        (
            "phases: {0: head}\nscope: head\nunit: step",
            FreezeSchedule({0: "head"}, scope="head", unit="step"),
        ),
        (
            "phases:\n- {start: 0, train: head, lr: 1e-3}\n- {start: 2, train: ['*'], warmup: 5}",
            FreezeSchedule([Phase(0, "head", lr=1e-3), Phase(2, "*", warmup=5)]),
        ),
        ("recipe: linear_probing\nevery: 3", FreezeSchedule.recipe("linear_probing", every=3)),
    ],
)
def test_reads(text, expected, tmp_path):
    (tmp_path / "s.yaml").write_text(text)
    assert FreezeSchedule.from_yaml(tmp_path / "s.yaml") == expected


def test_a_recipe_follows_the_model_it_is_applied_to(tmp_path):
    (tmp_path / "s.yaml").write_text("recipe: gradual_unfreezing\nencoder: encoder\nhead: head\n")
    m = model()
    FreezeSchedule.from_yaml(tmp_path / "s.yaml").apply(m, 1)
    assert {n for n, p in m.named_parameters() if not p.requires_grad} == {
        n for n, _ in m.named_parameters() if "l0" in n or "embedding" in n
    }


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["s.yaml: the file is empty; it needs the key phases, or recipe"]),
        ("- 3", ["line 1: must be a mapping (key: value)"]),
        ("a: [", ["line 1: not YAML: expected the node content"]),
        ("unit: epoch", ['line 1, key "phases": is missing; it maps starts to targets']),
        ("phases: 3", ['line 1, key "phases": must map starts to targets, or list start']),
        ("phases: {1: head}", ['line 1, key "phases": `phases` must have a phase that starts at']),
        ("phases: {0: 1}", ['line 1, key "phases.0": `train` must be strings']),
        ("phases:\n  0: head\n  x: head", ['line 3, key "phases.x": `start` must be an integer']),
        ("phases:\n  0: head\n  0: '*'", ['line 3, key "phases.0": stands twice']),
        (
            "phases: {0: head}\nscoep: head",
            ['line 2, key "scoep": is not known', 'did you mean "scope"?'],
        ),
        (
            "phases: {0: head}\nunit: epok",
            ['line 2, key "unit": must be "epoch" or "step", got \'epok\''],
        ),
        ("phases: {0: head}\nexclude: []", ['line 2, key "exclude": `exclude` got an empty list']),
        (
            "phases:\n- {start: 0, train: head}\n- {start: 0, train: x}",
            ['key "phases": `phases` has two phases that start at 0'],
        ),
        (
            "phases:\n- start: 0\n  trian: head",
            [
                'line 2, key "phases[0].train": is missing',
                'line 3, key "phases[0].trian": is not known; the keys here: start, train',
            ],
        ),
        (
            "phases:\n- start: 0\n  train: head\n  lr: fast\n  warmup: -2",
            [
                "line 4, key \"phases[0].lr\": `lr` must be a number, got 'fast'",
                'line 5, key "phases[0].warmup": `warmup` must not be negative, got -2',
            ],
        ),
        ("phases:\n- head", ['line 2, key "phases[0]": must be a mapping (key: value)']),
        ("recipe: chain_thw", ["line 1, key \"recipe\": no recipe 'chain_thw'", '"chain_thaw"?']),
        (
            "recipe: chain_thaw\nphases: {0: head}",
            ['line 2, key "phases": cannot stand beside recipe'],
        ),
        (
            "recipe: chain_thaw\nevry: 3\nevery: 0\nlr: x\nhead: [a]",
            [
                'line 2, key "evry": is not known; the keys here: encoder, head, every, lr',
                'line 3, key "every": `every` must be at least 1, got 0',
                "line 4, key \"lr\": `lr` must be a number, got 'x'",
                "line 5, key \"head\": `head` must be one target (a string), got ['a']",
            ],
        ),
        ("recipe: progressive_freezing", ['line 1, key "total": is missing; progressive_fr']),
        (
            "recipe: progressive_freezing\ntotal: 0\nt0: 4\nhow: round\nscaled: 2",
            [
                "`total` must be at least 1, got 0",
                'line 3, key "t0": `t0` must be above 0 and at most',
                'line 4, key "how": `how` must be "linear"',
                'line 5, key "scaled": `scaled` must be a b',
            ],
        ),
    ],
)
def test_errors_point_at_line_and_key(text, messages, tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"s\.yaml") as caught:
        FreezeSchedule.from_yaml(path)
    for message in messages:
        assert message in str(caught.value)
    lines = [int(n) for n in re.findall(r"s\.yaml, line (\d+)", str(caught.value))]
    assert lines == sorted(lines)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        FreezeSchedule.from_yaml(tmp_path / "none.yaml")


def test_without_pyyaml_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['yaml'] = None\n"
        "from lstm_freeze import FreezeSchedule\n"
        "try: FreezeSchedule({0: '*'}).to_yaml('x')\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "lstm-freeze[yaml]"' in out.stdout
