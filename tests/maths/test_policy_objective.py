"""The clipped objective with its KL: worked cases, naive loops, gradients."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r2m_cli.maths.masking import length_mask
from r2m_cli.maths.policy_loss import LEVELS, policy_loss

QUICK = settings(max_examples=25, deadline=None)

LENGTHS = (3, 1, 5, 2)


def loss_of(logp, old, ref, mask, advantages, level="sequence", low=0.2, high=0.2, beta=0.05, estimator="k3", **more):
    return policy_loss(
        logp,
        old,
        ref,
        mask,
        advantages,
        level=level,
        clip_low=low,
        clip_high=high,
        beta=beta,
        estimator=estimator,
        **more,
    )


def inputs(seed: int, spread: float = 0.3) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """logp, old_logp, ref_logp, mask, advantages: four sequences of different lengths, 0 on padding; float64."""
    generator = torch.Generator().manual_seed(seed)
    mask = length_mask(torch.tensor(LENGTHS), max(LENGTHS))

    def noise() -> Tensor:
        return torch.randn(mask.shape, generator=generator, dtype=torch.float64) * spread

    old = -1 + noise()
    logp, old, ref = (torch.where(mask, x, 0.0) for x in (old + noise(), old, old + noise()))
    return logp, old, ref, mask, torch.tensor([1.5, -0.7, 0.4, -2.0], dtype=torch.float64)


def kl_of(estimator: str, p: float, q: float) -> float:
    d = p - q
    return {"k1": d, "k2": d * d / 2, "k3": math.exp(-d) - 1 + d}[estimator]


def naive(logp, old, ref, mask, advantages, level, low, high, beta, estimator, dual=math.inf):
    """Response by response, token by token: lists (total, kl, ratio, clipped). Advantages [B], or [B, R] by token."""
    columns = []
    for b in range(len(advantages)):
        where = [j for j in range(mask.shape[1]) if mask[b, j]]
        kls = [kl_of(estimator, float(logp[b, j]), float(ref[b, j])) for j in where]
        if level == "sequence":
            ratios = [math.exp(sum(float(logp[b, j]) - float(old[b, j]) for j in where))]
            kl = sum(kls)
        elif level == "sequence_mean":
            ratios = [math.exp(sum(float(logp[b, j]) - float(old[b, j]) for j in where) / len(where))]
            kl = sum(kls) / len(kls)
        else:
            ratios = [math.exp(float(logp[b, j]) - float(old[b, j])) for j in where]
            kl = sum(kls) / len(kls)
        per_ratio = [float(advantages[b, j] if advantages.dim() == 2 else advantages[b]) for j in where]
        surrogate, cut = 0.0, 0
        for ratio, advantage in zip(ratios, per_ratio):
            clipped = min(max(ratio, 1 - low), 1 + high)
            objective = min(ratio * advantage, clipped * advantage)
            if advantage < 0:
                objective = max(objective, dual * advantage)
            surrogate += objective / len(ratios)
            cut += objective != ratio * advantage
        total = -surrogate + beta * kl
        columns.append((total, kl, sum(ratios) / len(ratios), cut / len(ratios)))
    return [list(column) for column in zip(*columns)]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.0, 2.0, -2.0, 0.0),
        (1.1, 2.0, -2.2, 0.0),  # inside the region
        (1.5, 2.0, -2.4, 1.0),  # gain above 1 + 0.2 is cut off: -1.2 * 2
        (0.5, 2.0, -1.0, 0.0),  # what is worse than the clip stays: -0.5 * 2
        (0.5, -2.0, 1.6, 1.0),  # gain below 1 - 0.2 is cut off: 0.8 * 2
        (1.5, -2.0, 3.0, 0.0),
    ],
)
@pytest.mark.parametrize("level", LEVELS)
def test_the_clip_by_hand(level, ratio, advantage, loss, clipped):
    old = torch.tensor([[-1.0]])
    got = loss_of(old + math.log(ratio), old, None, torch.tensor([[True]]), torch.tensor([advantage]), level)
    assert got.total.item() == pytest.approx(loss, abs=1e-6)
    assert got.ratio.item() == pytest.approx(ratio, abs=1e-6)
    assert got.clipped.item() == clipped
    assert got.kl.item() == 0


def test_two_tokens_by_hand():
    # ratios 2 and 1/4 by token, 1/2 of the sequence; A = 1; log-ratios to the reference are log 2 and 0
    log2 = math.log(2)
    old = torch.tensor([[-1.0, -1.0]])
    logp = old + torch.tensor([[log2, -2 * log2]])
    ref = logp - torch.tensor([[log2, 0.0]])
    mask, advantages = torch.ones(1, 2, dtype=torch.bool), torch.tensor([1.0])

    sequence = loss_of(logp, old, ref, mask, advantages, "sequence", beta=0.1, estimator="k1")
    assert sequence.total.item() == pytest.approx(-0.5 + 0.1 * log2)
    assert sequence.kl.item() == pytest.approx(log2)

    mean = loss_of(logp, old, ref, mask, advantages, "sequence_mean", beta=0.1, estimator="k1")
    assert mean.ratio.item() == pytest.approx(0.5**0.5)  # the square root: two tokens
    assert mean.total.item() == pytest.approx(-(0.5**0.5) + 0.1 * log2 / 2)

    token = loss_of(logp, old, ref, mask, advantages, "token", beta=0.1, estimator="k1")
    assert token.total.item() == pytest.approx(-(1.2 + 0.25) / 2 + 0.1 * log2 / 2)
    assert token.ratio.item() == pytest.approx((2 + 0.25) / 2)
    assert token.clipped.item() == 0.5


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_naive_loop(level, estimator, seed):
    data = inputs(seed)
    got = loss_of(*data, level, 0.1, 0.3, 0.07, estimator)
    expected = naive(*data, level, 0.1, 0.3, 0.07, estimator)
    for name, column in zip(("total", "kl", "ratio", "clipped"), expected):
        assert getattr(got, name).tolist() == pytest.approx(column, rel=1e-8, abs=1e-8), name


@QUICK
@given(
    st.sampled_from(LEVELS), st.integers(0, 1000), st.floats(0, 0.9), st.floats(0, 2), st.floats(0, 1),
    st.sampled_from(["k1", "k2", "k3"]), st.none() | st.floats(3.1, 10), st.floats(0.1, 2),
)  # fmt: skip
def test_equals_a_naive_loop_whatever_the_settings(level, seed, low, high, beta, estimator, dual, spread):
    data = inputs(seed, spread)
    got = loss_of(*data, level, low, high, beta, estimator, dual_clip=dual)
    expected = naive(*data, level, low, high, beta, estimator, math.inf if dual is None else dual)
    assert got.total.tolist() == pytest.approx(expected[0], rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("level", LEVELS)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(level):
    _, old, _, mask, advantages = inputs(0)
    logp = old.clone().requires_grad_(True)
    got = loss_of(logp, old, None, mask, advantages, level)
    (gradient,) = torch.autograd.grad(got.total.sum(), logp)
    # d(-A log pi)/d log pi of each token, divided by the length where the loss is a mean over tokens
    weight = torch.ones(len(LENGTHS)).double() if level == "sequence" else 1 / torch.tensor(LENGTHS).double()
    torch.testing.assert_close(gradient, -(advantages * weight)[:, None] * mask)
    assert got.ratio.tolist() == [1.0] * 4
    assert got.clipped.tolist() == [0.0] * 4


@pytest.mark.parametrize(("ratio", "advantage"), [(1.5, 1.0), (0.5, -1.0)])
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_clipped_has_no_gradient(level, ratio, advantage):
    old = torch.tensor([[-1.0]])
    logp = (old + math.log(ratio)).requires_grad_(True)
    loss_of(logp, old, None, torch.tensor([[True]]), torch.tensor([advantage]), level).total.sum().backward()
    assert logp.grad.item() == 0


@pytest.mark.parametrize("advantage", [1.0, 0.0])
@pytest.mark.parametrize("level", LEVELS)
def test_a_ratio_beyond_fp32_is_clipped_as_any_other(level, advantage):
    old = torch.tensor([[-100.0]])
    logp = (old + 95).requires_grad_(True)
    got = loss_of(logp, old, None, torch.tensor([[True]]), torch.tensor([advantage]), level)
    got.total.sum().backward()
    assert got.total.item() == pytest.approx(-1.2 * advantage)
    assert logp.grad.item() == 0


@pytest.mark.parametrize("log_ratio", [math.log(5), 95.0])  # the second is beyond fp32
@pytest.mark.parametrize("level", LEVELS)
def test_the_dual_clip_bounds_the_loss_where_the_advantage_is_negative(level, log_ratio):
    old = torch.tensor([[-100.0]])
    logp = (old + log_ratio).requires_grad_(True)
    got = loss_of(logp, old, None, torch.tensor([[True]]), torch.tensor([-2.0]), level, dual_clip=3.0)
    got.total.sum().backward()
    assert got.total.item() == pytest.approx(6.0)  # 3 x 2, not 5 x 2 and not infinite
    assert got.clipped.item() == 1
    assert logp.grad.item() == 0


@pytest.mark.parametrize(("ratio", "advantage"), [(2.9, -1.0), (0.1, -1.0), (5.0, 1.0), (1.0, -1.0)])
@pytest.mark.parametrize("level", LEVELS)
def test_the_dual_clip_changes_nothing_else(level, ratio, advantage):
    def run(dual):
        old = torch.tensor([[-1.0]])
        logp = (old + math.log(ratio)).requires_grad_(True)
        got = loss_of(logp, old, None, torch.tensor([[True]]), torch.tensor([advantage]), level, dual_clip=dual)
        got.total.sum().backward()
        return got.total.item(), got.clipped.item(), logp.grad.item()

    assert run(3.0) == run(None)


def test_a_ratio_per_mean_token_does_not_grow_with_the_length():
    # every token is 10% likelier than before: over 256 tokens the sequence is 4e10 times as likely
    old = torch.full((1, 256), -2.0, dtype=torch.float64)
    whole = torch.ones(1, 256, dtype=torch.bool)
    got = {
        level: loss_of(old + math.log(1.1), old, None, whole, torch.tensor([-1.0]), level, high=0.2).ratio.item()
        for level in LEVELS
    }
    assert got["sequence_mean"] == pytest.approx(1.1) == got["token"]
    assert got["sequence"] == pytest.approx(1.1**256)


@pytest.mark.parametrize(("ratio", "advantage"), [(1.5, -1.0), (0.5, 1.0)])
@pytest.mark.parametrize("level", LEVELS)
def test_what_went_the_wrong_way_keeps_its_gradient_beyond_the_clip(level, ratio, advantage):
    old = torch.tensor([[-1.0]])
    logp = (old + math.log(ratio)).requires_grad_(True)
    loss_of(logp, old, None, torch.tensor([[True]]), torch.tensor([advantage]), level).total.sum().backward()
    assert logp.grad.item() == pytest.approx(-ratio * advantage)


@pytest.mark.parametrize("level", LEVELS)
def test_beta_weighs_the_kl_in_value_and_gradient(level):
    logp, old, ref, mask, advantages = inputs(1)

    def run(beta, reference):
        leaf = logp.clone().requires_grad_(True)
        out = loss_of(leaf, old, reference, mask, advantages, level, beta=beta)
        return out, torch.autograd.grad(out.total.sum(), leaf)[0]

    (plain, g0), (at_zero, gz), (once, g1), (twice, g2) = run(0.3, None), run(0.0, ref), run(0.3, ref), run(0.6, ref)
    torch.testing.assert_close(plain.total, at_zero.total)
    torch.testing.assert_close(g0, gz)
    torch.testing.assert_close(once.total - plain.total, 0.3 * once.kl)
    torch.testing.assert_close(twice.total - plain.total, 0.6 * once.kl)
    torch.testing.assert_close(g2 - g0, 2 * (g1 - g0))
    assert (g1 - g0).abs().max() > 1e-3


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("junk", [7.0, -50.0])
def test_masked_tokens_are_inert(level, estimator, junk):
    logp, old, ref, mask, advantages = inputs(2)
    results = []
    for dirty in (False, True):
        leaf = (torch.where(mask, logp, junk) if dirty else logp.clone()).requires_grad_(True)
        o, r = (torch.where(mask, x, -junk) if dirty else x for x in (old, ref))
        out = loss_of(leaf, o, r, mask, advantages, level, estimator=estimator)
        out.total.sum().backward()
        results.append((out, leaf.grad))
    (clean, gradient), (got, dirty_gradient) = results
    for name in ("total", "kl", "ratio", "clipped"):
        assert torch.equal(getattr(got, name), getattr(clean, name)), name
    assert torch.equal(dirty_gradient, gradient)
    assert (dirty_gradient[~mask] == 0).all()


@pytest.mark.parametrize("level", LEVELS)
def test_nan_in_masked_old_and_reference_values_does_not_reach_the_loss(level):
    logp, old, ref, mask, advantages = inputs(3)
    clean = loss_of(logp, old, ref, mask, advantages, level)
    o, r = (torch.where(mask, x, math.nan) for x in (old, ref))
    got = loss_of(logp, o, r, mask, advantages, level)
    for name in ("total", "kl", "ratio", "clipped"):
        assert torch.equal(getattr(got, name), getattr(clean, name)), name


def test_what_is_reported_carries_no_gradient():
    logp, *rest = inputs(0)
    out = loss_of(logp.requires_grad_(True), *rest)
    assert out.total.requires_grad
    assert not (out.kl.requires_grad)
    assert not (out.ratio.requires_grad)
    assert not (out.clipped.requires_grad)


def test_another_level_is_an_error():
    with pytest.raises(ValueError, match="level is one of sequence, sequence_mean, token"):
        loss_of(*inputs(0), level="word")


def token_advantages(seed: int) -> Tensor:
    """[B, R], junk on padding."""
    mask = inputs(seed)[3]
    generator = torch.Generator().manual_seed(seed + 1000)
    return torch.where(mask, torch.randn(mask.shape, generator=generator, dtype=torch.float64), 1e6)


def test_two_tokens_with_advantages_of_their_own_by_hand():
    # ratios 2 and 1/4: 2 * 1 is cut to 1.2 * 1, and 1/4 * (-2) to 0.8 * (-2); the mean of 1.2 and -1.6 is -0.2
    old = torch.tensor([[-1.0, -1.0]])
    logp = old + torch.tensor([[math.log(2), math.log(0.25)]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    got = loss_of(logp, old, None, mask, torch.tensor([[1.0, -2.0]]), "token")
    assert got.total.item() == pytest.approx(0.2)
    assert got.clipped.item() == 1.0


@QUICK
@given(st.integers(0, 1000), st.floats(0, 0.9), st.floats(0, 2), st.floats(0, 1), st.sampled_from(["k1", "k2", "k3"]))
def test_token_advantages_equal_a_naive_loop(seed, low, high, beta, estimator):
    logp, old, ref, mask, _ = inputs(seed)
    data = (logp, old, ref, mask, token_advantages(seed), "token", low, high, beta, estimator)
    got = loss_of(*data)
    for name, column in zip(("total", "kl", "ratio", "clipped"), naive(*data)):
        assert getattr(got, name).tolist() == pytest.approx(column, rel=1e-7, abs=1e-7), name  # shares are float32


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_one_advantage_for_all_tokens_is_that_of_the_response(seed):
    logp, old, ref, mask, advantages = inputs(seed)
    results = []
    for form in (advantages, advantages[:, None].expand(mask.shape)):
        leaf = logp.clone().requires_grad_(True)
        out = loss_of(leaf, old, ref, mask, form, "token")
        out.total.sum().backward()
        results.append((out, leaf.grad))
    (whole, gradient), (spread, spread_gradient) = results
    for name in ("total", "kl", "ratio", "clipped"):
        assert torch.equal(getattr(spread, name), getattr(whole, name)), name
    assert torch.equal(spread_gradient, gradient)


def test_at_ratio_one_every_token_follows_its_own_advantage():
    _, old, _, mask, _ = inputs(0)
    advantages = token_advantages(0)
    logp = old.clone().requires_grad_(True)
    loss_of(logp, old, None, mask, advantages, "token").total.sum().backward()
    expected = torch.where(mask, -advantages / torch.tensor(LENGTHS)[:, None], 0.0)
    torch.testing.assert_close(logp.grad, expected)


@pytest.mark.parametrize("junk", [0.0, -1e6, math.inf, math.nan])
def test_advantages_on_padding_are_inert_in_value_and_gradient(junk):
    logp, old, ref, mask, _ = inputs(1)
    results = []
    for advantages in (token_advantages(1), torch.where(mask, token_advantages(1), junk)):
        leaf = logp.clone().requires_grad_(True)
        out = loss_of(leaf, old, ref, mask, advantages, "token")
        out.total.sum().backward()
        results.append((out, leaf.grad))
    (clean, gradient), (got, dirty_gradient) = results
    for name in ("total", "kl", "ratio", "clipped"):
        assert torch.equal(getattr(got, name), getattr(clean, name)), name
    assert torch.equal(dirty_gradient, gradient)


@pytest.mark.parametrize("level", LEVELS)
def test_the_entropy_bonus_by_hand(level):
    # the mean entropy of (1 + 3) / 2 = 2 nats, a tenth of it; the response's junk on padding does not count
    old = torch.tensor([[-1.0, -1.0, 0.0]])
    mask, entropy = torch.tensor([[True, True, False]]), torch.tensor([[1.0, 3.0, 50.0]])
    plain = loss_of(old, old, None, mask, torch.tensor([0.7]), level)
    got = loss_of(old, old, None, mask, torch.tensor([0.7]), level, entropy=entropy, entropy_bonus=0.1)
    assert got.total.item() == pytest.approx(-0.7 - 0.2)
    for name in ("kl", "ratio", "clipped"):
        assert torch.equal(getattr(got, name), getattr(plain, name)), name


@pytest.mark.parametrize("level", LEVELS)
def test_descending_the_loss_raises_the_entropy_of_every_token(level):
    data = inputs(0)
    mask = data[3]
    entropy = torch.ones(mask.shape, dtype=torch.float64, requires_grad=True)
    loss_of(*data, level, entropy=entropy, entropy_bonus=0.5).total.sum().backward()
    torch.testing.assert_close(entropy.grad, torch.where(mask, -0.5 / torch.tensor(LENGTHS)[:, None].double(), 0.0))


def test_a_step_along_the_entropy_bonus_flattens_a_distribution():
    """Through the logits, with no advantage: the bonus alone moves the policy."""
    logits = torch.tensor([2.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)

    def entropy_of(x: Tensor) -> Tensor:
        return torch.distributions.Categorical(logits=x).entropy()

    logp = logits.log_softmax(0)[:1].view(1, 1)
    mask, nothing = torch.tensor([[True]]), torch.zeros(1, dtype=torch.float64)
    entropy = entropy_of(logits).view(1, 1)
    out = loss_of(logp, logp.detach(), None, mask, nothing, entropy=entropy, entropy_bonus=1.0)
    (gradient,) = torch.autograd.grad(out.total.sum(), logits)
    assert entropy_of(logits.detach() - 0.1 * gradient) > entropy_of(logits.detach()) + 1e-3


@pytest.mark.parametrize("level", LEVELS)
def test_no_entropy_and_a_bonus_of_zero_are_the_same(level):
    data = inputs(2)
    with_entropy = loss_of(*data, level, entropy=torch.rand(data[3].shape).double(), entropy_bonus=0.0)
    assert torch.equal(with_entropy.total, loss_of(*data, level).total)


def test_nan_entropy_on_padding_is_inert_in_value_and_gradient():
    data = inputs(3)
    mask = data[3]
    results = []
    for junk in (0.0, math.nan):
        entropy = torch.where(mask, 1.5, junk).double().requires_grad_(True)
        out = loss_of(*data, entropy=entropy, entropy_bonus=0.3)
        out.total.sum().backward()
        results.append((out.total, entropy.grad))
    (clean, gradient), (got, dirty_gradient) = results
    assert torch.equal(got, clean)
    assert torch.equal(dirty_gradient, gradient)
