"""Weights and learning rates that depend on the training step."""

import math


def feedback_weight(step: int, total: int, omega: float, kind: str = "cosine") -> float:
    """w(t) = max(0.5 cos(pi t / T) + 0.5, Omega), arXiv 2601.22664, eq. 4: the weight of the original reward token embedding.

    It is 1 at t = 0 (the reward model as trained offline), and from some step on it stays at `omega` until t = T. With
    `kind="constant"` it is always `omega`. Raises ValueError for another kind.
    """
    if kind == "constant":
        return omega
    if kind != "cosine":
        raise ValueError(f"schedule is cosine or constant, got {kind!r}")
    progress = min(step / total, 1.0) if total > 0 else 1.0
    return max(0.5 * math.cos(math.pi * progress) + 0.5, omega)


def adapted_beta(beta: float, kl: float, target: float, least: float) -> float:
    """The KL weight of the next step: raised or lowered by at most a tenth, depending on how far `kl` (nats) is from `target`.

    The proportional controller of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2), beta <- beta (1 + 0.5 clip(kl /
    target - 1, -0.2, 0.2)), with a higher gain, for runs of a hundred steps. It never falls below `least`: otherwise it
    would vanish while the policy is still near the reference, and the KL would overshoot. A `kl` of NaN changes nothing.
    """
    error = kl / target - 1
    return max(least, beta * (1 + 0.5 * min(max(error, -0.2), 0.2))) if error == error else beta


def learning_rate(step: int, total: int, peak: float, warmup: int, kind: str) -> float:
    """Learning rate of a 0-based step: linear warm-up over `warmup` steps, then `constant`, `linear` or `cosine` to 0 at `total`.

    Raises ValueError for another kind.
    """
    progress = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
    if kind == "constant":
        decay = 1.0
    elif kind == "linear":
        decay = 1 - progress
    elif kind == "cosine":
        decay = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        raise ValueError(f"schedule is constant, linear or cosine, got {kind!r}")
    return peak * decay * min((step + 1) / (warmup + 1), 1.0)
