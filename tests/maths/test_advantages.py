"""RLOO, GRPO and ReMax: worked cases, naive loops, invariants."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r2m_cli.maths.advantages import grpo, remax, rloo

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


def test_remax_by_hand():
    # the greedy responses have 2 and -1
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.0, -1.0, 3.0]])
    assert remax(rewards, torch.tensor([2.0, -1.0])).tolist() == [[-1.0, 0.0, 4.0], [1.0, 0.0, 4.0]]


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


def test_remax_gives_one_response_to_a_prompt_an_advantage():
    assert remax(torch.tensor([[3.0], [1.0]]), torch.tensor([1.0, 5.0])).tolist() == [[2.0], [-4.0]]


@QUICK
@given(groups(), st.data())
def test_remax_equals_a_naive_loop_and_ignores_a_shift(rewards, data):
    greedy = torch.tensor([data.draw(st.integers(-100, 100)) / 10 for _ in rewards], dtype=torch.float64)
    expected = [[reward - float(greedy[i]) for reward in row] for i, row in enumerate(rewards.tolist())]
    assert remax(rewards, greedy).tolist() == expected
    shift = data.draw(st.floats(-100, 100))
    torch.testing.assert_close(remax(rewards + shift, greedy + shift), remax(rewards, greedy), atol=1e-9, rtol=0)


@QUICK
@given(groups())
def test_remax_with_the_group_mean_is_rloo_but_for_its_factor(rewards):
    """r - mean = (K - 1) / K of what RLOO gives."""
    k = rewards.shape[1]
    torch.testing.assert_close(remax(rewards, rewards.mean(dim=1)), rloo(rewards) * (k - 1) / k, atol=1e-9, rtol=0)
