"""Similarity of pooled hidden states, and its mean over sets of pairs, also in bootstrap resamples."""

import torch
import torch.nn.functional as F
from torch import Tensor


def similarity(vectors: Tensor) -> Tensor:
    """(1 + cosine) / 2 of all pairs, from 0 (opposite) to 1 (same direction); with a zero vector 0.5. [n, D] -> [n, n]."""
    unit = F.normalize(vectors.double(), dim=1)
    return (1 + unit @ unit.T) / 2


def rowwise_similarity(first: Tensor, second: Tensor) -> Tensor:
    """(1 + cosine) / 2 of corresponding rows. [n, D], [n, D] -> [n]."""
    return (1 + (F.normalize(first.double(), dim=1) * F.normalize(second.double(), dim=1)).sum(dim=1)) / 2


def pairs_by_label(labels: Tensor, units: Tensor) -> Tensor:
    """Masks of the pairs of sequences labelled both true, both false, and one of each. [n] bool, [n] -> [3, n, n] bool.

    Symmetric. Two sequences of one unit (a prompt) do not count as a pair, nor does a sequence with itself.
    """
    apart = units[:, None] != units[None, :]
    yes, no = labels[:, None] & labels[None, :], ~labels[:, None] & ~labels[None, :]
    return torch.stack([yes, no, labels[:, None] != labels[None, :]]) & apart


def pair_means(similarities: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean similarity over each set of pairs; the weight of a pair is the product of its sequences'.

    Args:
        similarities: [n, n], symmetric.
        masks: [m, n, n] bool, symmetric with a false diagonal.
        weights: [b, n], how often each sequence occurs: `statistics.resample_weights`, or ones for the plain mean.

    Returns:
        [b, m]; NaN if no pair is left.
    """
    columns = []
    for mask in masks.to(weights.dtype):
        total = (weights @ (similarities.to(weights.dtype) * mask) * weights).sum(dim=1)
        columns.append(total / (weights @ mask * weights).sum(dim=1))  # 0 / 0 is NaN
    return torch.stack(columns, dim=1)


def swapped_gaps(similarities: Tensor, labels: Tensor, units: Tensor, swaps: int, seed: int) -> Tensor:
    """The gap (mean of same-label pairs minus that of different-label pairs) after randomly swapping the two labels of pairs.

    If labels had no effect, the true gap would be a draw from these: the share that is at least as large is its p-value.

    Args:
        similarities: [n, n], symmetric.
        labels: [n] bool; neighbours 2 i and 2 i + 1 are a pair, one true and one false.
        units: [n], the same for both of a pair; the similarity of two sequences of one unit is not used.

    Returns:
        [swaps].
    """
    apart = (units[:, None] != units[None, :]).double()
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randint(2, (swaps, len(labels) // 2), generator=generator).repeat_interleave(2, dim=1).bool()
    signs = torch.where(kept == labels, 1.0, -1.0).double()
    # Two pairs of different units have two same-label and two different-label comparisons, swapped or not.
    return ((signs @ (similarities.double() * apart)) * signs).sum(dim=1) / (apart.sum() / 2)
