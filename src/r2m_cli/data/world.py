"""What a world is: a source of prompts whose true reward is known, and of labellers who are almost right about it."""

import math
import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Labellers:
    """Who labels a world's preferences: by gold, almost."""

    bias: float  # points that they, not gold, give for what they wrongly like
    temperature: float  # Bradley-Terry, points of gold; near 0 they always choose the one they like better
    noise: float = 0.0  # probability, 0 to 0.5, that a label is flipped afterwards

    def prefer_first(self, first: float, second: float, rng: random.Random) -> bool:
        """Whether they choose the first of two responses that they like so much, in points."""
        # tanh, unlike exp, cannot overflow at a small temperature.
        prefers = rng.random() < 0.5 + 0.5 * math.tanh((first - second) / self.temperature / 2)
        return prefers != (rng.random() < self.noise)


class World(ABC):
    """Prompts, true scores and labels. The responses to be labelled are the starting policy's own."""

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
        """What a labeller says: True when `a` is preferred."""

    @abstractmethod
    def demonstration(self, prompt: str, rng: random.Random) -> str:
        """A response to imitate. Raises UserError where the world has none."""

    @abstractmethod
    def tokenizer(self) -> "PreTrainedTokenizerFast":
        """The tokenizer of a model made for this world. Raises UserError where only pretrained models can speak in it."""
