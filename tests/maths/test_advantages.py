"""RLOO, GRPO and the global scaling: worked cases, naive loops, invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r2m_cli.maths.advantages import ESTIMATORS, grpo, moments, rloo, scale_by_std

QUICK = settings(max_examples=25, deadline=None)

EPSILON = 1e-6  # what GRPO adds to the standard deviation


@st.composite
def groups(draw):
    """Rewards [n, K] in float64, tenths between -10 and 10."""
    n, k = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    numbers = st.lists(st.integers(-100, 100), min_size=k, max_size=k)
    rows = draw(st.lists(numbers, min_size=n, max_size=n))
    return torch.tensor(rows, dtype=torch.float64) / 10


@st.composite
def spread_groups(draw):
    """Groups whose rewards are not all equal, so that they have a standard deviation of at least 0.04."""
    rewards = draw(groups())
    rewards[:, 0] = rewards[:, 1] + 0.1
    return rewards


def naive_rloo(rewards: Tensor) -> Tensor:
    out = torch.empty_like(rewards)
    for i, row in enumerate(rewards.tolist()):
        for j, reward in enumerate(row):
            others = row[:j] + row[j + 1 :]
            out[i, j] = reward - sum(others) / len(others)
    return out


def naive_grpo(rewards: Tensor) -> Tensor:
    out = torch.empty_like(rewards)
    for i, row in enumerate(rewards.tolist()):
        mean = sum(row) / len(row)
        std = math.sqrt(sum((r - mean) ** 2 for r in row) / (len(row) - 1))
        for j, reward in enumerate(row):
            out[i, j] = (reward - mean) / (std + EPSILON)
    return out


def test_rloo_by_hand():
    # 1 - (2 + 6) / 2 = -3;  2 - (1 + 6) / 2 = -1.5;  6 - (1 + 2) / 2 = 4.5
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.0, 3.0]])
    assert rloo(rewards).tolist() == [[-3.0, -1.5, 4.5], [-1.5, -1.5, 3.0]]


def test_grpo_by_hand():
    # mean 3, sample variance (4 + 0 + 4) / 2 = 4, std 2
    expected = torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(grpo(torch.tensor([[1.0, 3.0, 5.0]], dtype=torch.float64)), expected, atol=1e-6, rtol=0)


def test_the_names_of_the_configuration():
    assert {"rloo": rloo, "grpo": grpo} == ESTIMATORS


@pytest.mark.parametrize(("n", "k"), [(1, 2), (3, 4), (5, 7), (2, 16)])
@pytest.mark.parametrize(("estimator", "oracle"), [(rloo, naive_rloo), (grpo, naive_grpo)])
def test_estimators_equal_a_naive_loop(estimator, oracle, n, k):
    rewards = torch.randn(n, k, generator=torch.Generator().manual_seed(10 * n + k)) * 3 + 1
    torch.testing.assert_close(estimator(rewards), oracle(rewards), atol=1e-5, rtol=1e-5)


@QUICK
@given(groups(), st.floats(-100, 100))
def test_rloo_sums_to_zero_and_ignores_a_shift(rewards, shift):
    values = rloo(rewards)
    torch.testing.assert_close(values.sum(dim=1), torch.zeros(len(rewards)).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(rloo(rewards + shift), values, atol=1e-9, rtol=0)


@QUICK
@given(groups(), st.floats(-100, 100), st.floats(0.1, 10))
def test_rloo_scales_with_the_rewards(rewards, shift, scale):
    torch.testing.assert_close(rloo(scale * rewards + shift), scale * rloo(rewards), atol=1e-8, rtol=0)


@QUICK
@given(spread_groups(), st.floats(-100, 100), st.floats(1, 10))
def test_grpo_sums_to_zero_and_ignores_shift_and_scale(rewards, shift, scale):
    values = grpo(rewards)
    torch.testing.assert_close(values.sum(dim=1), torch.zeros(len(rewards)).double(), atol=1e-9, rtol=0)
    # the epsilon beside a standard deviation of at least 0.04 is a relative 2.5e-5
    torch.testing.assert_close(grpo(scale * rewards + shift), values, atol=1e-6, rtol=1e-4)


@QUICK
@given(spread_groups())
def test_the_order_of_the_group_changes_nothing(rewards):
    for estimator in (rloo, grpo):
        flipped = estimator(rewards.flip(1)).flip(1)
        torch.testing.assert_close(flipped, estimator(rewards), atol=1e-9, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e4])
@pytest.mark.parametrize("k", [2, 3, 8])
def test_rloo_gives_equal_rewards_no_advantage(value, k):
    assert rloo(torch.full((3, k), value)).abs().max() <= 1e-6 * max(abs(value), 1)


def test_grpo_gives_equal_rewards_no_advantage():
    """The mean of equal numbers is not always that number: the rounding residue must not be taken for a reward."""
    values = torch.randn(200, 1, generator=torch.Generator().manual_seed(0)) * 10
    worst = {k: float(grpo(values.expand(-1, k).contiguous()).abs().max()) for k in range(2, 17)}
    assert max(worst.values()) < 1e-3, worst


@pytest.mark.parametrize("estimator", [rloo, grpo])
@pytest.mark.parametrize("shape", [(4, 1), (4,), (2, 2, 2)])
def test_no_group_no_baseline(estimator, shape):
    with pytest.raises(ValueError, match="K >= 2"):
        estimator(torch.zeros(shape))


def test_moments_by_hand():
    assert moments(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [4.0, 10.0, 30.0]


def test_scale_by_std_by_hand():
    # mean 0, population variance (1 + 1 + 9 + 9) / 4 = 5
    advantages = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    expected = advantages / math.sqrt(5)
    torch.testing.assert_close(scale_by_std(advantages, moments(advantages), 1e-2), expected)


@QUICK
@given(groups())
def test_scale_by_std_is_torchs_population_std_over_the_whole_batch(rewards):
    for values in (rloo(rewards), rewards):  # also where the mean is not 0
        expected = values / values.std(correction=0).clamp_min(1e-2)
        torch.testing.assert_close(scale_by_std(values, moments(values), 1e-2), expected, atol=1e-9, rtol=1e-6)


@QUICK
@given(groups(), st.integers(0, 3))
def test_scale_by_std_of_parts_with_summed_moments_is_that_of_the_whole(rewards, cut):
    """Two ranks with their own parts, unequal in size, divide by the same number as one process."""
    first, second = rewards[:cut], rewards[cut:]
    sums = moments(first) + moments(second)
    parts = torch.cat([scale_by_std(first, sums, 1e-2), scale_by_std(second, sums, 1e-2)])
    torch.testing.assert_close(parts, scale_by_std(rewards, moments(rewards), 1e-2), atol=1e-9, rtol=1e-9)


def test_scale_by_std_does_not_divide_by_less_than_the_floor():
    tiny = torch.tensor([[1e-4, -1e-4]])
    torch.testing.assert_close(scale_by_std(tiny, moments(tiny), 1e-2), tiny / 1e-2)
    zeros = torch.zeros(2, 4)
    assert scale_by_std(zeros, moments(zeros), 1e-2).tolist() == zeros.tolist()


def test_scale_by_std_survives_a_variance_that_rounds_below_zero():
    equal = torch.full((2, 3), 0.1)
    sums = torch.tensor([6.0, 0.6, 0.06 - 1e-12], dtype=torch.float64)
    assert scale_by_std(equal, sums, 0.5).isfinite().all()


def test_scale_by_std_keeps_the_precision_of_the_advantages():
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert scale_by_std(values, moments(values), 1e-2).dtype == torch.float32
