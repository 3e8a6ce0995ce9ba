"""Mean similarities over pairs of sequences, plain and resampled, against loops over the pairs."""

import math
from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from r2m_cli.maths.similarity import (
    pair_means,
    pairs_by_label,
    rowwise_similarity,
    similarity,
    swapped_gaps,
)
from r2m_cli.maths.statistics import bootstrap_mean, ends, resample_weights, resampled

QUICK = settings(max_examples=30, deadline=None)
sequences = st.lists(st.tuples(st.booleans(), st.integers(0, 4), st.integers(0, 3)), min_size=2, max_size=9)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def naive_means(vectors, labels, units, times):
    """Both true, both false, one of each: a pair for every copy of a sequence with every copy of another of another unit."""
    sums, counts = [0.0] * 3, [0] * 3
    copies = [i for i, n in enumerate(times) for _ in range(n)]
    for i, j in combinations(copies, 2):
        if units[i] != units[j]:
            kind = 2 if labels[i] != labels[j] else 0 if labels[i] else 1
            sums[kind] += (1 + cosine(vectors[i], vectors[j])) / 2
            counts[kind] += 1
    return [s / c if c else math.nan for s, c in zip(sums, counts)]


def test_similarity_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    half = (1 + math.sqrt(0.5)) / 2
    found = similarity(vectors)
    assert found[0].tolist() == pytest.approx([1.0, 0.5, 0.0, half, 0.5])
    assert found.diagonal()[:4].tolist() == pytest.approx([1.0] * 4)
    assert rowwise_similarity(vectors[:2], vectors[[3, 2]]).tolist() == pytest.approx([half, 0.5])


def test_means_by_hand():
    # chosen 0 and 1, rejected 2 and 3; 0 and 2 answer one prompt, so that they are no pair
    alike = torch.tensor([[9, 1, 2, 3], [1, 9, 4, 5], [2, 4, 9, 6], [3, 5, 6, 9]], dtype=torch.float64)
    masks = pairs_by_label(torch.tensor([True, True, False, False]), torch.tensor([0, 1, 0, 2]))
    assert masks.sum(dim=(1, 2)).tolist() == [2, 2, 6], "each pair twice, none with itself"
    assert pair_means(alike, masks, torch.ones(1, 4)).tolist() == [[1.0, 6.0, (3 + 4 + 5) / 3]]
    # sequence 1 twice: its pairs count twice, and its two copies are no pair; without 3 there are no two rejected
    drawn = pair_means(alike, masks, torch.tensor([[1.0, 2.0, 1.0, 0.0]]))[0]
    assert drawn[[0, 2]].tolist() == [1.0, 4.0]
    assert drawn[1].isnan()


@QUICK
@given(sequences, st.integers(0, 1000))
def test_means_equal_a_loop_over_the_pairs(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    labels, units, times = ([row[i] for row in rows] for i in range(3))
    vectors = torch.randn(len(rows), 3, generator=generator, dtype=torch.float64)
    masks = pairs_by_label(torch.tensor(labels), torch.tensor(units))
    found = pair_means(similarity(vectors), masks, torch.tensor([times], dtype=torch.float64))[0]
    expected = naive_means(vectors.tolist(), labels, units, times)
    assert found.tolist() == pytest.approx(expected, nan_ok=True, abs=1e-12)


@QUICK
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_similarity_knows_neither_lengths_nor_a_rotation(seed, scale):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator, dtype=torch.float64))
    scales = torch.rand(5, 1, generator=generator, dtype=torch.float64) + scale
    found = similarity(vectors)
    assert torch.allclose(similarity(scales * vectors @ turn), found, atol=1e-9)
    assert torch.allclose(found, found.T)
    assert 0 <= found.min() <= found.max() <= 1 + 1e-12


def test_sequences_of_a_unit_are_drawn_together():
    units = torch.tensor([7, 3, 7, 5, 3])
    weights = resample_weights(units, 500, 1)
    assert torch.equal(weights[:, 0], weights[:, 2])
    assert torch.equal(weights[:, 1], weights[:, 4])
    assert (weights[:, [0, 1, 3]].sum(dim=1) == 3).all(), "as many units as there are"
    assert weights.mean(dim=0).tolist() == pytest.approx([1.0] * 5, abs=0.15)
    assert torch.equal(weights, resample_weights(units, 500, 1))
    assert not torch.equal(weights, resample_weights(units, 500, 2))


def test_weights_are_the_resamples_of_the_mean():
    values = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = bootstrap_mean(values, 300, 4)
    means = resample_weights(torch.arange(12), 300, 4) @ values / 12
    low, high = ends(means)
    assert (low.item(), high.item()) == pytest.approx((found.low, found.high))


def test_resamples_without_a_value_are_left_out():
    found = resampled(
        torch.arange(4),
        200,
        0,
        lambda times: torch.stack([times @ torch.arange(4.0).double(), torch.full((len(times),), 2.0)], 1),
    )
    assert found.shape == (200, 2)
    found[::2, 0] = math.nan
    low, high = ends(found)
    assert low[0] == torch.quantile(found[1::2, 0], 0.025)
    assert (low[1], high[1]) == (2.0, 2.0)
    assert ends(torch.full((5,), math.nan))[0].isnan()


def test_swapped_gaps_are_those_of_every_assignment_of_labels():
    vectors = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels, units = torch.tensor([True, False] * 4), [0, 0, 1, 1, 2, 2, 1, 1]  # a prompt twice
    found = swapped_gaps(similarity(vectors), labels, torch.tensor(units), 400, 0)
    expected = set()
    for swaps in product([False, True], repeat=4):
        given = [bool(label) != swaps[i // 2] for i, label in enumerate(labels)]
        yes, no, different = naive_means(
            vectors.tolist(), given, units, [1] * 8
        )  # as many chosen pairs as rejected ones
        expected.add(round((yes + no) / 2 - different, 9))
    assert len(expected) == 8, "all labels swapped are the same gap"
    assert {round(gap, 9) for gap in found.tolist()} == expected
