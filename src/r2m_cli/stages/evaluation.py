"""Evaluation on the fixed prompts and the held-out pairs, during training and after it."""

from r2m_cli.batch import Annotated
from r2m_cli.config.schema import Config
from r2m_cli.conversation import Pair, Prompt
from r2m_cli.models.actors import Actors
from r2m_cli.seeds import Stream
from r2m_cli.stages.accuracy import margins
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.metrics import evaluation_metrics
from r2m_cli.stages.packing import pack, shard
from r2m_cli.stages.pair_learning import score_pairs
from r2m_cli.stages.rollout import rollout


def fixed_responses(actors: Actors, prompts: list[Prompt], config: Config, weight: float) -> Annotated:
    """One response to each of this rank's fixed prompts, always with the same random draws, scored by every model.

    Args:
        prompts: of all ranks.
        weight: w(t) of the live reward.
    """
    batch = rollout(actors, *shard(prompts), 1, config.rollout, config.seed, Stream.EVAL, 0)
    (packs,) = pack(batch, config.rollout.tokens_per_batch)
    return annotate(actors, batch, packs, weight, config.rollout.temperature)


def evaluate(actors: Actors, prompts: list[Prompt], config: Config, weight: float) -> dict[str, float]:
    """The means of the fixed responses' metrics, `eval/*`. Collective; arguments as in `fixed_responses`."""
    return evaluation_metrics(fixed_responses(actors, prompts, config, weight)).means()


def pair_accuracy(actors: Actors, pairs: list[Pair], weight: float, budget: int) -> dict[str, float]:
    """Shares of held-out labelled pairs that the initial and the live reward model order right; empty without pairs.

    Args:
        weight: w(t) of the live reward; with w(0) = 1 the states would have no effect.
        budget: tokens per forward.
    """
    if not pairs:
        return {}
    frozen, live = score_pairs(actors, pairs, weight, budget)
    scores = {"eval/pair_accuracy_frozen": frozen, "eval/pair_accuracy": frozen if live is None else live}
    return {name: float((margins(pairs, rewards) > 0).float().mean()) for name, rewards in scores.items()}
