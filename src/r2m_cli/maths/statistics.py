"""Means and win rates with 95 % intervals from the percentile bootstrap (Efron & Tibshirani 1993, chapter 13); when to stop."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEVEL = 0.95
RESAMPLES = 1000  # per interval: its ends then vary by a few hundredths of its width between seeds
Z = 1.959963984540054  # quantile of the standard normal at (1 + LEVEL) / 2
RIDGE = 1e-2  # weight of half the squared coefficients, next to a sum over the comparisons: just enough to prevent divergence
_AT_ONCE = 1 << 20  # values of all resamples in memory at once


class Estimate(NamedTuple):
    """A number and the interval around it, in the number's own unit. From a single unit there is no interval: NaN."""

    value: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends, or None if there is no interval."""
        return (self.low, self.high) if self.low == self.low and self.high == self.high else None


def bootstrap_mean(
    values: Tensor,
    resamples: int,
    seed: int,
    units: Tensor | None = None,
    bounds: tuple[float, float] | None = None,
) -> Estimate:
    """The mean of values with its interval. [n] -> Estimate.

    Args:
        units: [n], integers; values of one unit (for example a prompt) are not independent and are resampled together.
            None: each value is its own unit.
        bounds: smallest and largest possible value, (0, 1) for a share: the interval then has a width even if all
            resamples agree, see `_of_constant`.

    Raises:
        ValueError: there are no values, or not one unit for each.
    """
    values = _checked(values)
    units = _units(values, units)
    mean = values.mean().item()
    return Estimate(mean, *_interval(units, resamples, seed, lambda times: _mean(values, times), mean, bounds))


def win_rate(preferences: Tensor, resamples: int, seed: int, units: Tensor | None = None) -> Estimate:
    """Share of comparisons that are won; a tie counts half. Preferences [n] from 0 (lost) to 1 (won) -> Estimate.

    A judge that is asked in both orders and contradicts itself may also give 0.25 or 0.75: the rate is the mean.
    `units` and errors as in `bootstrap_mean`; also ValueError for a preference outside 0 to 1.
    """
    return bootstrap_mean(_preferences(preferences), resamples, seed, units, bounds=(0.0, 1.0))


def length_controlled_win_rate(
    preferences: Tensor, differences: Tensor, resamples: int, seed: int, units: Tensor | None = None
) -> Estimate:
    """The win rate that a logistic regression predicts for responses of equal length.

    preference ~ sigmoid(intercept + slope * tanh(difference / std of the differences)), reported at difference 0. This is
    the model of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, eq. 2) without the instruction difficulty, whose
    coefficients are shared between the many policies of a leaderboard: here there is one pair of policies. A small ridge
    keeps the fit finite for separable data (all won, or always the longer one). If the differences do not vary, the result
    is the raw rate; if all have one sign, it is an extrapolation. Every resample has its own std and fit.

    Args:
        preferences: [n], from 0 (lost) to 1 (won).
        differences: [n], this side's length minus the other's, in characters as in AlpacaEval.
        units: as in `bootstrap_mean`.

    Raises:
        ValueError: no comparison, a preference outside 0 to 1, or arguments of unequal length.
    """
    preferences, differences = _preferences(preferences), _checked(differences)
    if len(preferences) != len(differences):
        raise ValueError(f"{len(preferences)} preferences, but {len(differences)} differences in length")

    def rate(times: Tensor) -> Tensor:
        feature = _feature(differences, times)
        same = (feature == 0).all(dim=1)  # nothing to control for
        return torch.where(same, _mean(preferences, times), _intercept(preferences, feature, times).sigmoid())

    whole = rate(torch.ones(1, len(preferences), dtype=torch.float64)).item()
    units, bounds = _units(preferences, units), (0.0, 1.0)
    low, high = _interval(units, resamples, seed, rate, whole, bounds)
    if (preferences == preferences[0]).all() and low == low:  # the ridge alone makes the resamples differ
        low, high = _of_constant(whole, len(units.unique()), bounds)
    return Estimate(whole, low, high)


def resampled(units: Tensor, resamples: int, seed: int, statistic: Callable[[Tensor], Tensor]) -> Tensor:
    """A statistic of every bootstrap resample of the units; a resample draws as many units as there are. [resamples, ...].

    Args:
        units: [n], the unit (an integer) of each value; values of one unit are drawn together.
        statistic: maps the counts of each value in the resamples, [rows, n] float64, to [rows, ...].
    """  # fmt: skip
    _, place = units.unique(return_inverse=True)
    count = int(place.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    rows = max(1, _AT_ONCE // len(units))
    found = []
    for start in range(0, resamples, rows):
        drawn = torch.randint(count, (min(rows, resamples - start), count), generator=generator)
        ones = torch.ones(drawn.shape, dtype=torch.float64)
        found.append(statistic(torch.zeros_like(ones).scatter_add_(1, drawn, ones)[:, place]))
    return torch.cat(found)


def resample_weights(units: Tensor, resamples: int, seed: int) -> Tensor:
    """How often each of n values occurs in each bootstrap resample of the units. units [n] -> [resamples, n] float64."""
    return resampled(units, resamples, seed, lambda times: times)


def ends(found: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of the percentile interval from `resampled`'s [resamples, ...], each [...].

    Resamples without a value (NaN) are left out; if none has a value, the ends are NaN.
    """
    quantiles = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    low, high = found.double().nanquantile(quantiles, dim=0)
    return low, high


def _interval(
    units: Tensor,
    resamples: int,
    seed: int,
    statistic: Callable[[Tensor], Tensor],
    value: float,
    bounds: tuple[float, float] | None,
) -> tuple[float, float]:
    """Both ends of the interval of a statistic that returns [rows]; NaN from a single unit.

    Args:
        value: the statistic of the original units.
        bounds: as in `bootstrap_mean`.
    """
    count = len(units.unique())
    if count == 1:
        return torch.nan, torch.nan
    low, high = (end.item() for end in ends(resampled(units, resamples, seed, statistic)))
    if bounds is not None and high - low < 1e-12:
        return _of_constant(value, count, bounds)
    return low, high


def _of_constant(value: float, count: int, bounds: tuple[float, float]) -> tuple[float, float]:
    """The interval around a mean of `count` identical units, for which the bootstrap interval has no width.

    It assumes that a share z^2 / (count + z^2) of unseen units, the most that Wilson's interval allows, lies at either bound.
    For a share of 0 or 1 this is Wilson's interval itself (Wilson 1927, J. Am. Stat. Assoc. 22).
    """
    unseen = Z**2 / (count + Z**2)
    return value - unseen * (value - bounds[0]), value + unseen * (bounds[1] - value)


def _units(values: Tensor, units: Tensor | None) -> Tensor:
    if units is None:
        return torch.arange(len(values))
    if units.shape != values.shape:
        raise ValueError(f"{tuple(units.shape)} units, but {tuple(values.shape)} values")
    return units


def _mean(values: Tensor, times: Tensor) -> Tensor:
    """Mean of the values, weighted by how often each occurs. [n], [rows, n] -> [rows]."""
    return times @ values / times.sum(dim=1)


def _feature(differences: Tensor, times: Tensor) -> Tensor:
    """tanh of the differences in units of their (sample) standard deviation, 0 if they do not vary. [rows, n]."""
    centred = differences - _mean(differences, times)[:, None]
    variance = (times * centred.square()).sum(dim=1, keepdim=True) / (times.sum(dim=1, keepdim=True) - 1).clamp(min=1)
    return torch.where(variance > 0, differences / torch.where(variance > 0, variance, 1.0).sqrt(), 0.0).tanh()


def _intercept(preferences: Tensor, feature: Tensor, times: Tensor) -> Tensor:
    """Intercept of each row's logistic regression, by Newton's method with step halving. [n], [rows, n], [rows, n] -> [rows]."""
    beta = preferences.new_zeros(len(feature), 2)  # intercept, slope

    def objective(beta: Tensor) -> Tensor:
        logit = beta[:, :1] + beta[:, 1:] * feature
        losses = F.softplus(logit) - preferences * logit
        return (times * losses).sum(dim=1) + RIDGE / 2 * beta.square().sum(dim=1)

    for _ in range(100):
        p = (beta[:, :1] + beta[:, 1:] * feature).sigmoid()
        residual, curvature = times * (p - preferences), times * p * (1 - p)
        gradient = torch.stack([residual.sum(dim=1), (residual * feature).sum(dim=1)], dim=1) + RIDGE * beta
        aa = curvature.sum(dim=1) + RIDGE
        ab = (curvature * feature).sum(dim=1)
        bb = (curvature * feature.square()).sum(dim=1) + RIDGE
        step = torch.stack(
            [bb * gradient[:, 0] - ab * gradient[:, 1], aa * gradient[:, 1] - ab * gradient[:, 0]], dim=1
        )
        step = step / (aa * bb - ab.square())[:, None]
        before = objective(beta)
        for _ in range(30):
            worse = objective(beta - step) > before
            if not worse.any():
                break
            step = torch.where(worse[:, None], step / 2, step)
        beta = beta - step
        if step.abs().max() < 1e-10:
            break
    return beta[:, 0]


def _preferences(values: Tensor) -> Tensor:
    values = _checked(values)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("a preference must be between 0 (lost) and 1 (won)")
    return values


def _checked(values: Tensor) -> Tensor:
    if values.dim() != 1 or not len(values):
        raise ValueError(f"one value per prompt or pair is needed, [n] with n >= 1, got {tuple(values.shape)}")
    return values.double().cpu()


def pass_to_keep(losses: Tensor) -> int:
    """Cautious early stopping, because a few dozen held-out examples are weak evidence: the last pass, unless the pass with the
    lowest mean loss is lower by more than two standard errors of the difference, paired by example.

    Losses of held-out examples after each pass [passes, m] -> index of the pass, from 0.
    """
    means = losses.mean(dim=1)
    lowest = len(means) - 1 - int(means.flip(0).argmin())  # the latest of equal ones
    worse = losses[-1] - losses[lowest]
    error = worse.std() / len(worse) ** 0.5 if len(worse) > 1 else torch.inf
    return lowest if worse.mean() > 2 * error else len(means) - 1
