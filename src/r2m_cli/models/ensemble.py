"""An ensemble of frozen reward models: its further members, and their common scale."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from r2m_cli.conversation import Prompt
from r2m_cli.data.truncation import Truncation
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import FIT
from r2m_cli.maths.ensemble import combine, standardise
from r2m_cli.text import from_home

# The type of `RewardModel.score`: prompts, responses, device -> [B]
Scores = Callable[[list[Prompt], list[str], torch.device], Tensor]


class Calibration(NamedTuple):
    """Mean and standard deviation of a member's scores on labelled responses, in its own units of reward."""

    mean: float = 0.0
    std: float = 1.0


@dataclass(frozen=True)
class Ensemble:
    """Combines the rewards of M members into one; the first member is the RewardModel that holds this ensemble.

    It is frozen, so a run's `reward_model/` folder holds only the first member; the others stay at the paths given by
    `reward.paths` in its `config.yaml`.
    """

    further: tuple[Scores, ...]  # M - 1
    calibrations: tuple[Calibration, ...]  # M
    how: str  # reward.combine
    uncertainty: float  # reward.uncertainty
    truncations: tuple[Truncation, ...] = ()  # M - 1, of the further members

    def reward(self, first: Tensor, prompts: list[Prompt], responses: list[str], device: torch.device) -> Tensor:
        """The members' calibrated scores, combined; `first` [B] are the first member's raw scores. -> [B]."""
        scores = torch.stack([first, *(score(prompts, responses, device) for score in self.further)])
        mean, std = (torch.tensor(column, device=scores.device) for column in zip(*self.calibrations))
        return combine(standardise(scores, mean, std), self.how, self.uncertainty)


def calibration_of(name: str) -> Calibration | None:
    """The calibration in the `fit.json` of a reward model's folder; None for a hub name, or if it is missing or has no spread.

    Raises:
        UserError: fit.json cannot be read.
    """
    file = from_home(name) / FIT
    if not file.is_file():
        return None
    try:
        values = json.loads(file.read_text())
        if not {"score_mean", "score_std"} <= set(values):
            return None
        found = Calibration(float(values["score_mean"]), float(values["score_std"]))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: cannot be read as the figures of a fit ({error}); correct it, or remove it to use the scores uncalibrated"
        ) from error
    return found if found.std > 0 and all(map(math.isfinite, found)) else None


def uncalibrated(names: list[str]) -> str | None:
    """One line for the user about the ensemble's members without calibration; None if there are none.

    Raises UserError, from `calibration_of`.
    """
    found = [name for name in names if calibration_of(name) is None]
    if not found:
        return None
    return (
        f"reward.combine: {', '.join(found)}: no fit.json with score_mean and score_std there (`r2m reward` writes it), so "
        "these scores enter the ensemble without calibration"
    )
