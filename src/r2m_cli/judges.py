"""Who says which of two responses is better: the gold world, a reward model, or a language model behind an endpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r2m_cli.batch import Prompt


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt; `finished` says whether each ended by itself (the gold world cares)."""

    prompt: Prompt
    first: str
    second: str
    finished: tuple[bool, bool] = (True, True)


# For each comparison the preference for the first response: 1 it wins, 0.5 a tie, 0 it loses.
Judge = Callable[[Sequence[Comparison]], list[float]]
