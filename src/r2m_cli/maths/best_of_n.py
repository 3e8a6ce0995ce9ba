"""The best of n samples, estimated without bias from N >= n samples (Nakano et al. 2021, WebGPT, appendix I)."""

import math

import torch
from torch import Tensor


def sizes(limit: int) -> list[int]:
    """The n of a best-of-n curve: 1, 2, 4, ... and `limit` itself."""
    return sorted({2**k for k in range(limit.bit_length())} | {limit})


def divergence(n: int) -> float:
    """KL(best-of-n policy || policy) = log n - (n - 1) / n, in nats (Stiennon et al. 2020, appendix G.3).

    Exact if no two samples share a proxy score, otherwise an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Tensor, scores: Tensor, n: int) -> Tensor:
    """Expected score of the best (by proxy) of n samples, drawn without replacement from the N available ones, for each prompt.

    The sample with the i-th smallest proxy is the best of C(i-1, n-1) of the C(N, n) subsets, so no subset has to be drawn.
    Samples with equal proxy share their probability. With a samples below the tie, and b up to and including it, each tied
    sample has probability (C(b, n) - C(a, n)) / C(N, n) / (b - a).

    Args:
        proxy, scores: [P, N], finite.

    Returns:
        [P], in the unit of `scores`, float64.

    Raises:
        ValueError: n is not between 1 and N.
    """  # fmt: skip
    samples = proxy.shape[1]
    if not 1 <= n <= samples:
        raise ValueError(f"the best of {n} needs 1 <= n <= N, and N is {samples}")
    # [k]: the probability that the complete subset is among the k smallest
    among = torch.tensor([math.comb(k, n) / math.comb(samples, n) for k in range(samples + 1)], dtype=torch.float64)
    proxy = proxy.double().cpu().contiguous()
    ordered = proxy.sort(dim=1).values
    below, upto = torch.searchsorted(ordered, proxy), torch.searchsorted(ordered, proxy, right=True)
    chance = (among[upto] - among[below]) / (upto - below)
    return (chance * scores.double().cpu()).sum(dim=1)
