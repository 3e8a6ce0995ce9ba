"""An accuracy with its interval over distinct prompts, as numbers and as text; the text marks values that may be chance."""

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from r2m_cli.conversation import Message, Pair
from r2m_cli.maths.statistics import Estimate, bootstrap_mean

NO_INTERVAL = "one prompt: no interval"
CHANCE = "not distinguishable from chance"


def margins(pairs: Sequence[Pair], rewards: Tensor) -> Tensor:
    """Reward of each chosen reply minus that of its rejected one, [m, 2] -> [m] float64, on the CPU; a pair is ordered right
    if its margin is above 0.

    The margin of equal replies (a policy may sample one twice) is exactly 0, without rounding noise.
    """
    differ = torch.tensor([float(pair.chosen != pair.rejected) for pair in pairs], dtype=torch.float64)
    return (rewards[:, 0] - rewards[:, 1]).double().cpu() * differ


def accuracy_of(margins: Tensor, units: Tensor, resamples: int, seed: int) -> Estimate:
    """Share of margins (chosen minus rejected) above 0, with its interval over units. [n], [n] -> Estimate."""
    return bootstrap_mean((margins > 0).double(), resamples, seed, units, bounds=(0.0, 1.0))


def percent(accuracy: Estimate) -> str:
    """An accuracy with its interval, for one line of text: "56.2% [43.8, 68.8]"."""
    if accuracy.interval is None:
        return f"{accuracy.value:.1%} ({NO_INTERVAL})"
    return f"{accuracy.value:.1%} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def unsure(accuracy: Estimate) -> str:
    """A remark for an accuracy that chance explains as well; empty for others."""
    return f", {CHANCE}" if accuracy.low <= 0.5 <= accuracy.high else ""


def units_of(prompts: Iterable[Sequence[Message]]) -> Tensor:
    """The index of each prompt among the distinct ones. [n].

    A world draws prompts with replacement, and a file may have many pairs per prompt: such pairs are not independent draws.
    """
    units: dict[str, int] = {}
    return torch.tensor([units.setdefault(json.dumps(prompt), len(units)) for prompt in prompts])
