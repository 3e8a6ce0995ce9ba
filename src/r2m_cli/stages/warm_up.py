"""Before RL: train adapter and head on labelled pairs."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from r2m_cli.config.schema import Config
from r2m_cli.console import Count
from r2m_cli.conversation import Pair
from r2m_cli.distributed import comm
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.maths.schedule import learning_rate
from r2m_cli.maths.statistics import pass_to_keep
from r2m_cli.models.actors import Actors
from r2m_cli.models.states import States
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.pair_learning import (
    EmbeddedPairs,
    Labels,
    embed_pairs,
    join,
    learn_from_pairs,
    live_rewards,
    pair_tokens,
    pairs_per_forward,
    score_pairs,
    scored_seed,
    share,
)

KEPT = "warm_up"  # folder and tag of the best pass so far
LIMIT = 2**30  # bytes of states that are cached between passes over the pairs


def warm_up(actors: Actors, labels: Labels, config: Config, run_dir: Path) -> dict[str, float]:
    """Train adapter and head on labelled pairs with the starting policy's states, before RL.

    The weight is Omega, which gives the adapter its largest share; with w(0) = 1 it would have no gradient at all. An update
    takes ppo.prompts_per_step pairs. The last of several passes is kept, unless the held-out pairs show that it overfitted
    the training pairs: see `pass_to_keep`.

    Args:
        run_dir: the best pass so far is written there until the warm-up ends.

    Returns:
        number of pairs; mean loss and share of pairs ordered right in the last pass, each measured before the update on
        those pairs; with several passes and held-out pairs also the kept pass, counted from 1, its mean held-out loss and
        that of the last pass.

    Raises:
        FloatingPointError: a gradient is not finite.
    """
    assert actors.reward.feedback is not None
    f, size, budget = config.feedback, config.ppo.prompts_per_step, config.rollout.tokens_per_batch
    chosen = random.Random(draw_seed(Stream.WARM_UP, config.seed)).sample(
        labels.pairs, min(f.warmup_pairs, len(labels.pairs))
    )
    heldout = labels.heldout if f.warmup_epochs > 1 else []
    known, known_heldout = (
        embedded_once(actors, pairs, budget) if pairs and f.warmup_epochs > 1 else None for pairs in (chosen, heldout)
    )
    order, starts = list(range(len(chosen))), range(0, len(chosen), size)
    total, number = f.warmup_epochs * len(starts), 0
    count = Count("warm-up, update", comm.is_main())
    losses: list[Tensor] = []  # of the held-out pairs after each pass
    for epoch in range(f.warmup_epochs):
        sums = comm.MetricSums()
        if epoch:
            random.Random(draw_seed(Stream.WARM_UP_ORDER, config.seed, epoch)).shuffle(order)
        for start in starts:
            seed = draw_seed(Stream.WARM_UP_STEP, config.seed, number)
            batch = order[start : start + size]
            loss, right = learn_from_pairs(
                actors, [chosen[i] for i in batch], f.omega, seed, budget, [known[i] for i in batch] if known else None
            )
            lr = f.lr if f.warmup_lr is None else learning_rate(number, total, f.warmup_lr, 0, "linear")
            actors.reward.feedback.step(lr)
            sums.add("loss", loss)
            sums.add("accuracy", right)
            number += 1
            count(number, total)
        if heldout:
            losses.append(_losses(actors, heldout, known_heldout, f.omega, budget))
            if losses[-1].mean() <= min(loss.mean() for loss in losses):
                actors.reward.feedback.save(run_dir / KEPT, KEPT)
    values = {"pairs": float(len(chosen))} | sums.means()
    if heldout:
        kept = pass_to_keep(torch.stack(losses))
        if kept < f.warmup_epochs - 1:
            actors.reward.feedback.load(run_dir / KEPT, KEPT)
        values |= {"pass kept": kept + 1.0, "its held-out loss": float(losses[kept].mean())}
        values["that of the last pass"] = float(losses[-1].mean())
        comm.barrier()
        if comm.is_main():
            shutil.rmtree(run_dir / KEPT, ignore_errors=True)
    return values


@torch.no_grad()
def _losses(
    actors: Actors, pairs: Sequence[Pair], known: Sequence[EmbeddedPairs] | None, weight: float, budget: int
) -> Tensor:
    """Bradley-Terry loss of each pair under the live reward model; the same on every rank. [m]."""
    if known is None:
        live = score_pairs(actors, pairs, weight, budget)[1]
        assert live is not None
    else:  # a few at a time: each pair's attention spans the states of its complete batch
        spans = [range(i, min(i + 16, len(known))) for i in range(0, len(known), 16)]
        live = torch.cat(
            [
                live_rewards(
                    actors, join([known[i] for i in span], actors.device), weight, [scored_seed(i) for i in span]
                )
                for span in spans
            ]
        )
    return bradley_terry(live[:, 0], live[:, 1])


@torch.no_grad()
def embedded_once(actors: Actors, pairs: Sequence[Pair], budget: int) -> list[EmbeddedPairs] | None:
    """Embed all pairs once with the policy and the reward model's backbone, which do not change before RL. Each rank embeds its
    part; the result is on the CPU, the same on every rank. None if the states would take more than LIMIT bytes.

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
    found: list[EmbeddedPairs] = []
    count = Count("reading labelled pairs", comm.is_main())
    for start in range(0, len(mine), rows):
        count(start, len(mine))
        found += _apart(embed_pairs(actors, [pairs[i] for i in mine[start : start + rows]]))
    return [part for parts in comm.gather([part for part, own in zip(found, real) if own]) for part in parts]


def _apart(batch: EmbeddedPairs) -> list[EmbeddedPairs]:
    """Split a batch into single pairs."""
    parts = []
    for i in range(0, len(batch.rte), 2):
        states = batch.states
        if states is not None:
            visible = states.visible[i : i + 2]
            used = visible.any(dim=0)
            states = States(states.hidden[used].cpu(), visible[:, used].cpu())
        parts.append(EmbeddedPairs(batch.rte[i : i + 2].cpu(), states))
    return parts
