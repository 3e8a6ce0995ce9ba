"""Several reward models as one (Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization")."""

from torch import Tensor


def standardise(scores: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Each member's scores [M, B] in standard deviations `std` [M] from its `mean` [M]: a common scale. -> [M, B]."""
    return (scores - mean[:, None]) / std[:, None]


def combine(scores: Tensor, how: str, uncertainty: float = 0.0) -> Tensor:
    """One reward per response from those of M members on a common scale. [M, B] -> [B].

    Args:
        how: mean | worst (the smallest: Coste et al.'s WCO) | uncertainty (the mean less `uncertainty` times the
            population variance over the members: UWO).

    Raises:
        ValueError: another value of `how`.
    """
    if how == "mean":
        return scores.mean(dim=0)
    if how == "worst":
        return scores.amin(dim=0)
    if how == "uncertainty":
        return scores.mean(dim=0) - uncertainty * scores.var(dim=0, correction=0)
    raise ValueError(f"an ensemble is combined by mean, worst or uncertainty, not {how}")
