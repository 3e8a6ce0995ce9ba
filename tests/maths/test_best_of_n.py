"""The unbiased best-of-n estimate against all subsets."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.best_of_n import best_of_n, divergence, sizes

QUICK = settings(max_examples=40, deadline=None)

# few different proxies, so that ties are common
samples = st.lists(st.tuples(st.integers(0, 4), st.floats(-10, 10)), min_size=1, max_size=7)


def naive(proxy, scores, n):
    """Mean over all subsets of n of the score of the best by proxy; among equals, their mean."""
    found = []
    for subset in combinations(range(len(proxy)), n):
        best = max(proxy[i] for i in subset)
        tied = [scores[i] for i in subset if proxy[i] == best]
        found.append(sum(tied) / len(tied))
    return sum(found) / len(found)


def test_by_hand():
    # N = 3, proxies in the order 2, 0, 1 from small to large; of the three pairs, sample 1 is the best of two, sample 0 of one
    proxy, gold = torch.tensor([[2.0, 5.0, 1.0]]), torch.tensor([[10.0, 4.0, 1.0]])
    assert best_of_n(proxy, gold, 1).tolist() == pytest.approx([5.0])
    assert best_of_n(proxy, gold, 2).tolist() == pytest.approx([(2 * 4 + 10) / 3])
    assert best_of_n(proxy, gold, 3).tolist() == [4.0]


def test_ties_share_their_chances_by_hand():
    # subsets {a, b}: tie -> mean 2; {a, c} -> a = 1; {b, c} -> b = 3
    proxy, gold = torch.tensor([[7.0, 7.0, 0.0]]), torch.tensor([[1.0, 3.0, 100.0]])
    assert best_of_n(proxy, gold, 2).tolist() == pytest.approx([2.0])
    assert best_of_n(torch.zeros(1, 3), gold, 3).tolist() == pytest.approx([104 / 3])


@QUICK
@given(st.lists(samples, min_size=1, max_size=1), st.data())
def test_equals_the_mean_over_all_subsets(rows, data):
    (row,) = rows
    n = data.draw(st.integers(1, len(row)))
    proxy, scores = [float(p) for p, _ in row], [s for _, s in row]
    found = best_of_n(torch.tensor([proxy]), torch.tensor([scores], dtype=torch.float64), n)
    assert found.item() == pytest.approx(naive(proxy, scores, n), abs=1e-9)


@QUICK
@given(samples)
def test_the_proxy_itself_rises_with_n_from_mean_to_maximum(row):
    proxy = torch.tensor([[float(p) for p, _ in row]])
    curve = [best_of_n(proxy, proxy, n).item() for n in range(1, len(row) + 1)]
    assert curve[0] == pytest.approx(proxy.double().mean().item(), abs=1e-9)
    assert curve[-1] == pytest.approx(proxy.max().item(), abs=1e-9)
    assert all(b >= a - 1e-9 for a, b in pairwise(curve))


def test_unbiased_for_the_best_of_two_uniform_draws():
    # E[max of 2 uniforms] = 2/3, estimated from 8 samples a prompt
    proxy = torch.rand(20_000, 8, generator=torch.Generator().manual_seed(0))
    assert best_of_n(proxy, proxy, 2).mean().item() == pytest.approx(2 / 3, abs=0.003)


def test_prompts_do_not_mix_and_large_n_does_not_overflow():
    generator = torch.Generator().manual_seed(0)
    proxy, gold = torch.randn(3, 600, generator=generator), torch.randn(3, 600, generator=generator)
    together = best_of_n(proxy, gold, 300)
    for i in range(3):
        assert best_of_n(proxy[i : i + 1], gold[i : i + 1], 300).item() == pytest.approx(together[i].item(), abs=1e-12)
    assert together.isfinite().all()


def test_sizes_and_divergence():
    assert [sizes(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]
    assert divergence(1) == 0
    assert divergence(2) == pytest.approx(math.log(2) - 0.5)
    # two equally likely samples of different proxy: best of 2 is (1/4, 3/4), whose KL the formula bounds from above
    assert 0.25 * math.log(0.5) + 0.75 * math.log(1.5) < divergence(2)


@pytest.mark.parametrize("n", [0, 4])
def test_n_beyond_the_samples_is_refused(n):
    with pytest.raises(ValueError, match="N is 3"):
        best_of_n(torch.zeros(1, 3), torch.zeros(1, 3), n)
