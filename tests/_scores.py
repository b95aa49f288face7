"""Score functions with planted answers, for the tests of compare."""

import numpy as np

from lstm_freeze import compare

LABELS = [0, 1] * 50


def planted(train, test, seed, mean, sd=0.03):
    """A score around a mean; methods with another mean have other noise on the same split."""
    return mean + sd * np.random.default_rng([seed, int(mean * 1e6)]).standard_normal()


def quietly(score, methods, splits=10, **options):
    if isinstance(splits, int):
        options.setdefault("labels", LABELS)
    return compare(score, methods, splits, progress=False, **options)


class Recording:
    """Remembers what it was called with."""

    def __init__(self, score=planted):
        self.score = score
        self.calls = []

    def __call__(self, train, test, seed, **settings):
        self.calls.append((train.tolist(), test.tolist(), seed, settings))
        return self.score(train, test, seed, **settings)
