"""Check the reward model on a few held-out labelled pairs before training, so that a flat or random one is noticed at once."""

import torch

from r2m_cli.conversation import Pair
from r2m_cli.maths.statistics import RESAMPLES
from r2m_cli.models.actors import Actors
from r2m_cli.stages.accuracy import accuracy_of, margins, percent, units_of, unsure
from r2m_cli.stages.pair_learning import score_pairs
from r2m_cli.text import number


def reward_check(
    actors: Actors, pairs: list[Pair], weight: float, budget: int, warm: bool = False
) -> tuple[list[str], list[str]]:
    """Notes for the user with accuracy, its interval, and spread; and warnings if the rewards are flat, no better than chance,
    or worse with feedback than without.

    Every rank scores the same pairs.

    Args:
        weight: w(T), the weight with which the live reward is computed.
        budget: tokens per forward.
        warm: adapter and head have been trained on labelled pairs, so they should be no worse than the text alone.
    """
    frozen, live = score_pairs(actors, pairs, weight, budget)
    notes = [f"reward model on {len(pairs)} held-out pairs: {_describe(pairs, frozen)}"]
    if live is not None and actors.reward.has_adapter:
        notes.append(f"with feedback, before any RL, at w = {weight:g}: {_describe(pairs, live)}")
    missing = int((~frozen.isfinite()).sum())
    warnings = []
    if missing:
        warnings.append(
            f"{missing} of {frozen.numel()} rewards are not finite numbers: check reward.path, or engine.dtype"
        )
    elif equal := equal_rewards(margins(pairs, frozen)):
        warnings += equal
    elif len(pairs) >= 16 and _right(pairs, frozen).mean() <= 0.5:
        warnings.append("the reward model is no better than chance: check that it fits the data, and its chat template")
    if warm and live is not None and len(pairs) >= 16:
        before, after = _right(pairs, frozen), _right(pairs, live)
        lost = before - after
        if lost.mean() > 2 * lost.std() / len(lost) ** 0.5:
            warnings.append(
                f"after the warm-up fewer held-out pairs are ordered right than by the text alone ({after.mean():.1%}, not "
                f"{before.mean():.1%}): use more labelled pairs, fewer passes (feedback.warmup_epochs), a lower "
                "feedback.warmup_lr, or feedback=none"
            )
    return notes, warnings


def equal_rewards(margins: torch.Tensor) -> list[str]:
    """A warning if a reward model distinguishes no pair's replies; used by training, evaluation and fitting.

    Args:
        margins: reward of the chosen minus that of the rejected reply, [n].
    """
    if not len(margins) or not bool((margins.abs() < 1e-6).all()):
        return []
    return [
        f"the rewards of chosen and rejected replies are all equal ({len(margins)} pairs): nothing can be measured or learnt with "
        "them; check reward.path, its tokenizer and chat template, and reward.max_tokens"
    ]


def _describe(pairs: list[Pair], rewards: torch.Tensor) -> str:
    finite = rewards.isfinite().all(dim=1).cpu()
    if not finite.any():
        return "no pair has finite rewards"
    found = margins(pairs, rewards)[finite]
    accuracy = accuracy_of(found, units_of(pair.prompt for pair in pairs)[finite], RESAMPLES, seed=0)
    return (
        f"{percent(accuracy)} ordered right{unsure(accuracy)}, spread (standard deviation) "
        f"{number(float(rewards.cpu()[finite].std()), 3)}, mean margin {number(float(found.mean()), 3)}"
    )


def _right(pairs: list[Pair], rewards: torch.Tensor) -> torch.Tensor:
    return (margins(pairs, rewards) > 0).float()
