"""Masked sums and means: what is masked is inert, whatever it holds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.masking import length_mask, masked_mean, masked_sum

QUICK = settings(max_examples=25, deadline=None)

rows = st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1, max_size=8)


def test_by_hand():
    values = torch.tensor([[1.0, 2.0, 4.0], [5.0, 7.0, 9.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [False, True, True], [False, False, False]])
    assert masked_sum(values, mask).tolist() == [3.0, 16.0, 0.0]
    assert masked_mean(values, mask).tolist() == [1.5, 8.0, 0.0]


def test_length_mask_by_hand():
    mask = length_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False, False, False], [True, True, False], [True, True, True]]


@QUICK
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 6))
def test_length_mask_equals_a_naive_loop(lengths, width):
    expected = [[j < length for j in range(width)] for length in lengths]
    assert length_mask(torch.tensor(lengths), width).tolist() == expected


@QUICK
@given(st.lists(rows, min_size=1, max_size=1))
def test_equal_a_naive_loop(table):
    values = torch.tensor([[v for v, _ in row] for row in table], dtype=torch.float64)
    mask = torch.tensor([[m for _, m in row] for row in table])
    for i, row in enumerate(table):
        kept = [v for v, m in row if m]
        assert masked_sum(values, mask)[i].item() == pytest.approx(sum(kept), abs=1e-9)
        assert masked_mean(values, mask)[i].item() == pytest.approx(sum(kept) / len(kept) if kept else 0.0, abs=1e-9)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("reduce", [masked_sum, masked_mean])
def test_masked_junk_is_inert_in_values_and_gradients(reduce, junk):
    generator = torch.Generator().manual_seed(0)
    clean, mask = torch.randn(3, 5, generator=generator), torch.rand(3, 5, generator=generator) < 0.6
    mask[2] = False
    results = []
    for filler in (0.0, junk):
        values = torch.where(mask, clean, filler).requires_grad_(True)
        out = reduce(values, mask)
        out.square().sum().backward()
        results.append((out.detach(), values.grad))
    (expected, gradient), (got, dirty_gradient) = results
    assert torch.equal(got, expected)
    assert torch.equal(dirty_gradient, gradient)
    assert (dirty_gradient[~mask] == 0).all()
