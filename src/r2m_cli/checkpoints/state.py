"""Where a run stands between two steps."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass
class LoopState:
    """What moves with the steps, apart from the models. A checkpoint's loop.json holds it."""

    step: int = 0  # the last one that is done
    beta: float | None = None  # weight of the KL in the next step where ppo.kl_target has moved it; None: ppo.beta
    tokens: int = 0  # prompt and response tokens of all steps so far, all ranks
    seconds: float = 0.0  # wall time of the run so far, without the time between its parts
    ended: str | None = None  # "steps" after the last one, "guard" where guard.kl ended the run; None: it goes on

    @classmethod
    def of(cls, loop: dict[str, Any]) -> "LoopState":
        """The state in a loop.json; what an older one does not say is as at the start."""
        return cls(**{field.name: loop[field.name] for field in fields(cls) if field.name in loop})
