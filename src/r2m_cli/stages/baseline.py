"""ReMax's baseline: the reward of the greedy response to each prompt of the step (arXiv 2310.10505)."""

from dataclasses import replace

from r2m_cli.batch import Annotated, Rollout
from r2m_cli.config.schema import Config
from r2m_cli.models.actors import Actors
from r2m_cli.seeds import Stream
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.packing import pack
from r2m_cli.stages.rollout import rollout


def greedy_responses(actors: Actors, sampled: Rollout, config: Config, step: int, weight: float) -> Annotated:
    """One greedy response to each prompt of the batch, with its reward.

    Args:
        sampled: the step's rollout; this rank's prompts are taken from it.
        weight: w(t) of the live reward.
    """
    likeliest = replace(config.rollout, temperature=0.0)
    batch = rollout(actors, sampled.prompts, sampled.group_ids, 1, likeliest, config.seed, Stream.GREEDY, step)
    (packs,) = pack(batch, config.rollout.tokens_per_batch)
    return annotate(actors, batch, packs, weight, config.rollout.temperature, rewards_only=True)
