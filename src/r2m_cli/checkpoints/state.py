"""The state of a run between two steps."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class LoopState:
    """Everything that changes from step to step, apart from the models. Stored in a checkpoint's loop.json."""

    step: int = 0  # the last finished step
    beta: float | None = None  # weight of the KL in the next step, if adapted by ppo.kl_target; None: ppo.beta
    tokens: int = 0  # prompt and response tokens of all steps so far, all ranks
    seconds: float = 0.0  # wall time of the run so far, without the time between its parts
    ended: str | None = None  # "steps" after the last step, "guard" if guard.kl ended the run; None: not ended

    @classmethod
    def of(cls, loop: dict[str, Any]) -> "LoopState":
        """The state in a loop.json; fields missing in an older one get their defaults."""
        return cls(**{field.name: loop[field.name] for field in fields(cls) if field.name in loop})
