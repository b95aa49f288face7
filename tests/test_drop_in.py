"""BiLSTM computes what nn.LSTM computes: one table over all options and forms of input."""

import itertools

import pytest
from _oracle import ALL_CASES, AXES, Case, assert_agree, covering_cases, example, pair

FAST = covering_cases(strength=3)


def test_the_fast_table_covers_every_three_axes():
    for axes in itertools.combinations(range(len(AXES)), 3):
        wanted = set(itertools.product(*(AXES[axis] for axis in axes)))
        assert {tuple(case[axis] for axis in axes) for case in FAST} == wanted


@pytest.mark.parametrize("case", FAST, ids=str)
def test_results_and_gradients(case: Case):
    assert_agree(*pair(**case.options), example(case))


@pytest.mark.slow
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_results_and_gradients_everywhere(case: Case, training: bool):
    lstm, bilstm = pair(**case.options)
    assert_agree(lstm.train(training), bilstm.train(training), example(case))
