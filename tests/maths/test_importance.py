"""Truncated importance weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r2m_cli.maths.importance import log_weights, truncated

LOGP = torch.tensor([[-1.0, -2.0, -9.0], [-0.5, -0.5, -0.5]])
SAMPLER = torch.tensor([[-1.5, -2.1, 7.0], [-0.4, -0.5, -0.3]])
MASK = torch.tensor([[True, True, False], [True, True, True]])


def test_a_response_has_the_product_of_its_tokens_weights():
    expected = torch.tensor([0.5 + 0.1, -0.1 + 0.0 - 0.2])
    torch.testing.assert_close(log_weights(LOGP, SAMPLER, MASK, "sequence"), expected)
    torch.testing.assert_close(log_weights(LOGP, SAMPLER, MASK, "sequence_mean"), expected)


def test_a_token_has_its_own_and_padding_has_none():
    expected = torch.tensor([[0.5, 0.1, 0.0], [-0.1, 0.0, -0.2]])
    torch.testing.assert_close(log_weights(LOGP, SAMPLER, MASK, "token"), expected)


def test_what_stands_on_padding_does_not_matter():
    nothing = torch.where(MASK, SAMPLER, math.nan)
    assert torch.equal(log_weights(LOGP, nothing, MASK, "sequence"), log_weights(LOGP, SAMPLER, MASK, "sequence"))


def test_a_weight_is_cut_off_at_the_cap():
    weights = truncated(torch.tensor([math.log(0.5), math.log(1.9), math.log(3.0), 500.0]), 2.0)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.9, 2.0, 2.0]))


@given(
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    st.lists(st.floats(0.01, 1), min_size=2, max_size=6),
    st.floats(0.5, 50),
)
def test_under_a_high_cap_the_weighted_mean_is_that_of_the_policy(policy, sampler, cap):
    """Exactly, over all tokens of a small vocabulary; a cap can only lower it."""
    size = min(len(policy), len(sampler))
    p, q = (torch.tensor(x[:size], dtype=torch.float64) for x in (policy, sampler))
    p, q = p / p.sum(), q / q.sum()
    value = torch.arange(1.0, size + 1, dtype=torch.float64)
    log_weight = log_weights(p.log()[:, None], q.log()[:, None], torch.ones(size, 1, dtype=torch.bool), "sequence")
    exact = (q * truncated(log_weight, 1e9) * value).sum()
    assert exact.item() == pytest.approx((p * value).sum().item())
    assert (q * truncated(log_weight, cap) * value).sum() <= exact + 1e-9
