"""The benchmarks: their arithmetic, their scripts, and the README's tables made from them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import between
import cases
import false_alarms
import gemm_floor
import other_systems
import pytest
import readme_tables
import run_summary
import side_by_side
import speed
import summary
import torch
import tracing
import turns
from cases import CASES, FORMS, FORWARD, Shape
from console_tables import milliseconds
from gemm_floor import Gemm, Product, operations, products
from machine import machine
from peak_memory import SIDES, PeakMemory, peak_megabytes
from torch.nn.utils.rnn import PackedSequence

from lstm_freeze import BiLSTM, freeze

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
TINY = Shape(3, 5, 4, 5, 2)


def test_operations_of_one_layer_by_hand():
    lstm = BiLSTM(3, 2)
    # 2 + 1 rows. Per direction 3 x 3 x 8 products in the projection and 3 x 2 x 8 in the steps,
    # each an addition too: 144 + 96. Backward: dh and dW_hh 96 each, dW_ih 144.
    assert operations(products(lstm, [2, 1], training=False)) == 2 * (144 + 96)
    assert operations(products(lstm, [2, 1], training=True)) == 2 * (144 + 96 + 96 + 96 + 144)


def test_products_of_one_layer_by_hand():
    assert products(BiLSTM(3, 2), [2, 1], training=True) == {
        Product(1, 3, 3, 8): 2,  # the projection of 3 rows
        Product(2, 2, 2, 8): 1,  # the steps of 2 and 1 rows, both directions
        Product(2, 1, 2, 8): 1,
        Product(2, 2, 8, 2): 1,  # the same backward
        Product(2, 1, 8, 2): 1,
        Product(1, 8, 3, 2): 2,  # dW_hh
        Product(1, 8, 3, 3): 2,  # dW_ih
    }


@pytest.mark.parametrize(
    ("frozen", "units"),
    [
        ({}, 16),
        ({"layers": [0]}, 10),
        ({"layers": [1]}, 13),
        ({"kinds": "weight"}, 10),
        # Layer 1 leaves out dW_hh and dW_ih (3 units) of one direction, layer 0 all (4) of it.
        ({"directions": "reverse"}, 16 - (3 + 4) / 2),
        ({"layers": [1], "directions": "reverse"}, 16 - 3 / 2),
    ],
)
def test_operations_follow_what_is_trainable(frozen, units):
    """In units of 8 T B H H per direction, for two layers and I = 2H."""
    T, B, H = 5, 3, 4
    lstm = BiLSTM(2 * H, H, num_layers=2)
    if frozen:
        freeze(lstm, **frozen)
    assert operations(products(lstm, [B] * T, training=True)) == units * 8 * T * B * H * H * 2
    assert operations(products(lstm, [B] * T, training=False)) == 6 * 8 * T * B * H * H * 2


def test_the_floor_is_the_sum_of_measured_products(monkeypatch):
    measured = []

    def at_a_rate_of_1e9(product, device):
        measured.append(product)
        return product.operations / 1e9

    monkeypatch.setattr(gemm_floor, "_measured", at_a_rate_of_1e9)
    gemm, needed = Gemm(), products(BiLSTM(3, 2), [2, 2, 1], training=True)
    assert gemm.seconds(needed) == pytest.approx(operations(needed) / 1e9)
    assert gemm.seconds(needed) > 0
    assert gemm.peak == pytest.approx(1e9)
    assert len(measured) == len(set(measured))


def test_a_product_is_measured():
    gemm, needed = Gemm(), products(BiLSTM(3, 2), [2], training=True)
    assert 0 < gemm.seconds(needed) < 10
    assert gemm.peak > 0


@pytest.mark.parametrize("case", CASES)
def test_twins_are_equal_and_frozen_alike(case):
    lstm, bilstm = cases.twins(TINY, case)
    ours = dict(bilstm.named_parameters())
    for name, parameter in lstm.named_parameters():
        assert torch.equal(parameter, ours[name])
        assert parameter is not ours[name]
        assert parameter.requires_grad == ours[name].requires_grad
    flags = [parameter.requires_grad for parameter in ours.values()]
    assert all(flags) == (case in (FORWARD, "everything trainable"))
    assert any(flags)
    assert lstm.training is bilstm.training is (case != FORWARD)


def test_packed_input_has_the_lengths_said():
    shape = Shape(8, 20, 3, 4, 1)
    packed, sizes = cases.input_of(shape, "packed"), cases.batch_sizes_of(shape, "packed")
    assert packed.batch_sizes.tolist() == sizes
    assert len(sizes) == 20
    assert len(packed.data) == sum(sizes) < 8 * 20


def test_pairs_alternate_and_both_warm_up():
    calls = []

    class Fake:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, seconds

        def timed(self):
            calls.append(self.name)
            return self.seconds

    timing = side_by_side.time_pairs(Fake("a", 3.0), Fake("b", 1.5), seconds=1.0)
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # the first warms up; 3 of long pairs
    assert timing == (3.0, 1.5, 2.0, 2.0, 2.0, 3)
    assert side_by_side.time_pairs(Fake("a", 0.4), Fake("b", 0.4), seconds=1.0).pairs == 5
    assert side_by_side.time_pairs(Fake("a", 0.02), Fake("b", 0.03), seconds=0.5).pairs == 10


def test_summary_is_of_pairwise_ratios():
    timing = side_by_side.summary([(2.0, 1.0), (9.0, 3.0), (8.0, 2.0)])
    assert timing == (8.0, 2.0, 3.0, 2.5, 3.5, 3)


def spoil_output(bilstm):
    def hook(module, args, result):
        output, state = result
        if isinstance(output, PackedSequence):
            return output._replace(data=output.data + 1e-3), state
        return output + 1e-3, state

    bilstm.register_forward_hook(hook)


def spoil_state(bilstm):
    def hook(module, args, result):
        output, (h_n, c_n) = result
        return output, (h_n, c_n * 1.001)

    bilstm.register_forward_hook(hook)


def spoil_gradient(bilstm):
    bilstm.weight_hh_l0_reverse.register_hook(lambda grad: grad * 1.001)


def spoil_with_nan(bilstm):
    bilstm.bias_ih_l0.register_hook(lambda grad: grad * float("nan"))


def lose_gradient(bilstm):
    bilstm.weight_ih_l0.requires_grad_(False)


@pytest.fixture
def spoiled(monkeypatch):
    """Makes `speed` measure a BiLSTM that something was done to."""

    def spoil(how):
        def twins(*args):
            lstm, bilstm = cases.twins(*args)
            how(bilstm)
            return lstm, bilstm

        monkeypatch.setattr(speed, "twins", twins)

    return spoil


def run_speed(tmp_path, capsys, *options):
    shape = ",".join(map(str, TINY))
    command = ["--quick", "--parts", "times", "--shapes", shape, "--out", str(tmp_path), *options]
    status = speed.main(command)
    return status, json.loads((tmp_path / "speed.json").read_text()), capsys.readouterr().out


def test_speed_measures_every_case(tmp_path, capsys):
    status, results, printed = run_speed(tmp_path, capsys)
    assert status == 0
    assert [(row["form"], row["case"]) for row in results["rows"]] == [
        (form, case) for form in FORMS for case in CASES
    ]
    for row in results["rows"]:
        assert row["equal"]
        assert row["pairs"] >= 3
        assert row["ratio_lower"] <= row["ratio"] <= row["ratio_upper"]
        assert row["over_floor"] == pytest.approx(row["bilstm_ms"] / row["floor_ms"])
    assert {"torch", "threads", "cpu", "date", "loop"} <= results["machine"].keys()
    assert "Results equal in all 12 rows" in " ".join(printed.split())
    assert "RESULTS DIFFER" not in printed
    assert (tmp_path / "speed.png").stat().st_size > 1000
    written = readme_tables.speed_tables(results)
    for row in results["rows"]:
        assert f"**{row['ratio']:.2f}** ({milliseconds(row['nn_ms'])} / " in written


@pytest.mark.parametrize(
    ("how", "case"),
    [
        (spoil_output, FORWARD),
        (spoil_state, FORWARD),
        (spoil_gradient, "everything trainable"),
        (spoil_with_nan, "biases only"),
        (lose_gradient, "everything trainable"),
    ],
)
def test_different_results_fail(how, case, spoiled, tmp_path, capsys):
    spoiled(how)
    status, results, printed = run_speed(tmp_path, capsys, "--cases", case)
    assert status == 1
    assert [row["equal"] for row in results["rows"]] == [False, False]
    assert "RESULTS DIFFER in 2 of 2 rows" in " ".join(printed.split())
    assert "DIFFERS" in printed


def test_one_layer_has_no_lower_layers():
    assert not cases.applies("lower layers frozen", Shape(1, 1, 1, 1, 1))
    assert not cases.applies("upper layers frozen", Shape(1, 1, 1, 1, 1))
    assert all(cases.applies(case, Shape(1, 1, 1, 1, 2)) for case in CASES)
    assert cases.applies("biases only", Shape(1, 1, 1, 1, 1))


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        ([], speed.RESULTS),
        (["--quick"], speed.SCRATCH),
        (["--device", "cuda"], speed.RESULTS / "cuda"),
        (["--cases", FORWARD], speed.SCRATCH),
        (["--shapes", "1,2,3,4,5"], speed.SCRATCH),
    ],
)
def test_only_a_whole_run_replaces_the_saved_results(arguments, folder):
    assert speed.parse(arguments).out == folder


def test_a_wrong_shape_is_refused(capsys):
    with pytest.raises(SystemExit):
        speed.parse(["--shapes", "1,2,3"])
    assert "needs five whole numbers B,T,I,H,L, got '1,2,3'" in capsys.readouterr().err


def row_of(form, case, ratio, over_floor=1.0, hidden=256):
    shape = [1, 1, 1, hidden, 2]
    return {"form": form, "case": case, "ratio": ratio, "over_floor": over_floor, "shape": shape}


@pytest.mark.parametrize(
    ("form", "case", "ratios", "mean", "word"),
    [
        ("packed", "everything trainable", [2.25, 9.0], 4.5, "met"),
        ("packed", "everything trainable", [2.25, 8.9], 4.47, "not met"),
        ("dense", "everything trainable", [1.0, 2.0], 1.41, "met"),
        ("dense", "everything trainable", [0.99, 2.2], 1.48, "not met"),
        ("packed", "biases only", [0.5], 0.5, ""),
    ],
)
def test_verdicts(form, case, ratios, mean, word):
    verdict = summary.verdicts([row_of(form, case, ratio) for ratio in ratios])[0]
    assert verdict.case == f"{form}, {case}"
    assert verdict.value == pytest.approx(mean, abs=0.01)
    assert (verdict.least, verdict.most, verdict.word) == (min(ratios), max(ratios), word)


def test_the_floor_target_is_for_each_large_shape():
    over = [(1.2, 256), (1.3, 512), (1.4, 128), (9.0, 64)]
    rows = [row_of("dense", "everything trainable", 2.0, value, h) for value, h in over]
    *_, large, all_but_small = summary.verdicts(rows)
    assert "H >= 256: time / GEMM floor" in large.case
    assert (large.most, large.shapes, large.word) == (1.3, 2, "not met")
    assert (all_but_small.most, all_but_small.shapes, all_but_small.word) == (1.4, 3, "met")


def test_a_random_sample_is_the_seeds_and_has_targets_of_its_own():
    drawn = cases.sample_of_grid(20, 1)
    assert drawn == cases.sample_of_grid(20, 1) != cases.sample_of_grid(20, 2)
    assert len(set(drawn)) == 20
    assert all(size in cases.GRID[name] for s in drawn for name, size in s._asdict().items())
    rows = [row_of("packed", "everything trainable", ratio) for ratio in (1.9, 8.0)]
    assert next(v.word for v in summary.verdicts(rows, sampled=True)) == "met"
    assert next(v.word for v in summary.verdicts(rows)) == "not met"
    args = speed.parse(["--sample", "3", "--seed", "5"])
    assert args.shapes == cases.sample_of_grid(3, 5)
    assert args.out == speed.RESULTS / "sample"


def test_a_sample_needs_its_seed(capsys):
    with pytest.raises(SystemExit):
        speed.parse(["--sample", "3"])
    assert "--sample and --seed go together" in capsys.readouterr().err


def made_up_runs(cached=2.0, loss=0.5):
    runs = []
    for plan, starts, epochs in (("ULMFiT", [0, 1, 2, 3], 8), ("LP-FT", [0, 10], 12)):
        for arm, seconds in (("nn.LSTM + BaseFinetuning", 8.0), ("BiLSTM + FreezeScheduler", 2.0)):
            runs.append({"plan": plan, "arm": arm, "epoch_s": [seconds] * epochs})
        arm = "BiLSTM + FreezeScheduler + cache"
        runs.append({"plan": plan, "arm": arm, "epoch_s": [4.0] + [cached] * (epochs - 1)})
        for run in runs[-3:]:
            run.update(starts=starts, loss=0.5, accuracy=0.75, cache=None, repeats=3)
    runs[-1]["loss"] = loss
    return runs


def test_verdicts_of_whole_runs():
    found = {v.name: v for v in run_summary.run_verdicts(made_up_runs(cached=0.25))}
    assert found["ULMFiT"].ratio == pytest.approx(4.0)
    assert found["LP-FT"].ratio == pytest.approx(12 * 8 / (4 + 11 * 0.25))
    frozen = found["a probing epoch after the first"]
    assert (frozen.ratio, frozen.target, frozen.word) == (32.0, 40.0, "not met")
    slower = run_summary.run_verdicts(made_up_runs(cached=8.0))
    assert [v.word for v in slower] == ["met", "not met", "not met"]


@pytest.mark.parametrize(("loss", "count"), [(0.5, 0), (0.5013, 0), (0.5014, 1), (float("nan"), 1)])
def test_runs_that_end_differently_are_reported(loss, count):
    assert len(run_summary.different(made_up_runs(loss=loss))) == count


def test_arms_take_turns_an_epoch_each():
    sent, ended = [], []

    class Arm:
        def __init__(self, name, epochs):
            self.name, self.answers = name, [None] * epochs + [{"arm": name}]

        def send(self, message):
            sent.append((self.name, message))

        def recv(self):
            return self.answers.pop(0)

    arms = {"a": Arm("a", 2), "b": Arm("b", 3)}
    found = turns.take_turns(arms, "job", lambda: ended.append(len(sent)))
    assert found == [{"arm": "a"}, {"arm": "b"}]
    turn = "your turn"
    rounds = [("a", "job"), ("b", "job"), *[("a", turn), ("b", turn)] * 2, ("b", turn)]
    assert sent == rounds
    assert ended == [1, 2, 3, 4, 6]  # in the fifth turn `a` gives its result


def test_text_between_markers_is_replaced():
    text = "a\n<!-- benchmarks:speed -->\nold\n<!-- /benchmarks:speed -->\nz"
    once = readme_tables.replaced(text, "speed", "| \\1 |")
    assert once == "a\n<!-- benchmarks:speed -->\n\n| \\1 |\n\n<!-- /benchmarks:speed -->\nz"
    assert readme_tables.replaced(once, "speed", "| \\1 |") == once
    with pytest.raises(ValueError, match=r"must hold <!-- benchmarks:runs --> and then"):
        readme_tables.replaced(text, "runs", "")


def test_tables_of_runs_show_every_arm():
    runs = {"runs": made_up_runs(), "sizes": {"B": 1, "batches": 2}, "memory": []}
    text = readme_tables.run_tables(runs | {"machine": machine()})
    assert "| BiLSTM + FreezeScheduler | 16.0 s (4.00x) | 24.0 s (4.00x) |" in text
    assert "Runs of each kind: 3, of each epoch their median." in text


@pytest.mark.parametrize("page", readme_tables.PAGES, ids=lambda page: page.name)
def test_pages_hold_the_generated_tables(page):
    text = page.read_text()
    assert readme_tables.generated(text, page) == text, "run python benchmarks/readme_tables.py"


def run_script(name, *arguments):
    command = [sys.executable, str(BENCHMARKS / name), "--quick", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_speed_runs_as_a_script(tmp_path):
    done = run_script("speed.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "speed.json").read_text())
    assert results["quick"]
    for part in ("rows", "growth", "tracing"):
        assert results[part]
    assert bool(results["memory"]) == PeakMemory.available()
    assert {row["varied"] for row in results["growth"]} == {"T", "B", "H", "L"}
    assert "geometric means over the shapes" in done.stdout
    for name in ("speed.png", "growth.png"):
        assert 1000 < (tmp_path / name).stat().st_size < 150_000


@pytest.mark.slow
def test_other_systems_are_measured_or_said_to_be_missing(tmp_path):
    done = run_script("others.py", "--out", str(tmp_path / "others.json"))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "others.json").read_text())
    rows = {row["system"]: row for row in results["rows"]}
    assert list(rows) == list(other_systems.SYSTEMS)
    for row in rows.values():
        if "missing" in row:
            assert row["missing"].startswith("not installed: ")
        else:
            assert row["difference"] < 1e-4
            assert row["ms"]["forward"] > 0
    assert set(rows["BiLSTM"]["ms"]) == {"forward", "training step"}
    written = readme_tables.others_table(results)
    assert all(f"| {name} |" in written for name in rows)


@pytest.mark.slow
def test_gradual_run_runs_as_a_script(tmp_path):
    done = run_script("gradual_run.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gradual_run.json").read_text())
    assert len(results["runs"]) == 3 * 4
    assert not run_summary.different(results["runs"])
    for run in results["runs"]:
        assert len(run["epoch_s"]) == max(run["starts"]) + 1
        assert (run["cache"] is not None) == run["arm"].endswith("cache")
        assert run["cache"] is None or run["cache"]["hits"] > 0
    assert 1000 < (tmp_path / "gradual_run.png").stat().st_size < 150_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "said"),
    [("cache_overhead.py", "a cache that never hits"), ("guard_overhead.py", "10 M frozen")],
)
def test_overheads_run_as_scripts(script, said):
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert done.stdout.count("%") >= 4


@pytest.mark.slow
def test_padded_runs_as_a_script():
    done = run_script("padded.py")
    assert done.returncode == 0, done.stderr
    for said in ("times packed", "times by hand", "forward only", "the input", "0.0e+00"):
        assert said in done.stdout


@pytest.mark.slow
def test_communication_runs_as_a_script(tmp_path):
    done = run_script("communication.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "communication.json").read_text())
    assert [row["phase"] for row in results["rows"]] == [0, 1, 2, 3]
    for row in results["rows"]:
        assert row["bytes"] == 4 * row["trainable"]
        assert row["alone_bytes"] == 4 * results["rows"][-1]["trainable"]
        assert 0 < row["guard"] < 1
    assert "| **0.00%** |" in readme_tables.communication_table(results)


@pytest.mark.slow
def test_peers_are_asked_by_running_them(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "peers.py"), "--only", "ddp", "biases"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "peers.json").read_text())
    for row in results["rows"]:
        assert row["answers"]["lstm_freeze"]["right"]
        assert not row["answers"]["BackboneFinetuning"]["right"]
    ranks = results["rows"][0]["answers"]["BackboneFinetuning"]["seen"]
    assert re.fullmatch(r"ranks apart by 0(, [\d.]+){2}", ranks)
    assert f"| **no**: {ranks} |" in readme_tables.peer_table(results)


@pytest.mark.slow
def test_false_alarms_are_counted_for_both_tests(capsys):
    found = [
        false_alarms.compared(seed, false_alarms.SPLITS["30 random splits"], 6, 0.0)
        for seed in range(6)
    ]
    ours, plain = (sum(of) for of in zip(*map(false_alarms.alarms, found), strict=True))
    assert ours <= 2
    assert plain >= 4
    false_alarms.main(["--repetitions", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(false_alarms.SPLITS) + 2
    assert all(re.fullmatch(r"\| .* \| .* (\| (0|100) ){4}\|", line) for line in lines[2:-2])


def test_graphs_do_not_grow_with_time():
    short, long = tracing.traces((4, 64))
    assert short["nodes"] == long["nodes"]


@pytest.mark.slow
@pytest.mark.parametrize("side", SIDES)
def test_peak_memory_holds_at_least_the_output(side):
    shape = Shape(32, 128, 32, 64, 1)
    peak = peak_megabytes(shape, "dense", side)
    output = 32 * 128 * 2 * 64 * 4 / 1e6
    if PeakMemory.available():
        assert output <= peak["forward"] <= peak["training"] < 50 * output
    else:
        assert peak is None


def test_files_of_fine_tunings_are_as_the_guide_says():
    rows = between.file_sizes()
    kept = json.loads((BENCHMARKS / "results" / "between.json").read_text())["files"]
    assert [r["trainable"] for r in rows] == [r["trainable"] for r in kept]
    guide = (BENCHMARKS.parent / "docs" / "between.md").read_text()
    for row in rows:
        assert row["file_mb"] == pytest.approx(4 * row["trainable"] / 1e6, abs=0.02)
        assert f"{row['trainable']:,} | {row['file_mb']:.2f} MB |" in guide


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.skipif(not between.PeakMemory.available(), reason="the system does not tell")
def test_the_peak_of_a_step_has_what_the_backward_pass_needs():
    shape = between.Shape(16, 200, 64, 64, 2)
    gates = 4 * shape.T * shape.B * 4 * shape.H * 2 * shape.L  # bytes, of both directions
    assert between.peak_megabytes(shape, between.FULL) > gates / 1e6


def test_between_measures_every_way(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(between, "SCRATCH", tmp_path)
    assert between.main(["--quick"]) == 0
    rows = json.loads((tmp_path / "between.json").read_text())["rows"]
    for row in rows:
        assert row["ms"].keys() == row["peak_mb"].keys() == between.WAYS.keys()
        # Two moments and a step count for each number or tensor that trains.
        for way, mb in row["optimizer_mb"].items():
            assert mb == pytest.approx(8 * row["trainable"][way] / 1e6, rel=0.3)
    assert (tmp_path / "between.png").exists()
    assert "LoRA / biases" in capsys.readouterr().out
