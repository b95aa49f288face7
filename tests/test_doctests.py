"""Runs every docstring example, under the import path that users type.

pytest's own --doctest-modules would import the folder callbacks/ as a second, top-level package.
"""

import doctest
import importlib
import pkgutil

import pytest

import lstm_freeze
import lstm_freeze.callbacks

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules():
    for package in (lstm_freeze, lstm_freeze.callbacks):
        yield package.__name__
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield module.name


def examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in sorted(set(modules())):
        for case in finder.find(importlib.import_module(name)):
            if case.examples:
                yield pytest.param(case, id=case.name)


@pytest.mark.parametrize("case", list(examples()))
def test_docstring_example(case):
    report = []
    failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(case, out=report.append)
    assert not failed, "".join(report)
