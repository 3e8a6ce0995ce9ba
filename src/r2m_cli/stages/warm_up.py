"""Before RL: adapter and head learn from labelled pairs."""

import random
from collections.abc import Sequence

import torch

from r2m_cli.data.preferences import Pair
from r2m_cli.distributed import comm
from r2m_cli.maths.schedule import learning_rate
from r2m_cli.models.actors import Actors
from r2m_cli.models.states import States
from r2m_cli.schema import Config
from r2m_cli.seeds import mix
from r2m_cli.stages.labelled import Read, learn_from_pairs, pair_tokens, pairs_per_forward, read, share

WARM_UP = 9  # stream of random numbers
LIMIT = 2**30  # bytes of states that are kept from one pass over the pairs to the next


def warm_up(actors: Actors, pairs: list[Pair], config: Config) -> dict[str, float]:
    """Adapter and head learn from labelled pairs with the starting policy's states, before RL.

    The weight is Omega, the largest share that the adapter will ever have; at w(0) = 1 it would have no gradient at all.
    An update takes ppo.prompts_per_step pairs.

    Returns:
        pairs; mean loss, and share of pairs ordered right before the update that learns from them, in the last pass.

    Raises:
        FloatingPointError: a gradient that is not finite.
    """
    assert actors.reward.feedback is not None
    size, f = config.ppo.prompts_per_step, config.feedback
    chosen = random.Random(mix(config.seed, WARM_UP)).sample(pairs, min(f.warmup_pairs, len(pairs)))
    order, starts = list(range(len(chosen))), range(0, len(chosen), size)
    known = read_once(actors, chosen, config.rollout.tokens_per_batch) if f.warmup_epochs > 1 else None
    total, number = f.warmup_epochs * len(starts), 0
    for epoch in range(f.warmup_epochs):
        sums = comm.MetricSums()
        if epoch:
            random.Random(mix(config.seed, WARM_UP, epoch)).shuffle(order)
        for start in starts:
            seed = mix(config.seed, WARM_UP, number)
            batch = order[start : start + size]
            loss, right = learn_from_pairs(
                actors, [chosen[i] for i in batch], f.omega, seed, config.rollout.tokens_per_batch,
                [known[i] for i in batch] if known else None,
            )  # fmt: skip
            lr = f.lr if f.warmup_lr is None else learning_rate(number, total, f.warmup_lr, 0, "linear")
            actors.reward.feedback.step(lr)
            sums.add("loss", loss)
            sums.add("accuracy", right)
            number += 1
    return {"pairs": float(len(chosen))} | sums.means()


@torch.no_grad()
def read_once(actors: Actors, pairs: Sequence[Pair], budget: int) -> list[Read] | None:
    """All pairs as the policy and the reward model's backbone read them; neither changes before RL. On the CPU, the same on
    every rank; each reads its part. None where the states would take more than LIMIT bytes.

    Args:
        budget: tokens per forward.
    """
    assert actors.reward.feedback is not None
    module = actors.reward.feedback.module
    if hasattr(module, "adapter"):
        kept = len(module.adapter.w_k) * sum(pair_tokens(actors, pairs))
    else:
        kept = 2 * len(pairs) * module.phi.in_features
    if 4 * kept > LIMIT:
        return None
    mine, real = share(len(pairs))
    rows = pairs_per_forward(actors, pairs, budget)
    found = [
        part
        for start in range(0, len(mine), rows)
        for part in _apart(read(actors, [pairs[i] for i in mine[start : start + rows]]))
    ]
    return [part for parts in comm.gather([part for part, own in zip(found, real) if own]) for part in parts]


def _apart(batch: Read) -> list[Read]:
    """A batch pair by pair."""
    parts = []
    for i in range(0, len(batch.rte), 2):
        states = batch.states
        if states is not None:
            readable = states.readable[i : i + 2]
            used = readable.any(dim=0)
            states = States(states.hidden[used].cpu(), readable[:, used].cpu())
        parts.append(Read(batch.rte[i : i + 2].cpu(), states))
    return parts
