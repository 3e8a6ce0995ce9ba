"""Scaling and whitening by the moments of the global batch: worked cases, numpy over uneven ranks, constant batches."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r2m_cli.maths.advantages import moments, normalise
from r2m_cli.maths.masking import length_mask

QUICK = settings(max_examples=40, deadline=None)

FLOORS = st.sampled_from([1e-6, 1e-2, 1.0, 50.0])


@st.composite
def batches(draw):
    """Values [B, R] in float64 (hundredths between -10 and 10, junk on padding) and their mask; no row is empty."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 5), min_size=1, max_size=8)))
    mask = length_mask(lengths, int(lengths.max()))
    numbers = draw(st.lists(st.integers(-1000, 1000), min_size=mask.numel(), max_size=mask.numel()))
    values = torch.tensor(numbers, dtype=torch.float64).view(mask.shape) / 100
    return torch.where(mask, values, 1e6), mask


def parts(draw_from: st.DataObject, size: int) -> list[slice]:
    """Two to four consecutive parts of `size` rows, uneven, some of them possibly empty."""
    cuts = sorted(draw_from.draw(st.lists(st.integers(0, size), min_size=1, max_size=3)))
    return [slice(a, b) for a, b in zip([0, *cuts], [*cuts, size])]


def whitened(values: Tensor, mask: Tensor, floor: float, centre: bool) -> np.ndarray:
    """numpy over all valid values at once, in one flat array."""
    flat = values[mask].numpy()
    return (flat - flat.mean() * centre) / max(flat.std(), floor)


def test_moments_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert moments(values).tolist() == [4.0, 10.0, 30.0]
    assert moments(values, torch.tensor([[True, False], [True, True]])).tolist() == [3.0, 8.0, 26.0]
    assert moments(values, torch.zeros(2, 2, dtype=torch.bool)).tolist() == [0.0, 0.0, 0.0]


def test_scaling_by_hand():
    # mean 0, population variance (1 + 1 + 9 + 9) / 4 = 5
    values = torch.tensor([[1.0, -1.0], [3.0, -3.0]])
    torch.testing.assert_close(normalise(values, moments(values), 1e-2, centre=False), values / math.sqrt(5))


def test_whitening_by_hand():
    # 0, 2, 4, 10 without the last: mean 2, population variance (4 + 0 + 4) / 3; the 10 is padding
    values, mask = torch.tensor([[0.0, 2.0], [4.0, 10.0]]), torch.tensor([[True, True], [True, False]])
    got = normalise(values, moments(values, mask), 1e-2, centre=True)
    std = math.sqrt(8 / 3)
    torch.testing.assert_close(got[mask], torch.tensor([-2 / std, 0.0, 2 / std]))


def test_scaling_keeps_the_mean_in_the_standard_deviation_apart():
    # mean 5, deviations of 1: without centring 4 and 6 stay, in units of the deviation
    values = torch.tensor([4.0, 6.0])
    assert normalise(values, moments(values), 1e-2, centre=False).tolist() == [4.0, 6.0]
    assert normalise(values, moments(values), 1e-2, centre=True).tolist() == [-1.0, 1.0]


@QUICK
@given(batches(), FLOORS, st.booleans(), st.data())
def test_uneven_ranks_with_summed_moments_give_what_numpy_gives_over_the_whole_batch(batch, floor, centre, data):
    values, mask = batch
    ranks = parts(data, len(values))
    sums = sum(moments(values[rank], mask[rank]) for rank in ranks)
    got = torch.cat([normalise(values[rank], sums, floor, centre)[mask[rank]] for rank in ranks])
    # a variance from sums of squares is exact to about 1e-13 here: 3e-7 in the deviation where that is near 0
    np.testing.assert_allclose(got.numpy(), whitened(values, mask, floor, centre), atol=1e-6, rtol=1e-6)


@QUICK
@given(batches(), st.booleans())
def test_nan_on_padding_is_inert(batch, centre):
    values, mask = batch
    dirty = torch.where(mask, values, math.nan)
    assert torch.equal(moments(dirty, mask), moments(values, mask))
    sums = moments(dirty, mask)
    assert torch.equal(normalise(dirty, sums, 1e-2, centre)[mask], normalise(values, sums, 1e-2, centre)[mask])


@QUICK
@given(batches(), st.integers(-1000, 1000), st.floats(1, 10))
def test_whitened_values_have_mean_0_and_deviation_1_and_ignore_shift_and_scale(batch, shift, scale):
    values, mask = batch
    values[0, 0] = 11.0  # apart from all others, unless there is only one
    got = normalise(values, moments(values, mask), 1e-2, centre=True)[mask]
    assert got.mean().item() == pytest.approx(0, abs=1e-9)
    if mask.sum() > 1:
        assert got.std(correction=0).item() == pytest.approx(1, abs=1e-9)
    moved = scale * values + shift
    again = normalise(moved, moments(moved, mask), 1e-2, centre=True)[mask]
    torch.testing.assert_close(again, got, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e4 / 3])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (16, 4)])
def test_a_constant_batch_whitens_to_zeros_and_never_to_nan(shape, value, dtype):
    values = torch.full(shape, value, dtype=dtype)
    got = normalise(values, moments(values), 1e-2, centre=True)
    torch.testing.assert_close(got, torch.zeros_like(values), atol=1e-9, rtol=0)


def test_one_value_alone_has_deviation_0_and_is_divided_by_the_floor():
    value = torch.tensor([[3.0]])
    assert normalise(value, moments(value), 0.5, centre=False).tolist() == [[6.0]]
    assert normalise(value, moments(value), 0.5, centre=True).tolist() == [[0.0]]


def test_no_division_by_less_than_the_floor():
    tiny = torch.tensor([[1e-4, -1e-4]])
    torch.testing.assert_close(normalise(tiny, moments(tiny), 1e-2, centre=False), tiny / 1e-2)
    torch.testing.assert_close(
        normalise(tiny + 1, moments(tiny + 1), 1e-2, centre=True), tiny / 1e-2, atol=1e-4, rtol=0
    )
    zeros = torch.zeros(2, 4)
    assert normalise(zeros, moments(zeros), 1e-2, centre=False).tolist() == zeros.tolist()


@pytest.mark.parametrize("centre", [False, True])
def test_a_variance_that_rounds_below_zero_is_zero(centre):
    equal = torch.full((2, 3), 0.1)
    sums = torch.tensor([6.0, 0.6, 0.06 - 1e-12], dtype=torch.float64)
    assert normalise(equal, sums, 0.5, centre).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("centre", [False, True])
def test_the_precision_of_the_values_is_kept(centre, dtype):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert normalise(values, moments(values), 1e-2, centre).dtype == dtype


def test_an_offset_far_above_the_deviation_does_not_drown_it():
    """Sums of squares cancel: in float64 enough is left for rewards of 1000 that differ by hundredths."""
    values = torch.tensor([[1000.01, 999.99, 1000.03, 999.97]], dtype=torch.float64)
    expected = torch.tensor([[1.0, -1.0, 3.0, -3.0]], dtype=torch.float64) / math.sqrt(5)
    torch.testing.assert_close(normalise(values, moments(values), 1e-6, centre=True), expected, atol=1e-6, rtol=0)
