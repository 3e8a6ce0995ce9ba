"""Similarity of pooled hidden states, and its mean over sets of pairs, also in bootstrap resamples."""

import torch
import torch.nn.functional as F
from torch import Tensor

from r2m_cli.maths.statistics import resampled


def similarity(vectors: Tensor) -> Tensor:
    """(1 + cosine) / 2 of all pairs, from 0 (opposite) to 1 (same direction); with a zero vector 0.5. [n, D] -> [n, n]."""
    unit = F.normalize(vectors.double(), dim=1)
    return (1 + unit @ unit.T) / 2


def rowwise_similarity(first: Tensor, second: Tensor) -> Tensor:
    """(1 + cosine) / 2 of each row with the other's row. [n, D], [n, D] -> [n]."""
    return (1 + (F.normalize(first.double(), dim=1) * F.normalize(second.double(), dim=1)).sum(dim=1)) / 2


def pairs_by_label(labels: Tensor, units: Tensor) -> Tensor:
    """Which pairs are of sequences both labelled true, both false, one of each. [n] bool, [n] -> [3, n, n] bool.

    Symmetric. Two sequences of one unit (a prompt) are no pair, nor is a sequence with itself.
    """
    apart = units[:, None] != units[None, :]
    yes, no = labels[:, None] & labels[None, :], ~labels[:, None] & ~labels[None, :]
    return torch.stack([yes, no, labels[:, None] != labels[None, :]]) & apart


def pair_means(similarities: Tensor, masks: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean similarity over each set of pairs; the weight of a pair is the product of its sequences'.

    Args:
        similarities: [n, n], symmetric.
        masks: [m, n, n] bool, symmetric with a false diagonal.
        weights: [b, n], how often each sequence is there: `resample_weights`, or ones for the plain mean.

    Returns:
        [b, m]; NaN where no pair is left.
    """
    columns = []
    for mask in masks.to(weights.dtype):
        total = (weights @ (similarities.to(weights.dtype) * mask) * weights).sum(dim=1)
        columns.append(total / (weights @ mask * weights).sum(dim=1))  # 0 / 0 is NaN
    return torch.stack(columns, dim=1)


def resample_weights(units: Tensor, resamples: int, seed: int) -> Tensor:
    """How often each of n sequences is in each bootstrap resample of the units (prompts), whose sequences go together.

    units [n], any whole numbers -> [resamples, n] float64.
    """
    _, place = units.unique(return_inverse=True)
    count = int(place.max()) + 1

    def times(index: Tensor) -> Tensor:
        return torch.zeros(index.shape, dtype=torch.float64).scatter_add_(
            1, index, torch.ones(index.shape, dtype=torch.float64)
        )

    return resampled(count, resamples, seed, times)[:, place]
