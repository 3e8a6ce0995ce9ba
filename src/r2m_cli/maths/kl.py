"""Estimators of KL(pi_theta || pi_ref) from samples of pi_theta (Schulman, "Approximating KL divergence", 2020)."""

from collections.abc import Callable

from torch import Tensor


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """log pi - log pi_ref: unbiased, may be negative. For logs and rewards only: its gradient is 0 in expectation. Nats."""
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Half the squared log-ratio: biased, with small variance; in expectation its gradient is that of the true KL. Nats."""
    return 0.5 * (logp - ref_logp).square()


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """exp(-d) - 1 + d with d = log pi - log pi_ref: unbiased and never negative; GRPO's choice. Nats.

    Its gradient is that of KL(pi_ref || pi), the other direction; near pi_ref the two are the same.
    """
    d = logp - ref_logp
    return (-d).exp() - 1 + d


ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
