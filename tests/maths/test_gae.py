"""Generalised advantage estimation: a worked case, the recursion and the sum as naive loops, limits, padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.advantages import returns_to_go, token_rewards
from r2m_cli.maths.gae import gae
from r2m_cli.maths.masking import length_mask

QUICK = settings(max_examples=25, deadline=None)

unit = st.sampled_from([0.0, 0.3, 0.95, 1.0])


@st.composite
def episodes(draw):
    """Rewards, values [B, R] in float64 (tenths, 0 on padding) and their mask; no row is empty."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    mask = length_mask(lengths, int(lengths.max()) + draw(st.integers(0, 2)))
    numbers = draw(st.lists(st.integers(-50, 50), min_size=2 * mask.numel(), max_size=2 * mask.numel()))
    table = torch.tensor(numbers, dtype=torch.float64).view(2, *mask.shape) / 10
    rewards, values = torch.where(mask, table, 0.0)
    return rewards, values, mask


def td_errors(rewards: list[float], values: list[float], gamma: float) -> list[float]:
    """delta_t of one response without padding; the value after its last token is 0."""
    following = [*values[1:], 0.0]
    return [r + gamma * after - v for r, v, after in zip(rewards, values, following)]


def by_recursion(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    deltas = td_errors(rewards, values, gamma)
    out, advantage = [0.0] * len(deltas), 0.0
    for t in range(len(deltas) - 1, -1, -1):
        advantage = deltas[t] + gamma * lam * advantage
        out[t] = advantage
    return out


def by_sum(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """Eq. 16: sum over l of (gamma lam)^l delta_{t+l}."""
    deltas = td_errors(rewards, values, gamma)
    return [
        sum((gamma * lam) ** ahead * deltas[t + ahead] for ahead in range(len(deltas) - t)) for t in range(len(deltas))
    ]


def test_by_hand():
    # gamma 1, lambda 1/2. Values 1, 2, 4 and rewards 0, 0, 8: delta = 2 - 1, 4 - 2, 8 - 4 = 1, 2, 4
    # A_3 = 4, A_2 = 2 + 4 / 2 = 4, A_1 = 1 + 4 / 2 = 3.  The second response has one token: A = 5 - 3
    rewards = torch.tensor([[0.0, 0.0, 8.0], [5.0, 0.0, 0.0]])
    values = torch.tensor([[1.0, 2.0, 4.0], [3.0, 9.0, 9.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    advantages, returns = gae(rewards, values, mask, 1.0, 0.5)
    assert advantages.tolist() == [[3.0, 4.0, 4.0], [2.0, 0.0, 0.0]]
    assert returns.tolist() == [[4.0, 6.0, 8.0], [5.0, 0.0, 0.0]]


def test_the_discount_by_hand():
    # gamma 1/2, lambda 1: delta_2 = 8 - 2 = 6, delta_1 = 1 + 2 / 2 - 3 = -1; A_1 = -1 + 6 / 2 = 2 = (1 + 8 / 2) - 3
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, returns = gae(torch.tensor([[1.0, 8.0]]), torch.tensor([[3.0, 2.0]]), mask, 0.5, 1.0)
    assert advantages.tolist() == [[2.0, 6.0]]
    assert returns.tolist() == [[5.0, 8.0]]


@pytest.mark.parametrize("oracle", [by_recursion, by_sum])
@QUICK
@given(batch=episodes(), gamma=unit, lam=unit)
def test_equals_a_naive_loop(oracle, batch, gamma, lam):
    rewards, values, mask = batch
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for b, length in enumerate(mask.sum(dim=1).tolist()):
        row_values = values[b, :length].tolist()
        expected = oracle(rewards[b, :length].tolist(), row_values, gamma, lam)
        assert advantages[b, :length].tolist() == pytest.approx(expected, abs=1e-9)
        assert returns[b, :length].tolist() == pytest.approx([a + v for a, v in zip(expected, row_values)], abs=1e-9)
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


@QUICK
@given(episodes())
def test_with_lambda_1_the_advantage_is_the_return_minus_the_value(batch):
    rewards, values, mask = batch
    advantages, returns = gae(rewards, values, mask, 1.0, 1.0)
    torch.testing.assert_close(returns, returns_to_go(rewards), atol=1e-9, rtol=0)
    torch.testing.assert_close(advantages, returns_to_go(rewards) - values, atol=1e-9, rtol=0)


@QUICK
@given(episodes(), unit)
def test_with_lambda_0_the_advantage_is_the_td_error(batch, gamma):
    rewards, values, mask = batch
    advantages, _ = gae(rewards, values, mask, gamma, 0.0)
    for b, length in enumerate(mask.sum(dim=1).tolist()):
        expected = td_errors(rewards[b, :length].tolist(), values[b, :length].tolist(), gamma)
        assert advantages[b, :length].tolist() == pytest.approx(expected, abs=1e-12)


@QUICK
@given(episodes(), unit)
def test_a_critic_that_knows_the_returns_leaves_no_advantage(batch, lam):
    rewards, _, mask = batch
    true = returns_to_go(rewards)
    advantages, returns = gae(rewards, true, mask, 1.0, lam)
    torch.testing.assert_close(advantages, torch.zeros_like(true), atol=1e-9, rtol=0)
    torch.testing.assert_close(returns, true, atol=1e-9, rtol=0)


@QUICK
@given(episodes())
def test_a_critic_of_zeros_with_lambda_1_is_reinforce(batch):
    rewards, values, mask = batch
    advantages, _ = gae(rewards, torch.zeros_like(values), mask, 1.0, 1.0)
    torch.testing.assert_close(advantages, returns_to_go(rewards), atol=1e-9, rtol=0)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@QUICK
@given(batch=episodes(), gamma=unit, lam=unit)
def test_padding_is_inert_whatever_it_holds(junk, batch, gamma, lam):
    rewards, values, mask = batch
    clean = gae(rewards, values, mask, gamma, lam)
    for dirty_rewards, dirty_values in ((junk, 0.0), (0.0, junk), (junk, junk)):
        r, v = torch.where(mask, rewards, dirty_rewards), torch.where(mask, values, dirty_values)
        for got, expected in zip(gae(r, v, mask, gamma, lam), clean):
            assert torch.equal(got, expected)


@QUICK
@given(episodes(), unit, unit, st.integers(1, 3))
def test_more_padding_changes_nothing(batch, gamma, lam, extra):
    width = batch[2].shape[1]
    wide = gae(*(torch.nn.functional.pad(x, (0, extra)) for x in batch), gamma, lam)
    for got, expected in zip(wide, gae(*batch, gamma, lam)):
        assert torch.equal(got[:, :width], expected)
        assert (got[:, width:] == 0).all()


@QUICK
@given(episodes(), unit, unit, st.randoms(use_true_random=False))
def test_the_order_of_the_batch_changes_nothing(batch, gamma, lam, random):
    order = list(range(len(batch[0])))
    random.shuffle(order)
    for got, expected in zip(gae(*(x[order] for x in batch), gamma, lam), gae(*batch, gamma, lam)):
        assert torch.equal(got, expected[order])


@QUICK
@given(episodes(), unit, unit, st.floats(-10, 10))
def test_rewards_and_values_of_another_unit_scale_the_result(batch, gamma, lam, scale):
    rewards, values, mask = batch
    for got, plain in zip(gae(scale * rewards, scale * values, mask, gamma, lam), gae(*batch, gamma, lam)):
        torch.testing.assert_close(got, scale * plain, atol=1e-8, rtol=0)


def test_the_score_of_a_response_reaches_its_first_token_discounted():
    """The reward of the last token, seen from t, is worth (gamma lam)^(T - t) to a critic that says 0."""
    mask = length_mask(torch.tensor([4, 2]), 4)
    rewards = token_rewards(torch.tensor([1.0, 1.0], dtype=torch.float64), mask, None, 0.0)
    advantages, _ = gae(rewards, torch.zeros_like(rewards), mask, 0.9, 0.5)
    expected = torch.tensor([[0.45**3, 0.45**2, 0.45, 1.0], [0.45, 1.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected)


def test_the_precision_of_the_values_is_kept():
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert [x.dtype for x in gae(torch.ones(1, 3), torch.ones(1, 3), mask, 1.0, 0.95)] == [torch.float32] * 2
