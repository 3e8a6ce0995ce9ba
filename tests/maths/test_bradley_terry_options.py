"""Bradley-Terry with centring: worked cases, a naive loop, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.reward_loss import bradley_terry

QUICK = settings(max_examples=40, deadline=None)
REWARD = st.floats(-20, 20)


def test_centring_by_hand():
    # log(4/3) from the difference, and 0.01 * (2 + log 3 + 2)^2 from the sum
    got = bradley_terry(torch.tensor([2 + math.log(3)]), torch.tensor([2.0]), centring=0.01)
    assert got.item() == pytest.approx(math.log(4 / 3) + 0.01 * (4 + math.log(3)) ** 2)


def test_centring_is_trls_centre_rewards_coefficient():
    """RewardTrainer: loss + center_rewards_coefficient * mean((rewards_chosen + rewards_rejected) ** 2)."""
    generator = torch.Generator().manual_seed(0)
    chosen, rejected = torch.randn(2, 9, generator=generator)
    trl = -torch.nn.functional.logsigmoid(chosen - rejected).mean() + 0.3 * torch.mean((chosen + rejected) ** 2)
    torch.testing.assert_close(bradley_terry(chosen, rejected, centring=0.3).mean(), trl)


@QUICK
@given(st.lists(st.tuples(REWARD, REWARD), min_size=1, max_size=5), st.floats(0, 1))
def test_it_equals_a_naive_loop(pairs, centring):
    chosen, rejected = torch.tensor(pairs, dtype=torch.float64).T
    expected = [math.log1p(math.exp(-(w - r))) + centring * (w + r) ** 2 for w, r in pairs]
    assert bradley_terry(chosen, rejected, centring).tolist() == pytest.approx(expected, abs=1e-12)


def test_nothing_changes_without_it():
    chosen, rejected = torch.randn(2, 100, generator=torch.Generator().manual_seed(1)) * 10
    plain = -torch.nn.functional.logsigmoid(chosen - rejected)
    assert torch.equal(bradley_terry(chosen, rejected), plain)
    assert torch.equal(bradley_terry(chosen, rejected, 0.0), plain)


def test_an_infinite_reward_without_centring_is_not_made_nan():
    assert bradley_terry(torch.tensor(math.inf), torch.tensor(0.0)).item() == 0.0


def test_only_centring_sees_a_shift_and_pulls_back_to_zero():
    chosen, rejected = torch.tensor([1.0, 3.0], dtype=torch.float64), torch.tensor([0.5, 3.5], dtype=torch.float64)
    shift = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    (plain,) = torch.autograd.grad(bradley_terry(chosen + shift, rejected + shift).sum(), shift)
    assert abs(plain.item()) < 1e-12
    (pulled,) = torch.autograd.grad(bradley_terry(chosen + shift, rejected + shift, centring=0.1).sum(), shift)
    # d/ds 0.1 * (1.5 + 2s)^2 + 0.1 * (6.5 + 2s)^2 at s = 2: 0.1 * 2 * 2 * (5.5 + 10.5)
    assert pulled.item() == pytest.approx(6.4)


def test_the_gradient_is_that_of_finite_differences():
    pairs = torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: bradley_terry(p[0], p[1], 0.2), pairs)
