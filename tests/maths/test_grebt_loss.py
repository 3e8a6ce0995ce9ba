"""Group Reward Entropy Bradley-Terry (arXiv 2601.22664, eqs. 5 to 7): worked cases, a naive loop, degenerate groups."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.reward_loss import bradley_terry, grebt

QUICK = settings(max_examples=25, deadline=None)


@st.composite
def spread_groups(draw):
    """Rewards [n, K] in float64 with a spread of at least 0.1 in every group."""
    n, k = draw(st.integers(1, 3)), draw(st.integers(2, 6))
    rows = draw(st.lists(st.lists(st.integers(-50, 50), min_size=k, max_size=k), min_size=n, max_size=n))
    rewards = torch.tensor(rows, dtype=torch.float64) / 10
    rewards[:, 0] = rewards[:, 1:].amax(dim=1) + 0.1
    return rewards


def naive(row: list[float], alpha: float, pick: list[float] | None = None) -> tuple[float, float, float, float]:
    """One group by the paper's formulas: (total, bt, gre, margin)."""
    pick = row if pick is None else pick
    winner = row[max(range(len(row)), key=lambda j: pick[j])]
    loser = row[min(range(len(row)), key=lambda j: pick[j])]
    bt = -math.log(1 / (1 + math.exp(-(winner - loser))))
    mean = sum(row) / len(row)
    std = math.sqrt(sum((r - mean) ** 2 for r in row) / len(row))
    z = [(r - mean) / std if std else 0.0 for r in row]
    weights = [math.exp(value) for value in z]
    p = [w / sum(weights) for w in weights]
    gre = -sum(value * math.log(value) for value in p)
    return (1 - alpha) * bt + alpha * gre, bt, gre, winner - loser


def test_bradley_terry_by_hand():
    # -log sigmoid(log 3) = log(4/3)
    got = bradley_terry(torch.tensor([math.log(3), 0.0, 1000.0, -1000.0]), torch.zeros(4))
    assert got.tolist() == pytest.approx([math.log(4 / 3), math.log(2), 0.0, 1000.0])


def test_grebt_by_hand():
    # rewards 0 and log 3: margin log 3; z = -1, 1; p = 1 / (1 + e^2) = 0.1192, 0.8808; entropy 0.3653
    got = grebt(torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), alpha=0.25)
    assert got.margin.item() == pytest.approx(1.098612, abs=1e-6)
    assert got.bt.item() == pytest.approx(0.287682, abs=1e-6)
    assert got.gre.item() == pytest.approx(0.365334, abs=1e-6)
    assert got.total.item() == pytest.approx(0.75 * 0.287682 + 0.25 * 0.365334, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("n", "k"), [(1, 2), (4, 4), (3, 8), (2, 5)])
def test_grebt_equals_a_naive_loop(n, k, alpha):
    generator = torch.Generator().manual_seed(n + k)
    rewards = torch.randn(n, k, generator=generator, dtype=torch.float64) * 2 + 1
    pick = torch.randn(n, k, generator=generator, dtype=torch.float64)
    for chosen_by in (None, pick):
        got = grebt(rewards, alpha, chosen_by)
        picks = [None] * n if chosen_by is None else chosen_by.tolist()
        expected = list(zip(*(naive(row, alpha, p) for row, p in zip(rewards.tolist(), picks))))
        for name, column in zip(("total", "bt", "gre", "margin"), expected):
            assert getattr(got, name).tolist() == pytest.approx(list(column), abs=1e-9), name


@QUICK
@given(spread_groups(), st.floats(0, 1))
def test_grebt_equals_a_naive_loop_on_any_rewards(rewards, alpha):
    got = grebt(rewards, alpha)
    expected = [naive(row, alpha)[0] for row in rewards.tolist()]
    assert got.total.tolist() == pytest.approx(expected, abs=1e-9)
    assert (got.gre <= math.log(rewards.shape[1]) + 1e-9).all()
    assert (got.margin > 0).all()


def test_the_gradient_is_that_of_finite_differences():
    rewards = torch.tensor([[0.3, -1.2, 2.0, 0.9], [5.0, 4.9, 5.3, 5.1]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r: grebt(r, 0.3).total, rewards)


def test_alpha_zero_is_bradley_terry_alone_and_alpha_one_the_entropy_alone():
    rewards = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    only_bt, only_gre = grebt(rewards, 0.0), grebt(rewards, 1.0)
    torch.testing.assert_close(only_bt.total.detach(), only_bt.bt)
    torch.testing.assert_close(only_gre.total.detach(), only_gre.gre)
    # Bradley-Terry moves the best and the worst only, in opposite directions
    (gradient,) = torch.autograd.grad(only_bt.total.sum(), rewards)
    assert ((gradient != 0).sum(dim=1) == 2).all()
    assert torch.equal(gradient.argmin(dim=1), rewards.argmax(dim=1))
    assert torch.equal(gradient.argmax(dim=1), rewards.argmin(dim=1))
    torch.testing.assert_close(gradient.sum(dim=1), torch.zeros(3).double())


@QUICK
@given(spread_groups(), st.floats(-100, 100), st.floats(0, 1))
def test_a_shift_changes_nothing(rewards, shift, alpha):
    torch.testing.assert_close(grebt(rewards + shift, alpha).total, grebt(rewards, alpha).total, atol=1e-8, rtol=0)


@QUICK
@given(spread_groups(), st.floats(0.1, 50))
def test_the_entropy_ignores_the_scale_and_the_margin_follows_it(rewards, scale):
    plain, scaled = grebt(rewards, 0.3), grebt(scale * rewards, 0.3)
    torch.testing.assert_close(scaled.gre, plain.gre, atol=1e-8, rtol=0)
    torch.testing.assert_close(scaled.margin, scale * plain.margin, atol=1e-8, rtol=1e-8)


def test_descending_the_entropy_sharpens_the_group():
    rewards = torch.tensor([[0.0, 0.1, 0.2, 0.9]], dtype=torch.float64, requires_grad=True)
    before = grebt(rewards, 1.0)
    (gradient,) = torch.autograd.grad(before.total.sum(), rewards)
    after = grebt(rewards.detach() - 0.05 * gradient, 1.0)
    assert after.gre.item() < before.gre.item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 1.0, 17.3, 1e4, -1e4, 33333.3])
def test_equal_rewards_have_exactly_zero_gradient(value, k, dtype):
    rewards = torch.full((2, k), value, dtype=dtype, requires_grad=True)
    for alpha in (0.0, 0.3, 1.0):
        got = grebt(rewards, alpha)
        (gradient,) = torch.autograd.grad(got.total.sum(), rewards)
        assert (gradient == 0).all(), gradient
        assert got.bt.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)
        assert got.gre.tolist() == pytest.approx([math.log(k)] * 2, rel=1e-6)
        assert got.margin.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("k", range(2, 17))
def test_the_rounding_residue_of_equal_rewards_is_no_information(k):
    """The mean of equal numbers is not always that number."""
    values = torch.randn(300, 1, generator=torch.Generator().manual_seed(0)) * 10
    rewards = values.expand(-1, k).contiguous().requires_grad_(True)
    (gradient,) = torch.autograd.grad(grebt(rewards, 0.3).total.sum(), rewards)
    assert (gradient == 0).all()


@pytest.mark.parametrize("value", [0.1, -3.7, 1e4])
def test_rewards_that_differ_in_the_last_bit_are_equal(value):
    """The same response twice in a group may get rewards one bit apart (another place in the batch): no winner there."""
    base = torch.tensor([value])
    up = torch.nextafter(base, torch.tensor([math.inf]))
    rewards = torch.cat([base, up, base, up])[None].requires_grad_(True)
    got = grebt(rewards, 0.3)
    got.total.sum().backward()
    assert (rewards.grad == 0).all()
    assert got.margin.item() == 0
    assert got.gre.item() == pytest.approx(math.log(4))


def test_an_equal_group_does_not_touch_its_neighbour():
    rewards = torch.tensor([[1e4, 1e4, 1e4], [0.0, 1.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(grebt(rewards, 0.3).total.sum(), rewards)
    alone = rewards.detach()[1:].requires_grad_(True)
    (expected,) = torch.autograd.grad(grebt(alone, 0.3).total.sum(), alone)
    assert (gradient[0] == 0).all()
    torch.testing.assert_close(gradient[1:], expected)


def test_nearly_equal_rewards_still_count():
    """A small spread that the float can hold is information, not rounding."""
    rewards = torch.tensor([[1.0, 1.001, 0.999, 1.002]], requires_grad=True)
    (gradient,) = torch.autograd.grad(grebt(rewards, 0.3).total.sum(), rewards)
    assert gradient.isfinite().all()
    assert (gradient != 0).all()


def test_two_rewards_give_a_finite_gradient():
    """With K = 2 the entropy is a constant: only Bradley-Terry is left."""
    rewards = torch.tensor([[0.2, -0.4]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(grebt(rewards, 1.0).total.sum(), rewards)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_pick_chooses_the_pair_and_the_rewards_make_the_loss():
    rewards = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
    got = grebt(rewards, 0.0, pick=torch.tensor([[9.0, 5.0, 7.0]]))
    assert got.margin.item() == -1.0  # winner 1.0, loser 2.0
    got.total.sum().backward()
    # d/dm -log sigmoid(m) = -sigmoid(-m) = -0.7311 at m = -1
    assert rewards.grad[0].tolist() == pytest.approx([-0.731059, 0.731059, 0.0], abs=1e-6)


def test_equal_picks_give_no_pair():
    rewards = torch.tensor([[1.0, 2.0, 4.0]], requires_grad=True)
    got = grebt(rewards, 0.0, pick=torch.zeros(1, 3))
    got.total.sum().backward()
    assert got.margin.item() == 0
    assert (rewards.grad == 0).all()


def test_what_is_reported_carries_no_gradient():
    out = grebt(torch.tensor([[0.0, 1.0]], requires_grad=True), 0.3)
    assert out.total.requires_grad
    assert not (out.bt.requires_grad)
    assert not (out.gre.requires_grad)
    assert not (out.margin.requires_grad)


def preferred(rewards: torch.Tensor, alpha: float, preference: float, **more) -> tuple:
    """grebt with the same preference for every group, and the gradient of its sum."""
    leaf = rewards.clone().requires_grad_(True)
    said = torch.full((len(rewards),), preference, dtype=rewards.dtype)
    out = grebt(leaf, alpha, preference=said, **more)
    return out, torch.autograd.grad(out.total.sum(), leaf)[0]


def test_a_preference_by_hand():
    # margin log 3: -log sigmoid = log(4/3) for the pick and log 4 against it, weighed 0.75 and 0.25
    got = grebt(torch.tensor([[0.0, math.log(3)]]), 0.0, preference=torch.tensor([0.75]))
    assert got.bt.item() == pytest.approx(0.75 * math.log(4 / 3) + 0.25 * math.log(4))
    assert got.total.item() == pytest.approx(got.bt.item())
    assert got.margin.item() == pytest.approx(math.log(3))


@QUICK
@given(spread_groups(), st.floats(0, 1), st.data())
def test_a_preference_equals_a_naive_loop(rewards, alpha, data):
    said = [data.draw(st.floats(0, 1)) for _ in rewards]
    got = grebt(rewards, alpha, preference=torch.tensor(said, dtype=torch.float64))
    for i, (row, p) in enumerate(zip(rewards.tolist(), said)):
        _, _, gre, margin = naive(row, alpha)
        sigmoid = 1 / (1 + math.exp(-margin))
        bt = -p * math.log(sigmoid) - (1 - p) * math.log(1 - sigmoid)
        assert got.bt[i].item() == pytest.approx(bt, abs=1e-8)
        assert got.total[i].item() == pytest.approx((1 - alpha) * bt + alpha * gre, abs=1e-8)


@QUICK
@given(spread_groups(), st.floats(0, 1))
def test_a_preference_of_1_trusts_the_pick(rewards, alpha):
    got, gradient = preferred(rewards, alpha, 1.0)
    leaf = rewards.clone().requires_grad_(True)
    plain = grebt(leaf, alpha)
    for name in ("total", "bt", "gre", "margin"):
        torch.testing.assert_close(getattr(got, name), getattr(plain, name), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.total.sum(), leaf)[0], atol=1e-12, rtol=0)


@QUICK
@given(spread_groups(), st.floats(0, 1))
def test_a_preference_of_0_is_the_loss_of_the_swapped_pair(rewards, alpha):
    """Best and worst change places when the pick has the other sign."""
    leaf = rewards.clone().requires_grad_(True)
    pick = rewards + 1e-6 * torch.arange(rewards.shape[1])  # no ties: the first of equals would win both ways
    swapped = grebt(leaf, alpha, pick=-pick)
    got, gradient = preferred(rewards, alpha, 0.0, pick=pick)
    torch.testing.assert_close(got.total, swapped.total, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.autograd.grad(swapped.total.sum(), leaf)[0], atol=1e-12, rtol=0)
    torch.testing.assert_close(got.margin, -swapped.margin, atol=1e-12, rtol=0)


@QUICK
@given(spread_groups(), st.floats(0, 1))
def test_a_tie_is_symmetric_in_the_sign_of_the_margin_and_pulls_it_to_zero(rewards, alpha):
    pick = rewards + 1e-6 * torch.arange(rewards.shape[1])
    (one, gradient), (other, other_gradient) = (preferred(rewards, alpha, 0.5, pick=p) for p in (pick, -pick))
    torch.testing.assert_close(one.margin, -other.margin, atol=1e-12, rtol=0)
    torch.testing.assert_close(one.total, other.total, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, other_gradient, atol=1e-12, rtol=0)
    assert (one.bt >= math.log(2) - 1e-12).all()  # the least is that of a margin of 0
    _, pull = preferred(rewards, 0.0, 0.5)
    assert (pull.gather(1, rewards.argmax(dim=1, keepdim=True)) > 0).all()  # descending lowers the best


@pytest.mark.parametrize("said", [0.0, 0.2, 0.7, 1.0])
def test_descending_brings_the_margin_to_the_preferences_odds(said):
    """The Bradley-Terry part is least where sigmoid(margin) is the preference."""
    rewards = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    _, gradient = preferred(rewards, 0.0, said)
    # d/dm = sigmoid(m) - p
    slope = 1 / (1 + math.exp(-1.0)) - said
    assert gradient[0].tolist() == pytest.approx([-slope, slope])


@pytest.mark.parametrize("said", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e4])
@pytest.mark.parametrize("k", [2, 3, 7])
def test_equal_rewards_have_exactly_zero_gradient_whatever_a_judge_says(k, value, said):
    for alpha in (0.0, 0.3, 1.0):
        got, gradient = preferred(torch.full((2, k), value), alpha, said, bt_weight=torch.tensor([1.0, 4.0]))
        assert (gradient == 0).all()
        assert got.bt.tolist() == pytest.approx([math.log(2)] * 2, rel=1e-6)
        assert got.total.isfinite().all()


def test_the_gradient_of_a_preference_is_that_of_finite_differences():
    rewards = torch.tensor([[0.3, -1.2, 2.0, 0.9], [5.0, 4.9, 5.3, 5.1]], dtype=torch.float64, requires_grad=True)
    said, weight = torch.tensor([0.2, 0.5], dtype=torch.float64), torch.tensor([3.0, 0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda r: grebt(r, 0.3, preference=said, bt_weight=weight).total, rewards)


@QUICK
@given(spread_groups(), st.floats(0, 1), st.floats(0, 5))
def test_bt_weight_weighs_the_bradley_terry_term_and_not_the_entropy(rewards, alpha, weight):
    plain = grebt(rewards, alpha)
    got = grebt(rewards, alpha, bt_weight=torch.full((len(rewards),), weight, dtype=torch.float64))
    torch.testing.assert_close(got.total, (1 - alpha) * weight * plain.bt + alpha * plain.gre, atol=1e-12, rtol=0)
    for name in ("bt", "gre", "margin"):
        assert torch.equal(getattr(got, name), getattr(plain, name)), name


def test_a_group_that_the_judge_was_not_asked_about_learns_from_its_entropy_alone():
    rewards = torch.tensor([[0.0, 0.5, 3.0], [1.0, 2.0, -1.0]], dtype=torch.float64)
    leaf, alone = rewards.clone().requires_grad_(True), rewards.clone().requires_grad_(True)
    said, asked = torch.tensor([0.5, 1.0], dtype=torch.float64), torch.tensor([0.0, 2.0], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(grebt(leaf, 0.3, preference=said, bt_weight=asked).total.sum(), leaf)
    (entropy_only,) = torch.autograd.grad(0.3 * grebt(alone, 1.0).total.sum(), alone)
    torch.testing.assert_close(gradient[0], entropy_only[0])
    assert not torch.allclose(gradient[1], entropy_only[1])


def test_weights_of_the_two_terms_by_group():
    rewards = torch.tensor([[0.0, 1.0, 3.0], [2.0, 0.5, 1.0]], dtype=torch.float64)
    one = grebt(rewards, 0.3)
    both = grebt(rewards, 0.3, bt_weight=torch.tensor([2.0, 0.0]), gre_weight=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(both.total, torch.stack([2 * 0.7 * one.bt[0], 0.3 * one.gre[1]]))
