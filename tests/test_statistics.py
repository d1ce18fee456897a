import numpy as np
import pytest

from flowrl.statistics import difference_interval, mean_interval


def test_interval_brackets_the_mean_and_repeats_for_a_seed() -> None:
    values = np.random.default_rng(0).normal(2.0, 1.0, 100)
    interval = mean_interval(values, seed=3)
    assert interval.low < interval.mean < interval.high
    assert interval.mean == pytest.approx(values.mean())
    assert interval == mean_interval(list(values), seed=3)
    assert interval != mean_interval(values, seed=4)


def test_width_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0.0, 1.0, 400)
    interval = mean_interval(values)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_constant_and_single_values_have_no_width() -> None:
    assert mean_interval([0.25] * 7) == (0.25, 0.25, 0.25)
    assert mean_interval([0.5]) == (0.5, 0.5, 0.5)


def test_the_interval_covers_the_true_mean_in_95_percent_of_experiments() -> None:
    generator = np.random.default_rng(2)
    trials = 400
    covered = 0
    for _ in range(trials):
        # Fractions of satisfied testpoints: bounded, discrete and skewed, like gold scores.
        interval = mean_interval(generator.binomial(4, 0.3, 200) / 4, resamples=500)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.92 <= covered / trials <= 0.98


def test_pairing_removes_what_prompts_have_in_common() -> None:
    generator = np.random.default_rng(5)
    difficulty = generator.normal(0.0, 1.0, 100)
    before = difficulty + generator.normal(0.0, 0.05, 100)
    after = difficulty + 0.1 + generator.normal(0.0, 0.05, 100)
    paired = difference_interval(before, after)
    assert paired.excludes_zero
    assert paired.mean == pytest.approx(0.1, abs=0.02)
    assert paired.high - paired.low < 0.2 * (mean_interval(after).high - mean_interval(after).low)
    assert not difference_interval(before, before[::-1]).excludes_zero


def test_many_values_are_resampled_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).normal(size=50)
    whole = mean_interval(values, resamples=200)
    monkeypatch.setattr("flowrl.statistics.MAX_DRAWS_IN_MEMORY", 333)
    assert mean_interval(values, resamples=200) == whole


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_what_has_no_interval_is_refused(values: list) -> None:
    with pytest.raises(ValueError, match=r"values are not finite|at least one value"):
        mean_interval(values)


def test_unequal_numbers_of_pairs_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        difference_interval([1.0, 2.0], [1.0])
