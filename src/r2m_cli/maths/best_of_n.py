"""The best of n samples, estimated without bias from N >= n samples (Nakano et al. 2021, WebGPT, appendix I)."""

import math

import torch
from torch import Tensor


def sizes(limit: int) -> list[int]:
    """The n of a best-of-n curve: 1, 2, 4, ... and `limit` itself."""
    return sorted({2**k for k in range(limit.bit_length())} | {limit})


def divergence(n: int) -> float:
    """KL(best-of-n policy || policy) = log n - (n - 1) / n, in nats (Stiennon et al. 2020, appendix G.3).

    Exact where no two samples share a proxy score, an upper bound otherwise (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def best_of_n(proxy: Tensor, scores: Tensor, n: int) -> Tensor:
    """Expected score of the best by proxy of n samples drawn without replacement from the N at hand, for each prompt.

    The i-th smallest proxy of N is the best of C(i-1, n-1) of the C(N, n) subsets, so no subset is drawn. Samples of
    equal proxy share their chances: any of them might be taken. With a places below and b places up to and including
    the tied ones, each has (C(b, n) - C(a, n)) / C(N, n) / (b - a).

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
    # [k]: the chance that all of the subset lies among the k smallest
    among = torch.tensor([math.comb(k, n) / math.comb(samples, n) for k in range(samples + 1)], dtype=torch.float64)
    proxy = proxy.double().cpu().contiguous()
    ordered = proxy.sort(dim=1).values
    below, upto = torch.searchsorted(ordered, proxy), torch.searchsorted(ordered, proxy, right=True)
    chance = (among[upto] - among[below]) / (upto - below)
    return (chance * scores.double().cpu()).sum(dim=1)
