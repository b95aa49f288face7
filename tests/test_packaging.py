"""The wheel a user installs: what it holds, and that it works away from the repository."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

SMOKE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
# An editable install's finder would fill in what the wheel lacks.
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]

import torch
import lstm_freeze
import lstm_freeze.callbacks

installed = Path(sys.argv[1])
assert Path(lstm_freeze.__file__).is_relative_to(installed), lstm_freeze.__file__
assert Path(lstm_freeze.callbacks.__file__).is_relative_to(installed)
assert len(lstm_freeze.callbacks.__all__) == 7
lstm = lstm_freeze.BiLSTM(4, 8, num_layers=2)
lstm_freeze.freeze(lstm, layers=[0])
lstm(torch.randn(3, 2, 4))[0].sum().backward()
assert lstm.weight_hh_l0.grad is None and lstm.weight_hh_l1.grad is not None
"""


WITHOUT_LIGHTNING = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "torchmetrics"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Refuse())
"""

CONSUMER = """
from pathlib import Path

import torch
from torch import nn
from lstm_freeze import BiLSTM, Freeze, FreezeSchedule, FrozenGuard, Phase, PrefixCache, Selection
from lstm_freeze import freeze, param_groups, replace_lstm, select, slanted_triangular, status
from lstm_freeze.callbacks import FreezeScheduler, FrozenWeightsCheck, GradualUnfreezing, Plateau

lstm: BiLSTM = BiLSTM(4, 8, num_layers=2)
lstm.prefix_cache = PrefixCache(2**20)
model = nn.ModuleDict({"encoder": lstm, "head": nn.Linear(16, 2)})
optimizer = torch.optim.AdamW(param_groups(model, 0.1, layer_decay=0.5))
paths: tuple[str, ...] = replace_lstm(model)
chosen: Selection = select(model, "encoder[0]", kinds=["bias", "weight_hh"], directions="reverse")
counts: dict[str, int] = {name: p.numel() for name, p in chosen.items()}
handle: Freeze = freeze(model, layers=[0], exclude="head", optimizer=optimizer, dropout="off")
with freeze(model, layers=slice(0, 2)) as inner, FrozenGuard(model).attach(optimizer) as guard:
    names: tuple[str, ...] = inner.changed
    guard.check()
schedule = FreezeSchedule([Phase(0, "head", lr={"head": 0.1}), Phase(3, ["*"], warmup=5)])
schedule.apply(model, 0, optimizer).undo()
schedule.to_yaml(Path("schedule.yaml"))
total: int = status(model, optimizer).total
rates: torch.optim.lr_scheduler.LRScheduler = slanted_triangular(optimizer, 10)
callbacks = [
    FreezeScheduler({0: ["head"], 1: "*"}, advance=Plateau(patience=1)),
    FreezeScheduler(lambda module: FreezeSchedule.chain_thaw(module)),
    GradualUnfreezing(every_n_epochs=2),
    FrozenWeightsCheck(mode="fingerprint"),
]
output, (h_n, c_n) = lstm(torch.zeros(3, 1, 4))
"""


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def is_extension(name):
    return name.endswith((".so", ".pyd"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # A copy: an sdist is put together in the source folder, where another process may do the same.
    # (xdist_group keeps these tests in one process; pytest-xdist 3.8 with pytest 9.2 ignores it.)
    source, folder = tmp_path_factory.mktemp("copy") / "source", tmp_path_factory.mktemp("dist")
    leave = shutil.ignore_patterns(
        ".*", "*.egg-info", "__pycache__", "*.so", "build", "out", "venv"
    )
    shutil.copytree(ROOT, source, ignore=leave)
    # From the sdist, as a release is made: a file the sdist forgets is missing from the wheel too.
    run(sys.executable, "-m", "build", "--outdir", str(folder), str(source), cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_wheel_holds_both_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("__init__.py", "py.typed", "callbacks/__init__.py", "callbacks/py.typed"):
        assert f"lstm_freeze/{name}" in names
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lstm_freeze"}


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_wheel_holds_every_file_of_the_folders(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    packed = {name for name in names if ".dist-info/" not in name and not is_extension(name)}
    folders = {"lstm_freeze": "lstm_freeze", "callbacks": "lstm_freeze/callbacks"}
    expected = {
        f"{target}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, target in folders.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".pyc", ".so", ".pyd"}
    }
    assert packed == expected


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_installed_wheel_works_away_from_the_repository(wheel, tmp_path):
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target))
    run(*pip, str(wheel), cwd=tmp_path)
    run(sys.executable, "-c", SMOKE, str(target), cwd=tmp_path)
    alone = SMOKE.replace("import lstm_freeze.callbacks\n", "")
    alone = "".join(line for line in alone.splitlines(True) if "callbacks." not in line)
    run(sys.executable, "-c", WITHOUT_LIGHTNING + alone, str(target), cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_a_typed_project_passes_mypy_strict_against_the_installed_wheel(wheel, tmp_path):
    place = tmp_path / "venv"
    venv.create(place, symlinks=True)
    python = (
        next(place.glob("bin/python")) if (place / "bin").exists() else place / "Scripts/python"
    )
    (site,) = [path for path in place.rglob("site-packages") if path.is_dir()]
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site))
    run(*pip, str(wheel), cwd=tmp_path)
    # Torch and Lightning come from here; an editable install's own .pth is not followed from there.
    (site / "outer.pth").write_text(sysconfig.get_path("purelib"))
    mypy = (sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python))
    (tmp_path / "consumer.py").write_text(CONSUMER)
    assert "Success" in run(*mypy, "consumer.py", cwd=tmp_path)
    (tmp_path / "wrong.py").write_text(CONSUMER + "lstm.groups[0].layer + guard\n")
    with pytest.raises(AssertionError, match="Unsupported operand types"):
        run(*mypy, "wrong.py", cwd=tmp_path)


def test_versions_agree():
    written = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version("lstm-freeze") == written[1]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    # Before the first release there is no other heading; after it the newest is the version.
    assert headings[1:2] in ([], [written[1]])


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_wheel_holds_the_extensions_where_they_can_be_compiled(wheel):
    compiler = (sysconfig.get_config_var("CC") or "cl").split()[0]
    headers = Path(sysconfig.get_path("include"), "Python.h")
    extensions = [name for name in zipfile.ZipFile(wheel).namelist() if is_extension(name)]
    if shutil.which(compiler) and headers.exists():
        assert sorted(name.split(".")[0] for name in extensions) == [
            "lstm_freeze/_hashing/_words",
            "lstm_freeze/_recurrence/native/_timeloop",
        ]
    else:
        assert not extensions


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
def test_without_a_compiler_the_package_installs_and_works(wheel, tmp_path, monkeypatch):
    (sdist,) = wheel.parent.glob("*.tar.gz")
    monkeypatch.setenv("CC", "no-such-compiler")
    target = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(target))
    run(*pip, str(sdist), cwd=tmp_path)
    assert not list((target / "lstm_freeze").rglob("*.so"))
    report = "import lstm_freeze; print(lstm_freeze.show_config())"
    answer = run(sys.executable, "-c", SMOKE + report, str(target), cwd=tmp_path)
    assert "torch (the extension lstm_freeze._recurrence.native._timeloop is not built)\n" in answer
    assert "fingerprints on the CPU: torch (the extension is not built" in answer


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="python -P is new in 3.11")
def test_the_cure_for_a_folder_of_the_same_name(tmp_path):
    """As docs/pitfalls.md says it: a clone called lstm_freeze hides an editable install."""
    (tmp_path / "lstm_freeze").mkdir()

    def start(*options):
        command = [sys.executable, *options, "-c", "from lstm_freeze import freeze"]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    cured = start("-P")
    assert cured.returncode == 0, cured.stderr
    if (hidden := start()).returncode:  # a regular install is found before such a folder
        assert "cannot import name 'freeze' from 'lstm_freeze' (unknown location)" in hidden.stderr
