"""An accuracy with its interval over distinct prompts, and its words: never a bare number, never chance taken for skill."""

import json
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from r2m_cli.conversation import Message
from r2m_cli.maths.statistics import Estimate, bootstrap_mean

NO_INTERVAL = "one prompt: no interval"
CHANCE = "not distinguishable from chance"


def accuracy_of(margins: Tensor, units: Tensor, resamples: int, seed: int) -> Estimate:
    """Share of margins (chosen minus rejected) above 0, with its interval over units. [n], [n] -> Estimate."""
    return bootstrap_mean((margins > 0).double(), resamples, seed, units, bounds=(0.0, 1.0))


def percent(accuracy: Estimate) -> str:
    """An accuracy beside its interval, for one line of text: "56.2% [43.8, 68.8]"."""
    if accuracy.interval is None:
        return f"{accuracy.value:.1%} ({NO_INTERVAL})"
    return f"{accuracy.value:.1%} [{100 * accuracy.low:.1f}, {100 * accuracy.high:.1f}]"


def unsure(accuracy: Estimate) -> str:
    """What to add to an accuracy that chance explains as well; nothing to others."""
    return f", {CHANCE}" if accuracy.low <= 0.5 <= accuracy.high else ""


def units_of(prompts: Iterable[Sequence[Message]]) -> Tensor:
    """The number of each prompt among the distinct ones. [n].

    A world draws prompts with replacement, and a file may have many pairs with one: they are no independent draws.
    """
    units: dict[str, int] = {}
    return torch.tensor([units.setdefault(json.dumps(prompt), len(units)) for prompt in prompts])
