"""Correlations within groups by hand, and their ceiling on data whose reliability is known."""

import numpy as np
import pytest

from flowrl.bench.within import (
    ceiling,
    centred,
    interval,
    numbered,
    pearson,
    ranks,
    rounded,
    scaled,
    spearman,
    spearman_difference,
    sums,
)

GROUP = np.array([0, 0, 0, 1, 1, 1])
ONE = np.zeros(6, int)


def test_rows_are_numbered_by_all_labels():
    assert numbered([0, 0, 1, 1], [5, 6, 5, 5]).tolist() == [0, 1, 2, 2]


def test_centred_and_ranked_within_groups():
    values = np.array([1.0, 2.0, 6.0, 5.0, 5.0, 1.0])
    assert centred(values, GROUP).tolist() == pytest.approx([-2, -1, 3, 4 / 3, 4 / 3, -8 / 3])
    assert ranks(values, GROUP).tolist() == [1, 2, 3, 2.5, 2.5, 1]
    assert scaled(values, GROUP)[:3].tolist() == pytest.approx([x / (14 / 3) ** 0.5 for x in (-2, -1, 3)])
    assert scaled(np.ones(6), GROUP).tolist() == [0] * 6


def test_what_groups_have_in_common_does_not_count():
    x = np.array([1.0, 2.0, 3.0, 101.0, 102.0, 103.0])
    y = np.array([-1.0, -2.0, -3.0, 59.0, 58.0, 57.0])
    assert pearson(x, y, GROUP, ONE).mean == pytest.approx(-1)
    assert spearman(x, y, GROUP, ONE).mean == pytest.approx(-1)


def test_spearman_is_the_mean_of_the_groups_own():
    x = np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0])
    y = np.array([1.0, 2.0, 9.0, 5.0, 4.0, 3.0])
    assert spearman(x, y, GROUP, ONE).mean == pytest.approx(0)
    assert spearman(x[:3], y[:3], GROUP[:3], ONE[:3]).mean == pytest.approx(1)


def test_where_nothing_differs_there_is_no_correlation():
    assert pearson(np.ones(6), np.arange(6.0), GROUP, ONE) is None
    assert spearman(np.arange(6.0), np.ones(6), GROUP, ONE) is None


def test_the_interval_is_over_clusters():
    """A mean over four prompts: the interval is that of their means, whatever the number of rows of each."""
    cluster = np.repeat([7, 3, 9, 1], [1, 5, 2, 10])
    values = np.repeat([0.0, 1.0, 2.0, 3.0], [1, 5, 2, 10])
    of_clusters = sums([values, np.ones(18)], cluster)
    found = interval(of_clusters, lambda total: total[..., 0] / total[..., 1])
    assert found.mean == pytest.approx(39 / 18)
    assert 0 <= found.low < 1.5 < found.mean < found.high <= 3
    alone = interval(of_clusters[:1], lambda total: total[..., 0] / total[..., 1])
    assert alone == (3.0, -np.inf, np.inf)
    assert not alone.excludes_zero


def test_the_ceiling_is_what_the_truth_reaches():
    """Two halves are the truth plus noise of its own size: reliability 1/2, of their mean 2/3."""
    generator = np.random.default_rng(0)
    group = np.repeat(np.arange(2000), 8)
    truth, first, second = generator.normal(size=(3, len(group)))
    halves = (truth + first, truth + second)
    found = ceiling(*halves, group, group % 20)
    reached = pearson(truth, sum(halves) / 2, group, group % 20)
    assert found.mean == pytest.approx(reached.mean, abs=0.01), "both by groups of eight, which are short of"
    assert found.mean == pytest.approx((2 / 3) ** 0.5, abs=0.03)
    assert ceiling(truth, -truth, group, group % 20).mean == 0


def test_methods_are_compared_on_the_prompts_they_share():
    x = np.array([1.0, 2.0, 3.0])
    group, cluster = np.repeat([0, 1, 2], 3), np.repeat([4, 5, 6], 3)
    right = (np.tile(x, 3), np.concatenate([x, x, -x]), group, cluster)
    wrong = (np.tile(x, 2), np.concatenate([-x, x]), group[:6], cluster[:6])
    found = spearman_difference(right, wrong)
    assert found.mean == pytest.approx(1 - 0), "the third prompt is only the first method's"
    assert found.low == pytest.approx(0)
    assert found.high == pytest.approx(2)
    assert spearman_difference(right, right)[:3] == (0, 0, 0)


def test_numbers_are_stored_short_and_without_nan():
    assert rounded([1.23456789, [float("nan"), 1e-12]]) == [1.23457, [None, 1e-12]]
