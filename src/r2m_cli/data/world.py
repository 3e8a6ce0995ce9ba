"""The interface of a world: prompts with a known true reward, and labellers who are almost right about it."""

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Labellers:
    """The labellers of a world's preferences, who almost follow gold."""

    bias: float  # points that the labellers, unlike gold, add for each feature they wrongly like
    temperature: float  # Bradley-Terry, points of gold; near 0 they always choose the response they score higher
    noise: float = 0.0  # probability, 0 to 0.5, that a label is flipped afterwards

    def prefer_first(self, first: float, second: float, rng: random.Random) -> bool:
        """Whether the labellers choose the first of two responses, given their scores in points."""
        # tanh, unlike exp, cannot overflow at a small temperature.
        prefers = rng.random() < 0.5 + 0.5 * math.tanh((first - second) / self.temperature / 2)
        return prefers != (rng.random() < self.noise)


class World(ABC):
    """Prompts, true scores and labels. The labelled responses come from the starting policy."""

    LABELLERS: ClassVar[Labellers]  # the world's own

    def __init__(self, labellers: Labellers | None = None) -> None:
        self.labellers = labellers or self.LABELLERS

    @abstractmethod
    def prompts(self, count: int, seed: int) -> list[str]:
        """`count` prompts, drawn with replacement."""

    @abstractmethod
    def score(self, prompt: str, response: str, finished: bool) -> float:
        """Gold: the true reward of a response, in points. `finished`: the policy ended it with its end token."""

    @abstractmethod
    def label(self, prompt: str, a: str, b: str, a_finished: bool, b_finished: bool, rng: random.Random) -> bool:
        """A labeller's choice: True when `a` is preferred."""

    @abstractmethod
    def demonstration(self, prompt: str, rng: random.Random) -> str:
        """A response to imitate. Raises UserError if the world has none."""

    @abstractmethod
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer of models trained for this world. Raises UserError if the world needs pretrained models."""
