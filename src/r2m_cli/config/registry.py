"""What can be chosen by name, with what the configuration must know about it: advantage estimators, feedback variants, worlds.

Each entry names its function or class as `module:name`, which is imported only when used, so that checking a configuration
does not import torch. docs/extend.md shows how to add one of each.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimator:
    """An advantage estimator, `ppo.algorithm`.

    Its function gets the shaped rewards of n prompts with K responses each, [n, K], and returns their advantages, [n, K].
    With per_token it gets the rewards of every token, [B, R] for B = n K responses, and returns [B, R].
    """

    function: str
    compares: bool = False  # it compares the K responses of a prompt, so K must be at least 2
    per_token: bool = False  # it needs ppo.ratio=token
    greedy: bool = False  # it takes a second argument: the reward of each prompt's greedy response, [n]
    critic: bool = False  # it is `maths.gae.gae` or has the same signature: it also takes values and returns returns


ESTIMATORS = {
    "rloo": Estimator("r2m_cli.maths.advantages:rloo", compares=True),
    "grpo": Estimator("r2m_cli.maths.advantages:grpo", compares=True),
    "remax": Estimator("r2m_cli.maths.advantages:remax", greedy=True),
    "reinforce_pp": Estimator("r2m_cli.maths.advantages:returns_to_go", per_token=True),
    "ppo": Estimator("r2m_cli.maths.gae:gae", per_token=True, critic=True),
}


@dataclass(frozen=True)
class Feedback:
    """A feedback variant, `feedback.kind`: what the adapter gets, and whether it learns."""

    states: str | None  # a function like `models.states.own`; None: there is no adapter
    learns: bool = True  # adapter and head, or the head alone, are updated at every step
    mixes: bool = False  # a sequence gets the states of another one, so batches need at least two sequences


FEEDBACKS = {
    "r2m": Feedback("r2m_cli.models.states:own"),
    "frozen": Feedback("r2m_cli.models.states:own", learns=False),
    "noise": Feedback("r2m_cli.models.states:noise_like"),
    "shuffled": Feedback("r2m_cli.models.states:shuffled", mixes=True),
    "head_only": Feedback(None),
    "none": Feedback(None, learns=False),
}


@dataclass(frozen=True)
class WorldEntry:
    """A world, `data.kind`: prompts whose true reward is known."""

    world: str  # a subclass of `data.world.World`
    own_models: bool = True  # it has demonstrations and a tokenizer, so that models can be fitted from scratch


WORLDS = {
    "gold": WorldEntry("r2m_cli.data.gold_world:GoldWorld"),
    "english": WorldEntry("r2m_cli.data.english_world:EnglishWorld", own_models=False),
}


def has_own_models(kind: str) -> bool:
    """Whether models can be fitted from scratch on data of this `data.kind`."""
    return kind in WORLDS and WORLDS[kind].own_models
