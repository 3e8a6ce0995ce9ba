"""Clipping, the penalty for a missing end, and rewards that are missing."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.advantages import grpo, rloo
from r2m_cli.maths.shaping import fill_missing, shape

QUICK = settings(max_examples=40, deadline=None)

NAN, INF = math.nan, math.inf


@st.composite
def groups(draw):
    """Rewards [n, K] in float64 with NaN where they are missing, and which are there; some groups miss all."""
    n, k = draw(st.integers(1, 4)), draw(st.integers(2, 6))
    cells = st.lists(st.tuples(st.integers(-100, 100), st.booleans()), min_size=n * k, max_size=n * k)
    table = draw(cells)
    valid = torch.tensor([there for _, there in table]).view(n, k)
    rewards = torch.tensor([tenths / 10 for tenths, _ in table], dtype=torch.float64).view(n, k)
    return torch.where(valid, rewards, NAN), valid


def test_shape_by_hand():
    # clipped to 2, then 1 less where the end is missing: the penalty is whole even at the clip
    scores = torch.tensor([[5.0, 5.0, -5.0], [-5.0, 0.5, 0.5]])
    finished = torch.tensor([[True, False, True], [False, True, False]])
    assert shape(scores, finished, 2.0, 1.0).tolist() == [[2.0, 1.0, -2.0], [-3.0, 0.5, -0.5]]


def test_shape_without_clip_and_penalty_changes_nothing():
    scores = torch.tensor([5.0, -1e6])
    assert shape(scores, torch.tensor([True, False]), None, 0.0).tolist() == scores.tolist()


@QUICK
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.booleans()), min_size=1),
    st.floats(0.1, 50) | st.none(),
    st.floats(0, 9),
)
def test_shape_equals_a_naive_loop(cells, clip, penalty):
    scores = torch.tensor([score for score, _ in cells], dtype=torch.float64)
    expected = []
    for score, ends in cells:
        clipped = score if clip is None else max(-clip, min(clip, score))
        expected.append(clipped if ends else clipped - penalty)
    got = shape(scores, torch.tensor([ends for _, ends in cells]), clip, penalty)
    assert got.tolist() == pytest.approx(expected, abs=1e-12)


def test_shape_keeps_precision_and_the_scores_themselves():
    scores = torch.tensor([5.0])
    assert shape(scores, torch.tensor([False]), 2.0, 1.0).dtype == torch.float32
    assert scores.item() == 5.0


@pytest.mark.parametrize("junk", [NAN, INF, -INF, 1e30])
def test_fill_missing_by_hand(junk):
    # the others have 1 and 3; 5 alone; nothing at all
    rewards = torch.tensor([[1.0, junk, 3.0], [junk, junk, 5.0], [junk, junk, junk]])
    valid = torch.tensor([[True, False, True], [False, False, True], [False, False, False]])
    assert fill_missing(rewards, valid).tolist() == [[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0]]


@QUICK
@given(groups())
def test_fill_missing_equals_a_naive_loop_and_leaves_the_rest_alone(data):
    rewards, valid = data
    got = fill_missing(rewards, valid)
    for i, row in enumerate(rewards.tolist()):
        known = [reward for reward, there in zip(row, valid[i]) if there]
        mean = sum(known) / len(known) if known else 0.0
        assert got[i].tolist() == pytest.approx([r if there else mean for r, there in zip(row, valid[i])], abs=1e-12)
    assert torch.equal(got[valid], rewards[valid])
    assert torch.equal(fill_missing(got, torch.ones_like(valid)), got)


@QUICK
@given(groups())
def test_a_missing_reward_has_no_advantage_and_moves_no_groups_mean(data):
    rewards, valid = data
    filled = fill_missing(rewards, valid)
    for estimator in (rloo, grpo):
        advantages = estimator(filled)
        assert advantages.isfinite().all()
        torch.testing.assert_close(advantages[~valid], torch.zeros(int((~valid).sum())).double(), atol=1e-9, rtol=0)
        # those that are there are compared among themselves: they sum to 0
        present = torch.where(valid, advantages, 0.0).sum(dim=1)
        torch.testing.assert_close(present, torch.zeros(len(rewards)).double(), atol=1e-8, rtol=0)


def test_the_advantages_of_those_that_are_there_shrink_but_keep_their_order():
    """RLOO's K / (K - 1) is that of the whole group: 1 and 3 with 2 filled in have -1.5 and 1.5, alone -2 and 2."""
    filled = fill_missing(torch.tensor([[1.0, NAN, 3.0]]), torch.tensor([[True, False, True]]))
    assert rloo(filled).tolist() == [[-1.5, 0.0, 1.5]]
    assert rloo(torch.tensor([[1.0, 3.0]])).tolist() == [[-2.0, 2.0]]


@pytest.mark.parametrize("estimator", [rloo, grpo])
def test_a_group_with_one_reward_or_none_teaches_nothing(estimator):
    valid = torch.tensor([[False, True, False], [False, False, False]])
    filled = fill_missing(torch.tensor([[NAN, 0.1, INF], [NAN, NAN, NAN]]), valid)
    torch.testing.assert_close(estimator(filled), torch.zeros(2, 3), atol=1e-6, rtol=0)
