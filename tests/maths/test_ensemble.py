"""Ensembles of reward models: worked cases, naive loops, numpy, and what must hold of any scores."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.ensemble import combine, standardise

QUICK = settings(max_examples=40, deadline=None)
HOW = ("mean", "worst", "uncertainty")


@st.composite
def scores_of_members(draw):
    """Scores [M, B] in float64."""
    members, responses = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    row = st.lists(st.floats(-50, 50), min_size=responses, max_size=responses)
    return torch.tensor(draw(st.lists(row, min_size=members, max_size=members)), dtype=torch.float64)


def test_by_hand():
    # first response: 1, 2, 6: mean 3, smallest 1, variance (4 + 1 + 9) / 3 = 14/3; the second has no spread
    scores = torch.tensor([[1.0, 5.0], [2.0, 5.0], [6.0, 5.0]], dtype=torch.float64)
    assert combine(scores, "mean").tolist() == pytest.approx([3, 5])
    assert combine(scores, "worst").tolist() == [1, 5]
    assert combine(scores, "uncertainty", 0.5).tolist() == pytest.approx([3 - 7 / 3, 5])


def test_standardised_by_hand():
    scores = torch.tensor([[1.0, 3.0], [10.0, 40.0]])
    got = standardise(scores, torch.tensor([2.0, 20.0]), torch.tensor([0.5, 10.0]))
    assert got.tolist() == [[-2, 2], [-1, 2]]


@QUICK
@given(scores_of_members(), st.floats(0, 3))
def test_every_way_equals_a_naive_loop(scores, uncertainty):
    for how in HOW:
        expected = []
        for response in range(scores.shape[1]):
            column = [row[response] for row in scores.tolist()]
            mean = math.fsum(column) / len(column)
            variance = math.fsum((x - mean) ** 2 for x in column) / len(column)
            expected.append({"mean": mean, "worst": min(column), "uncertainty": mean - uncertainty * variance}[how])
        assert combine(scores, how, uncertainty).tolist() == pytest.approx(expected, abs=1e-8), how


@pytest.mark.parametrize("uncertainty", [0.0, 0.5, 1.0, 10.0])
def test_uncertainty_weighted_equals_numpy(uncertainty):
    """Coste et al. 2023: the members' mean less lambda times their variance about it (over k, not k - 1)."""
    scores = np.random.default_rng(0).normal(size=(5, 200)) * 3 + 1
    expected = np.mean(scores, axis=0) - uncertainty * np.var(scores, axis=0)
    got = combine(torch.from_numpy(scores), "uncertainty", uncertainty).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-10)


@QUICK
@given(scores_of_members(), st.floats(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_members_does_not_matter_and_none_gives_more_than_the_mean(scores, uncertainty, rng):
    order = list(range(len(scores)))
    rng.shuffle(order)
    for how in HOW:
        got = combine(scores, how, uncertainty)
        torch.testing.assert_close(combine(scores[order], how, uncertainty), got)
        assert (got <= combine(scores, "mean") + 1e-9).all()


@QUICK
@given(scores_of_members(), st.floats(-100, 100), st.floats(0, 3))
def test_a_shift_of_all_members_shifts_the_reward(scores, shift, uncertainty):
    for how in HOW:
        shifted = combine(scores + shift, how, uncertainty)
        torch.testing.assert_close(shifted, combine(scores, how, uncertainty) + shift, atol=1e-7, rtol=0)


@QUICK
@given(scores_of_members(), st.floats(0, 3))
def test_members_that_agree_are_one_member(scores, uncertainty):
    same = scores[:1].expand(4, -1)
    for how in HOW:
        torch.testing.assert_close(combine(same, how, uncertainty), scores[0], atol=1e-8, rtol=0)


@QUICK
@given(scores_of_members(), st.floats(0.1, 10), st.floats(-10, 10), st.floats(0, 3))
def test_calibrated_members_may_have_any_scale(scores, scale, offset, uncertainty):
    """A member that is rescaled, with the mean and spread of its scores, changes nothing."""
    mean, std = torch.linspace(-1, 1, len(scores)).double(), torch.linspace(0.5, 2, len(scores)).double()
    rescaled, its_mean, its_std = scores.clone(), mean.clone(), std.clone()
    rescaled[0], its_mean[0], its_std[0] = scale * scores[0] + offset, scale * mean[0] + offset, scale * std[0]
    for how in HOW:
        got = combine(standardise(rescaled, its_mean, its_std), how, uncertainty)
        expected = combine(standardise(scores, mean, std), how, uncertainty)
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-9)


@pytest.mark.parametrize("how", HOW)
def test_a_score_that_is_no_number_stays_visible(how):
    """One bad member must not be averaged or minimised away."""
    got = combine(torch.tensor([[1.0, 2.0], [math.nan, 3.0]]), how, 1.0)
    assert got.isnan().tolist() == [True, False]


def test_an_unknown_word_is_refused():
    with pytest.raises(ValueError, match="median"):
        combine(torch.zeros(2, 3), "median")
