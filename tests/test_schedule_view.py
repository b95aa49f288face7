"""preview and plot: who trains when, with rates and trainable-parameter counts."""

import itertools
import subprocess
import sys

import pytest
from torch import nn

from lstm_freeze import FreezeSchedule, Phase

plt = pytest.importorskip("matplotlib.pyplot")


def model(layers=1):
    lstm = nn.LSTM(4, 3, layers, bidirectional=layers > 1)
    encoder = nn.ModuleDict({"embedding": nn.Embedding(9, 4), "lstm": lstm})
    return nn.ModuleDict({"encoder": encoder, "head": nn.Linear(3, 2)})


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


SCHEDULE = FreezeSchedule(
    [
        Phase(0, "head", lr=1e-3),
        Phase(2, ["head", "encoder.lstm"], lr={"head": 1e-4, "*": 1e-5}, warmup=100),
        Phase(5, "*bias*"),
        Phase(6, "*"),
    ]
)

PREVIEW = """\
part                     0           trains in epochs
-----------------------------------------------------
encoder.embedding        ......####  from 6
encoder.lstm[0].forward  ..###+####  2-4 (lr 1e-05), 5, from 6
head                     #####+####  0-1 (lr 0.001), 2-4 (lr 0.0001), 5, from 6"""


def test_preview():
    m = model()
    before = [p.requires_grad for p in m.parameters()]
    found = SCHEDULE.preview(m, 10)
    sizes = [8, 116, 26, 152]
    assert "# trains   + trains in part   . frozen" in found
    for size, row in zip(sizes, found.splitlines()[-4:], strict=True):
        assert f" {size} " in row
        assert f" {100 * size / 152:.1f} " in row
    assert [row.split("%")[0] for row in found.splitlines()[:5]] == PREVIEW.splitlines()
    assert [p.requires_grad for p in m.parameters()] == before


def test_preview_shows_only_what_was_asked_for():
    found = SCHEDULE.preview(model(), 2)
    assert "encoder.embedding        ..  never" in found
    assert found.splitlines()[-1].split() == ["0", "from", "0", "8", "5.3", "head"]


def test_preview_of_many_epochs_and_groups_fits():
    m = model(layers=20)
    found = FreezeSchedule.gradual_unfreezing(m).preview(m, 100)
    rows = found.splitlines()
    assert "2 epochs a column" in rows[0]
    assert len([r for r in rows if r.startswith("encoder.lstm[")]) == 40
    assert max(map(len, rows[:44])) < 120
    marks = [r.split()[1] for r in rows[2:44]]
    assert {len(m) for m in marks} == {50}
    ends = [m.rindex(".") if "." in m else -1 for m in marks]
    assert ends == sorted(ends, reverse=True)


def test_preview_shows_the_scope_only():
    m = model()
    found = FreezeSchedule({0: "*"}, scope="encoder", exclude="encoder.embedding").preview(m, 3)
    table, beside = found.split("also trains, outside the schedule: ")
    assert "head" not in table
    assert "embedding" not in table
    assert "encoder.embedding, head" in beside
    assert 'rest="freeze" freezes it but for what is in exclude=' in beside


def test_progressive_freezing_shows_how_the_rates_go():
    m = model()
    found = FreezeSchedule.progressive_freezing(m, 10, t0=0.5, how="linear").preview(m, 10)
    assert "0-4 (lr x2 to 0)" in found
    assert "from 0 (lr x1 to 0)" in found


@pytest.mark.parametrize(
    ("epochs", "error", "message"),
    [(0, ValueError, "`epochs` must be at least 1, got 0"), ("3", TypeError, "`epochs` must be")],
)
def test_epochs_is_checked(epochs, error, message):
    for show in (SCHEDULE.preview, SCHEDULE.plot):
        with pytest.raises(error, match=message):
            show(model(), epochs)


def test_a_wrong_target_is_refused():
    with pytest.raises(ValueError, match='"haed": no such module'):
        FreezeSchedule({0: "haed"}).preview(model(), 3)


def spans(ax):
    """Row -> what is drawn there, as (start, end, hatch)."""
    found = {}
    for bars in ax.collections:
        (box,) = [path.get_extents() for path in bars.get_paths()]
        row = round((box.y0 + box.y1) / 2)
        found.setdefault(row, []).append((box.x0, box.x1, bars.get_hatch()))
    return found


def test_plot_draws_each_part():
    ax = SCHEDULE.plot(model(), 10)
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert labels == ["encoder.embedding", "encoder.lstm[0].forward", "head"]
    assert spans(ax) == {
        0: [(0, 6, None), (6, 10, None)],
        1: [(0, 2, None), (2, 5, None), (5, 6, "////"), (6, 10, None)],
        2: [(0, 2, None), (2, 5, None), (5, 6, "////"), (6, 10, None)],
    }
    assert [t.get_text() for t in ax.texts] == ["lr 1e-05", "lr 0.001", "lr 0.0001"]
    assert ax.get_xlim() == (0, 10)


def test_plot_can_be_read_without_colour():
    ax = SCHEDULE.plot(model(), 10)

    def luminance(colour):
        return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]

    frozen, trains = (bars.get_facecolor()[0] for bars in ax.collections[:2])
    assert luminance(frozen) - luminance(trains) > 0.5
    words = [t.get_text() for t in ax.get_legend().get_texts()]
    assert words == ["trains", "trains in part", "frozen"]


def test_plot_writes_trainable_counts_above():
    ax = SCHEDULE.plot(model(), 10)
    (top,) = ax.child_axes
    assert [t.get_text() for t in top.get_xticklabels()] == ["8", "116", "26", "152"]
    assert "of 152" in top.get_xlabel()


def test_plot_of_many_groups_does_not_overlap():
    m = model(layers=20)
    ax = FreezeSchedule.gradual_unfreezing(m, lr=1e-3).plot(m, 30)
    figure = ax.figure
    figure.canvas.draw()
    for axis in (ax.yaxis, ax.child_axes[0].xaxis):
        boxes = [t.get_window_extent() for t in axis.get_ticklabels() if t.get_text()]
        for a, b in itertools.pairwise(boxes):
            assert a.x1 <= b.x0 or a.y1 <= b.y0 or b.y1 <= a.y0, (a, b)
    width = figure.bbox.width
    assert all(0 <= t.get_window_extent().x0 < width for t in ax.get_yticklabels())


def test_plot_into_given_axes():
    _, ax = plt.subplots()
    assert SCHEDULE.plot(model(), 10, ax=ax) is ax


def test_without_matplotlib_the_error_names_the_extra():
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "sys.modules['matplotlib.pyplot'] = None\n"
        "from torch import nn\nfrom lstm_freeze import FreezeSchedule\n"
        "try: FreezeSchedule({0: '*'}).plot(nn.Linear(2, 2), 3)\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "lstm-freeze[plot]"' in out.stdout
