"""Bootstrap intervals, win rates and the length-controlled win rate."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.statistics import RIDGE, bootstrap_mean, length_controlled_win_rate, pass_to_keep, win_rate

QUICK = settings(max_examples=25, deadline=None)

preferences = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
comparisons = st.lists(st.tuples(preferences, st.integers(-40, 40)), min_size=2, max_size=12)


def sigmoid(x):
    return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def naive_controlled_rate(said, differences):
    """The same regression by a nested grid: no derivative, no matrix, no torch."""
    n = len(said)
    mean = sum(differences) / n
    std = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1)) if n > 1 else 0
    features = [math.tanh(d / std) if std else 0.0 for d in differences]

    def loss(a, b):
        logits = [a + b * x for x in features]
        fit = sum(max(z, 0) + math.log1p(math.exp(-abs(z))) - y * z for y, z in zip(said, logits))
        return fit + RIDGE / 2 * (a * a + b * b)

    if not any(features):
        return sum(said) / n
    centre, width = (0.0, 0.0), 20.0
    while width > 1e-6:
        cells = [(centre[0] + width * i / 4, centre[1] + width * j / 4) for i in range(-4, 5) for j in range(-4, 5)]
        best = min(cells, key=lambda cell: loss(*cell))
        # halve only when the best point is not on the edge of the grid: the optimum may lie in a skew valley
        if max(abs(best[0] - centre[0]), abs(best[1] - centre[1])) < width:
            width /= 2
        centre = best
    return sigmoid(centre[0])


def test_a_mean_by_hand():
    # two values: a resample's mean is 0 or 1 with probability 1/4 each, and 1/2 otherwise
    assert bootstrap_mean(torch.tensor([0.0, 1.0]), 1000, 0) == (0.5, 0.0, 1.0)
    assert win_rate(torch.tensor([1.0, 1.0, 0.5, 0.0]), 100, 0).value == 0.625, "a tie counts half"


def test_the_interval_of_a_share_is_near_the_normal_one():
    values = torch.cat([torch.ones(120), torch.zeros(80)])
    found = bootstrap_mean(values, 4000, 0)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 200)
    assert found.value == pytest.approx(0.6)
    assert found.low == pytest.approx(0.6 - half, abs=0.012)
    assert found.high == pytest.approx(0.6 + half, abs=0.012)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for seed in range(200):
        found = bootstrap_mean(torch.randn(60, generator=generator) + 2, 400, seed)
        covered += found.low <= 2 <= found.high
    assert 180 <= covered <= 199


@QUICK
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.integers(0, 5))
def test_the_interval_equals_a_naive_resampling_and_its_seed_fixes_it(values, seed):
    found = bootstrap_mean(torch.tensor(values), 200, seed)
    assert found == bootstrap_mean(torch.tensor(values), 200, seed)
    index = torch.randint(len(values), (200, len(values)), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = torch.tensor(values).tolist()
    means = sorted(sum(drawn[i] for i in row) / len(row) for row in index)

    def percentile(share):
        place = share * 199
        low = int(place)
        return means[low] + (place - low) * (means[min(low + 1, 199)] - means[low])

    assert found.low == pytest.approx(percentile(0.025), abs=1e-9)
    assert found.high == pytest.approx(percentile(0.975), abs=1e-9)


@pytest.mark.parametrize("units", [None, torch.tensor([7, 7, 7])])
def test_one_unit_has_a_mean_and_no_interval(units):
    values = torch.tensor([3.0] if units is None else [1.0, 0.0, 0.5])
    found = bootstrap_mean(values, 100, 0, units)
    assert found.value == values.mean()
    assert found.interval is None
    assert math.isnan(found.low)
    differences = torch.arange(len(values)).float()
    assert length_controlled_win_rate(values.clamp(max=1), differences, 100, 0, units).interval is None


def test_a_share_of_all_or_nothing_has_wilsons_interval():
    # 1.96^2 = 3.84: of ten that are all right Wilson's lower end is 10 / 13.84
    all_right = bootstrap_mean(torch.ones(10), 100, 0, bounds=(0.0, 1.0))
    assert all_right == pytest.approx((1.0, 0.7225, 1.0), abs=1e-4)
    none = bootstrap_mean(torch.zeros(20), 100, 0, torch.arange(10).repeat(2), bounds=(0.0, 1.0))
    assert none == pytest.approx((0.0, 0.0, 0.2775), abs=1e-4), "ten prompts, twice each"
    assert bootstrap_mean(torch.zeros(10), 100, 0, bounds=(-1.0, 1.0)) == pytest.approx((0, -0.2775, 0.2775), abs=1e-4)
    assert win_rate(torch.full((10,), 0.5), 100, 0) == pytest.approx((0.5, 0.3612, 0.6388), abs=1e-4)
    assert bootstrap_mean(torch.ones(10), 100, 0) == (1.0, 1.0, 1.0), "what has no bounds may well be constant"


@QUICK
@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=12), st.integers(0, 5))
def test_no_share_of_several_prompts_has_an_interval_of_width_zero(values, seed):
    found = bootstrap_mean(torch.tensor(values), 100, seed, bounds=(0.0, 1.0))
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low > 0.05
    controlled = length_controlled_win_rate(torch.tensor(values), torch.arange(len(values)).float(), 100, seed)
    assert controlled.high > controlled.low


def test_many_values_do_not_need_all_resamples_in_memory_at_once():
    found = bootstrap_mean(torch.arange(300_000) % 2, 100, 0)
    assert found.value == 0.5
    assert 0.496 < found.low < 0.5 < found.high < 0.504


def test_values_of_one_unit_are_resampled_together():
    values, units = torch.tensor([1.0, 0.0, 5.0, 3.0]), torch.tensor([9, 2, 9, 9])
    # Two units: a resample is {0, 0}, {0, three of mean 3} or {three, three}, of which the second is the whole.
    assert bootstrap_mean(values, 1000, 0, units) == (2.25, 0.0, 3.0)
    alone = torch.tensor([4, 3, 2, 1])
    assert bootstrap_mean(values, 1000, 0, torch.arange(4)) == bootstrap_mean(values, 1000, 0)
    assert bootstrap_mean(values, 1000, 0, alone) == pytest.approx(bootstrap_mean(values, 1000, 0), abs=0.2)
    with pytest.raises(ValueError, match="units"):
        bootstrap_mean(values, 1000, 0, torch.arange(3))


def test_a_value_that_stands_there_twice_tells_nothing_new():
    said, differences = torch.tensor([1.0, 0.0, 0.5, 1.0, 0.0]), torch.tensor([3.0, -2.0, 9.0, 4.0, -5.0])
    twice, units = [torch.cat([x, x]) for x in (said, differences)], torch.arange(5).repeat(2)
    assert win_rate(twice[0], 500, 0, units) == pytest.approx(win_rate(said, 500, 0))
    narrow, wide = length_controlled_win_rate(*twice, 500, 0), length_controlled_win_rate(*twice, 500, 0, units)
    assert wide.value == narrow.value
    assert wide.high - wide.low > narrow.high - narrow.low


def test_equal_lengths_give_the_raw_rate():
    said = torch.tensor([1.0, 1.0, 0.5, 0.0])
    for difference in (0.0, 7.0):
        found = length_controlled_win_rate(said, torch.full((4,), difference), 100, 0)
        assert found == win_rate(said, 100, 0)


def test_a_side_that_wins_by_length_alone_is_brought_back_to_one_half():
    # The longer response wins nine times of ten, whoever wrote it; this side is the longer one three times of four.
    said = torch.tensor(([1.0] * 9 + [0.0]) * 3 + [0.0] * 9 + [1.0])
    differences = torch.tensor([20.0] * 30 + [-20.0] * 10)
    assert win_rate(said, 100, 0).value == 0.7
    assert length_controlled_win_rate(said, differences, 100, 0).value == pytest.approx(0.5, abs=2e-3)


@QUICK
@given(comparisons)
def test_the_regression_equals_a_grid_search(rows):
    said, differences = [y for y, _ in rows], [float(d) for _, d in rows]
    found = length_controlled_win_rate(torch.tensor(said), torch.tensor(differences), 100, 0)
    assert found.value == pytest.approx(naive_controlled_rate(said, differences), abs=1e-4)


@QUICK
@given(comparisons)
def test_the_other_side_has_the_rest(rows):
    said = torch.tensor([y for y, _ in rows])
    differences = torch.tensor([float(d) for _, d in rows])
    here = length_controlled_win_rate(said, differences, 100, 0)
    there = length_controlled_win_rate(1 - said, -differences, 100, 0)
    assert here.value == pytest.approx(1 - there.value, abs=1e-6)
    assert here.low == pytest.approx(1 - there.high, abs=1e-6)
    assert 0 <= here.low <= here.high <= 1


@pytest.mark.parametrize("said", [[1.0] * 8, [0.0] * 8, [1.0] * 4 + [0.0] * 4])
def test_separable_data_stay_finite(said):
    differences = torch.tensor([5.0, 6.0, 7.0, 8.0, -5.0, -6.0, -7.0, -8.0])
    found = length_controlled_win_rate(torch.tensor(said), differences, 100, 0)
    assert all(map(math.isfinite, found))
    assert found.value == pytest.approx(sum(said) / 8, abs=0.02)


def test_what_cannot_be_estimated_is_refused():
    with pytest.raises(ValueError, match="n >= 1"):
        bootstrap_mean(torch.tensor([]), 100, 0)
    with pytest.raises(ValueError, match="between 0"):
        win_rate(torch.tensor([2.0]), 100, 0)
    with pytest.raises(ValueError, match="2 preferences, but 1"):
        length_controlled_win_rate(torch.tensor([0.0, 1.0]), torch.tensor([1.0]), 100, 0)


# --- early stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([[3, 3, 3, 3], [2, 2, 2, 2], [1, 1, 1, 1]], 2),  # it goes on falling
        ([[3, 3, 3, 3], [1, 1, 1, 1], [2, 2, 2, 2]], 1),  # the last is worse on every example
        ([[1, 1, 1, 1], [1, 1, 1, 1], [2, 2, 2, 2]], 1),  # of equal ones the later
        ([[1, 1, 1, 1], [0, 2, 1, 5]], 1),  # +1 on average, with a standard error of 1.1
        ([[1, 1, 1, 1], [1, 2, 2, 3]], 0),  # +1 with a standard error of 0.41
        ([[1], [5]], 1),  # one example says nothing
        ([[1, 2]], 0),
    ],
)
def test_the_pass_that_is_kept(losses, kept):
    assert pass_to_keep(torch.tensor(losses, dtype=torch.float64)) == kept


@QUICK
@given(st.lists(st.lists(st.integers(0, 6), min_size=5, max_size=5), min_size=1, max_size=6))
def test_an_earlier_pass_is_kept_only_where_it_is_better_by_more_than_two_standard_errors(losses):
    means = [sum(row) / 5 for row in losses]
    kept = pass_to_keep(torch.tensor(losses, dtype=torch.float64))
    lowest = max(i for i, mean in enumerate(means) if mean == min(means))
    assert kept in (lowest, len(losses) - 1)
    differences = [last - low for last, low in zip(losses[-1], losses[lowest])]
    mean = sum(differences) / 5
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / 4 / 5)
    if abs(mean - 2 * error) > 1e-9:  # on the edge either will do
        assert kept == (lowest if mean > 2 * error else len(losses) - 1)
