import numpy as np
import pytest

from flowrl.statistics import difference_interval, mean_interval, study_interval, t_quantile


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


# ---- seeds and prompts


def test_t_quantiles_are_the_tables() -> None:
    for df, expected in ((1, 12.706), (2, 4.303), (4, 2.776), (9, 2.262), (30, 2.042), (1000, 1.962)):
        assert t_quantile(df) == pytest.approx(expected, abs=6e-4)


def test_one_axis_alone_is_students_interval() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    half = t_quantile(3) * values.std(ddof=1) / 2
    for grid in (values[:, None], values[None]):
        assert study_interval(grid) == pytest.approx((3.5, 3.5 - half, 3.5 + half))


@pytest.mark.parametrize(
    ("seeds", "of_seed", "of_prompt", "rest"), [(5, 0.02, 0.3, 0.2), (5, 0.0, 0.3, 0.2), (3, 0.05, 0.0, 0.2)]
)
def test_the_interval_covers_new_seeds_and_new_prompts(
    seeds: int, of_seed: float, of_prompt: float, rest: float
) -> None:
    generator = np.random.default_rng(7)
    trials, prompts, covered = 200, 80, 0
    for _ in range(trials):
        values = (
            generator.normal(0, of_seed, (seeds, 1))
            + generator.normal(0, of_prompt, (1, prompts))
            + generator.normal(0, rest, (seeds, prompts))
        )
        interval = study_interval(values)
        covered += interval.low <= 0 <= interval.high
    assert 0.91 <= covered / trials <= 0.99


def test_few_seeds_that_differ_make_it_wide() -> None:
    prompts = np.random.default_rng(0).normal(0.5, 0.1, 100)
    alike = study_interval(np.stack([prompts, prompts + 1e-3, prompts - 1e-3]))
    apart = study_interval(np.stack([prompts, prompts + 0.1, prompts - 0.1]))
    assert apart.high - apart.low > 5 * (alike.high - alike.low)


def test_what_cannot_vary_has_no_width_and_one_value_no_interval() -> None:
    assert study_interval(np.full((3, 4), 0.25)) == (0.25, 0.25, 0.25)
    assert not study_interval([[0.5]]).excludes_zero
    with pytest.raises(ValueError, match="seeds, prompts"):
        study_interval([1.0, 2.0])  # type: ignore[list-item]
