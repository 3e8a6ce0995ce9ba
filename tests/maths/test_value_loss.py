"""The critic's clipped squared error: worked cases, a naive loop, gradients, padding."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r2m_cli.maths.masking import length_mask
from r2m_cli.maths.value_loss import value_loss

QUICK = settings(max_examples=25, deadline=None)

LENGTHS = (3, 1, 5, 2)
ONE = torch.tensor([[True]])


def inputs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """values, old values, returns, mask: four responses of different lengths, 0 on padding; float64."""
    generator = torch.Generator().manual_seed(seed)
    mask = length_mask(torch.tensor(LENGTHS), max(LENGTHS))
    noise = torch.randn(3, *mask.shape, generator=generator, dtype=torch.float64)
    old = noise[0]
    values, old, returns = torch.where(mask, torch.stack([old + 0.3 * noise[1], old, noise[2]]), 0.0)
    return values, old, returns, mask


def naive(values, old, returns, mask, clip) -> tuple[list[float], list[float]]:
    """Token by token: (total, clipped)."""
    totals, shares = [], []
    for b in range(len(mask)):
        errors, cut = [], 0
        for t in range(mask.shape[1]):
            if not mask[b, t]:
                continue
            v, v_old, g = float(values[b, t]), float(old[b, t]), float(returns[b, t])
            error = held = (v - g) ** 2
            if clip > 0 and abs(v - v_old) > clip:
                held = (v_old + math.copysign(clip, v - v_old) - g) ** 2
            errors.append(0.5 * max(error, held))
            cut += held > error
        totals.append(sum(errors) / len(errors))
        shares.append(cut / len(errors))
    return totals, shares


def gradient_at(value: float, old: float, target: float, clip: float) -> float:
    leaf = torch.tensor([[value]], requires_grad=True)
    value_loss(leaf, torch.tensor([[old]]), torch.tensor([[target]]), ONE, clip).total.sum().backward()
    return leaf.grad.item()


@pytest.mark.parametrize(
    ("value", "total", "clipped"),
    [
        (1.25, 0.5 * 2.75**2, 0.0),  # a quarter towards the return of 4: inside the region
        (2.0, 0.5 * 2.5**2, 1.0),  # two units towards it count as half a unit: 1.5 is still 2.5 away
        (0.0, 0.5 * 4.0**2, 0.0),  # what moved away has its whole error: 4, not the 3.5 of the value held at 0.5
        (7.5, 0.5 * 3.5**2, 0.0),  # beyond the return: 3.5 away, more than the held 2.5
    ],
)
def test_the_clip_by_hand(value, total, clipped):
    # the old value is 1, the return 4, the clip 1/2
    got = value_loss(torch.tensor([[value]]), torch.tensor([[1.0]]), torch.tensor([[4.0]]), ONE, 0.5)
    assert got.total.item() == pytest.approx(total)
    assert got.clipped.item() == clipped


def test_the_mean_over_a_response_by_hand():
    # errors 1, 3 (and 100 on padding): (1 + 9) / 2 / 2; the second response has the error 2: 4 / 2
    values, zeros = torch.tensor([[1.0, 3.0, 100.0], [2.0, 100.0, 100.0]]), torch.zeros(2, 3)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    got = value_loss(values, zeros, zeros, mask, 0.0)
    assert got.total.tolist() == [2.5, 2.0]
    assert got.clipped.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("clip", [0.0, 0.1, 0.3, 10.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_naive_loop(seed, clip):
    data = inputs(seed)
    got = value_loss(*data, clip)
    total, _ = naive(*data, clip)
    assert got.total.tolist() == pytest.approx(total, abs=1e-12)


@QUICK
@given(st.integers(0, 1000), st.floats(0.001, 0.5))
def test_equals_a_naive_loop_whatever_the_clip(seed, clip):
    data = inputs(seed)
    assert value_loss(*data, clip).total.tolist() == pytest.approx(naive(*data, clip)[0], abs=1e-12)


@QUICK
@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_clipped_share_equals_a_naive_loop(seed, clip):
    """In sixty-fourths, where the floats are exact."""
    values, old, returns, mask = inputs(seed)
    data = [(x * 64).round() / 64 for x in (values, old, returns)]
    _, share = naive(*data, mask, clip / 64)
    assert value_loss(*data, mask, clip / 64).clipped.tolist() == pytest.approx(share, abs=1e-6)


@QUICK
@given(st.integers(0, 1000))
def test_without_a_clip_or_with_one_that_nothing_reaches_it_is_half_the_squared_error(seed):
    values, old, returns, mask = inputs(seed)
    plain = [
        0.5 * torch.nn.functional.mse_loss(values[b, :length], returns[b, :length]).item()
        for b, length in enumerate(LENGTHS)
    ]
    unclipped = value_loss(values, old, returns, mask, 0.0)
    assert unclipped.total.tolist() == pytest.approx(plain, abs=1e-12)
    assert unclipped.clipped.tolist() == [0.0] * len(LENGTHS)
    assert value_loss(values, old, returns, mask, 100.0).total.tolist() == pytest.approx(plain, abs=1e-12)


@QUICK
@given(st.integers(0, 1000), st.floats(0.001, 1))
def test_the_clip_never_lowers_the_loss(seed, clip):
    data = inputs(seed)
    assert (value_loss(*data, clip).total >= value_loss(*data, 0.0).total - 1e-12).all()


@pytest.mark.parametrize(("value", "target"), [(2.0, 4.0), (0.0, -4.0)])
def test_what_moved_towards_the_return_beyond_the_clip_has_no_gradient(value, target):
    assert gradient_at(value, 1.0, target, clip=0.5) == 0
    assert gradient_at(value, 1.0, target, clip=0.0) == value - target


@pytest.mark.parametrize(
    ("value", "target"),
    [
        (1.25, 4.0),  # inside the region
        (0.0, 4.0),  # the wrong way
        (7.5, 4.0),  # past the return
        (1.0, 4.0),  # not moved at all: the first pass
    ],
)
def test_everything_else_keeps_the_gradient_of_the_squared_error(value, target):
    assert gradient_at(value, 1.0, target, clip=0.5) == pytest.approx(value - target)


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_gradient_is_that_of_finite_differences(clip):
    values, old, returns, mask = inputs(3)
    assert torch.autograd.gradcheck(
        lambda v: value_loss(v, old, returns, mask, clip).total, values.requires_grad_(True)
    )


@pytest.mark.parametrize("junk", [7.0, -1e6])
@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_padding_is_inert_in_value_and_gradient(clip, junk):
    values, old, returns, mask = inputs(4)
    results = []
    for filler in (0.0, junk):
        leaf = torch.where(mask, values, filler).requires_grad_(True)
        out = value_loss(leaf, *(torch.where(mask, x, -filler) for x in (old, returns)), mask, clip)
        out.total.sum().backward()
        results.append((out, leaf.grad))
    (clean, gradient), (got, dirty_gradient) = results
    assert torch.equal(got.total, clean.total)
    assert torch.equal(got.clipped, clean.clipped)
    assert torch.equal(dirty_gradient, gradient)
    assert (dirty_gradient[~mask] == 0).all()


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_nan_on_padding_does_not_reach_the_loss(clip):
    values, old, returns, mask = inputs(5)
    clean = value_loss(values, old, returns, mask, clip)
    got = value_loss(*(torch.where(mask, x, math.nan) for x in (values, old, returns)), mask, clip)
    assert torch.equal(got.total, clean.total)
    assert torch.equal(got.clipped, clean.clipped)


def test_what_is_reported_carries_no_gradient():
    values, *rest = inputs(0)
    out = value_loss(values.requires_grad_(True), *rest, 0.2)
    assert out.total.requires_grad
    assert not out.clipped.requires_grad
