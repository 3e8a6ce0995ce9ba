"""Judges decide which of two responses is better: the gold world, a reward model, or a language model behind an endpoint.

The language model is `openai_judge.OpenAIJudge`.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r2m_cli.conversation import Prompt
from r2m_cli.data.world import World


@dataclass(frozen=True)
class Comparison:
    """Two responses to one prompt; `finished` says whether each ended with an end token, which affects gold."""

    prompt: Prompt
    first: str
    second: str
    finished: tuple[bool, bool] = (True, True)


# For each comparison the preference for the first response: 1 it wins, 0.5 a tie, 0 it loses. A judge that is asked in both
# orders and contradicts itself may return 0.25 or 0.75. NaN: no verdict (an answer without one, or a score that is NaN).
Judge = Callable[[Sequence[Comparison]], list[float]]


def gold_judge(gold: Callable[[Prompt, str, bool], float]) -> Judge:
    """A judge that knows the true reward.

    Args:
        gold: prompt, response, whether it has an end token -> true reward, in points.
    """

    def judge(comparisons: Sequence[Comparison]) -> list[float]:
        return [
            _preference(gold(c.prompt, c.first, c.finished[0]), gold(c.prompt, c.second, c.finished[1]))
            for c in comparisons
        ]

    return judge


def labeller_judge(world: World, seed: int) -> Judge:
    """The world's labeller, with the same bias and noise as for the reward model's pairs; the answer to a pair never changes."""

    def judge(comparisons: Sequence[Comparison]) -> list[float]:
        said = []
        for c in comparisons:
            prompt = c.prompt[-1]["content"]
            rng = random.Random(f"{seed} {prompt} | {c.first} | {c.second}")
            said.append(float(world.label(prompt, c.first, c.second, *c.finished, rng)))
        return said

    return judge


def score_judge(score: Callable[[list[Prompt], list[str]], Sequence[float]]) -> Judge:
    """A judge that prefers the response with the higher score of a reward model, however small the difference.

    Args:
        score: prompts and one response to each -> their rewards, in the same order. Called once for all comparisons.
    """

    def judge(comparisons: Sequence[Comparison]) -> list[float]:
        prompts = [c.prompt for c in comparisons]
        scores = score(prompts + prompts, [c.first for c in comparisons] + [c.second for c in comparisons])
        return [_preference(*pair) for pair in zip(scores[: len(prompts)], scores[len(prompts) :])]

    return judge


def _preference(first: float, second: float) -> float:
    if math.isnan(first) or math.isnan(second):
        return math.nan
    return 0.5 if first == second else float(first > second)
