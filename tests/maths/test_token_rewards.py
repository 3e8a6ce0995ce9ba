"""Score and KL as rewards per token, and their returns to go (REINFORCE++, PPO): worked cases, naive loops, padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.advantages import returns_to_go, token_rewards
from r2m_cli.maths.masking import length_mask

QUICK = settings(max_examples=25, deadline=None)

BETAS = st.sampled_from([0.0, 0.05, 1.0])


@st.composite
def responses(draw):
    """Scores [B], mask [B, R] and KL estimates [B, R] in float64 (some negative: k1), which are 0 on padding."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 6), min_size=1, max_size=5)))
    mask = length_mask(lengths, int(lengths.max()) + draw(st.integers(0, 2)))
    tenths = st.integers(-50, 50)
    kl = draw(st.lists(tenths, min_size=mask.numel(), max_size=mask.numel()))
    scores = draw(st.lists(tenths, min_size=len(lengths), max_size=len(lengths)))
    kl = torch.where(mask, torch.tensor(kl, dtype=torch.float64).view(mask.shape) / 10, 0.0)
    return torch.tensor(scores, dtype=torch.float64) / 10, mask, kl


def naive_token_rewards(scores, mask, kl, beta) -> list[list[float]]:
    table = []
    for b, row in enumerate(mask.tolist()):
        length = sum(row)
        rewards = [-beta * float(kl[b, t]) if t < length else 0.0 for t in range(len(row))]
        rewards[length - 1] += float(scores[b])
        table.append(rewards)
    return table


def test_token_rewards_by_hand():
    # beta 0.5: minus half the KL everywhere, and the score on the last token: 3 - 0.5, -1 - 1
    mask = torch.tensor([[True, True, True], [True, False, False]])
    kl = torch.tensor([[2.0, -4.0, 1.0], [2.0, 8.0, 8.0]])
    got = token_rewards(torch.tensor([3.0, -1.0]), mask, kl, 0.5)
    assert got.tolist() == [[-1.0, 2.0, 2.5], [-2.0, 0.0, 0.0]]


def test_without_a_kl_the_score_stands_alone_on_the_last_token():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    got = token_rewards(torch.tensor([3.0, -1.0]), mask, None, 0.5)
    assert got.tolist() == [[0.0, 0.0, 3.0], [-1.0, 0.0, 0.0]]


def test_returns_to_go_by_hand():
    got = returns_to_go(torch.tensor([[-1.0, 2.0, 2.5], [-2.0, 0.0, 0.0]]))
    assert got.tolist() == [[3.5, 4.5, 2.5], [-2.0, 0.0, 0.0]]


@QUICK
@given(responses(), BETAS)
def test_token_rewards_equal_a_naive_loop(data, beta):
    scores, mask, kl = data
    got = token_rewards(scores, mask, kl, beta)
    expected = torch.tensor(naive_token_rewards(scores, mask, kl, beta), dtype=torch.float64)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    assert (got[~mask] == 0).all()


@QUICK
@given(responses(), BETAS)
def test_returns_to_go_equal_a_naive_loop(data, beta):
    rewards = token_rewards(*data, beta)
    expected = [[sum(row[t:]) for t in range(len(row))] for row in rewards.tolist()]
    torch.testing.assert_close(returns_to_go(rewards), torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)


@QUICK
@given(responses(), BETAS)
def test_the_tokens_sum_to_the_score_minus_beta_times_the_kl_and_so_does_the_first_return(data, beta):
    scores, mask, kl = data
    rewards = token_rewards(scores, mask, kl, beta)
    expected = scores - beta * kl.sum(dim=1)
    torch.testing.assert_close(rewards.sum(dim=1), expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(returns_to_go(rewards)[:, 0], expected, atol=1e-9, rtol=0)


@QUICK
@given(responses())
def test_without_a_kl_every_token_of_a_response_has_its_score_as_return(data):
    scores, mask, _ = data
    expected = torch.where(mask, scores[:, None], 0.0)
    assert torch.equal(returns_to_go(token_rewards(scores, mask, None, 0.1)), expected)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -1e30])
@QUICK
@given(data=responses())
def test_a_kl_on_padding_is_inert(junk, data):
    scores, mask, kl = data
    clean = token_rewards(scores, mask, kl, 0.1)
    dirty = token_rewards(scores, mask, torch.where(mask, kl, junk), 0.1)
    assert torch.equal(dirty, clean)
    assert torch.equal(returns_to_go(dirty), returns_to_go(clean))
    assert (returns_to_go(dirty)[~mask] == 0).all()


@QUICK
@given(responses(), st.integers(1, 3))
def test_more_padding_changes_nothing(data, extra):
    scores, mask, kl = data
    width = mask.shape[1]
    wide_mask, wide_kl = (torch.nn.functional.pad(x, (0, extra)) for x in (mask, kl))
    wide = token_rewards(scores, wide_mask, wide_kl, 0.1)
    assert torch.equal(wide[:, :width], token_rewards(scores, mask, kl, 0.1))
    assert (wide[:, width:] == 0).all()


def test_the_precision_of_the_scores_is_kept():
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert token_rewards(torch.tensor([1.0]), mask, None, 0.1).dtype == torch.float32
    assert token_rewards(torch.tensor([1.0]), mask, torch.zeros(1, 2), 0.1).dtype == torch.float32
