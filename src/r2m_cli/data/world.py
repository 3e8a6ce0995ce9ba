"""What a world is: a source of prompts whose true reward is known, and of labellers who are almost right about it."""

import random
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class World(ABC):
    """Prompts, true scores and labels. The responses to be labelled are the starting policy's own."""

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
