"""Labelled pairs for the light update: those of the reward model for warm-up and replay, and those judged in the run."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r2m_cli.batch import Prompt
from r2m_cli.data.preferences import Pair
from r2m_cli.distributed import comm
from r2m_cli.judges.judge import Judge
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.maths.schedule import learning_rate
from r2m_cli.models.actors import Actors, pad
from r2m_cli.models.loading import context_length
from r2m_cli.models.sequences import Sequences
from r2m_cli.models.states import LABELLED, States
from r2m_cli.schema import Config, FeedbackConfig
from r2m_cli.seeds import mix
from r2m_cli.stages.packing import rows_per_forward

REPLAY, WARM_UP, SCORED = 8, 9, 11  # streams of random numbers


@dataclass(frozen=True)
class Labels:
    """Where real labels come from."""

    judge: Judge | None = None
    pairs: list[Pair] = field(default_factory=list)  # labelled pairs of the reward model, for warm-up and replay
    heldout: list[Pair] = field(default_factory=list)  # labelled pairs that nothing learns from
    judged: list[Pair] = field(default_factory=list)  # those that the judge has labelled so far; the run adds to them


def fits(actors: Actors, pair: Pair) -> bool:
    """Whether the policy can read prompt and either reply whole; where its states are not wanted it is not asked to."""
    limit = context_length(actors.policy.module.lm)
    if limit is None or actors.reward.feedback is None or actors.reward.kind == "head_only":
        return True
    prompt = len(actors.format.prompt_ids(pair.prompt))
    replies = (actors.format.response_ids(pair.prompt, reply) for reply in (pair.chosen, pair.rejected))
    return prompt + max(map(len, replies)) <= limit


def pairs_per_forward(actors: Actors, pairs: Sequence[Pair], budget: int) -> int:
    """How many of the pairs the policy may read at once in `budget` tokens."""
    chat = actors.format
    prompts = (len(chat.prompt_ids(p.prompt)) for p in pairs)
    replies = (len(chat.response_ids(p.prompt, p.chosen)) + len(chat.response_ids(p.prompt, p.rejected)) for p in pairs)
    return rows_per_forward(budget, [prompt + both for prompt, both in zip(prompts, replies)])


def pair_rewards(
    actors: Actors, pairs: Sequence[Pair], weight: float, seeds: list[int]
) -> tuple[Tensor, Tensor | None]:
    """Rewards of chosen and rejected replies: the initial model's on the text, the live one's with the policy's states.

    Both replies of all pairs go through in one batch: scored apart, anything that depends on the batch could tell
    winners from losers. The live rewards carry a gradient to adapter and head.

    Args:
        pairs: such as the policy can read, see `fits`.
        weight: w(t).
        seeds: one per pair.

    Returns:
        [m, 2] and, with feedback, [m, 2]; the chosen reply first.
    """
    reward = actors.reward
    prompts = [p.prompt for p in pairs for _ in (p.chosen, p.rejected)]
    replies = [reply for p in pairs for reply in (p.chosen, p.rejected)]
    rte, own = reward.embed(prompts, replies, actors.device)
    frozen = reward.frozen_scores(rte, prompts, replies, actors.device).view(-1, 2)
    if reward.feedback is None:
        return frozen, None
    if reward.kind == "head_only":
        return frozen, reward.feedback(rte, None, weight).reward.view(-1, 2)
    states = _read(actors, prompts, replies) if own is None else own
    rows = [mix(seed, side) for seed in seeds for side in (0, 1)]
    live = reward.read(rte, states, weight, rows, block=2, phase=LABELLED)
    return frozen, live.reward.view(-1, 2)


@torch.no_grad()
def _read(actors: Actors, prompts: Sequence[Prompt], replies: Sequence[str]) -> States:
    """The policy's states of pairs of replies, or the reference's."""
    chat = actors.format
    prompt_ids = [chat.prompt_ids(p) for p in prompts]
    reply_ids = [chat.response_ids(p, r) for p, r in zip(prompts, replies)]
    tokens, lengths = pad([p + r for p, r in zip(prompt_ids, reply_ids)], chat.pad_id)
    prompt_lengths = torch.tensor([len(p) for p in prompt_ids])
    tokens, lengths, prompt_lengths = (t.to(actors.device) for t in (tokens, lengths, prompt_lengths))
    reader = actors.reference if actors.reads == "reference" else actors.policy
    assert reader is not None
    output = reader(Sequences(tokens, prompt_lengths, lengths - prompt_lengths, group_size=2), 1.0)
    return output.states  # type: ignore[no-any-return]


def learn_from_pairs(
    actors: Actors, pairs: Sequence[Pair], weight: float, seed: int, budget: int
) -> tuple[Tensor, Tensor]:
    """Add the gradient of the pairs' mean Bradley-Terry loss over all ranks to adapter and head; no optimiser step.

    Args:
        pairs: the same on every rank; each rank takes its share.
        budget: tokens per forward.

    Returns:
        loss and "ordered right" (0 or 1) of this rank's pairs, each [pairs of this rank].
    """
    assert actors.reward.feedback is not None
    ranks = comm.world_size()
    share = -(-len(pairs) // ranks)
    # A rank whose share runs out goes on with weight 0: every rank must make the same collective calls.
    mine = [min(i, len(pairs) - 1) for i in range(comm.rank() * share, (comm.rank() + 1) * share)]
    real = [i < len(pairs) for i in range(comm.rank() * share, (comm.rank() + 1) * share)]
    micro_rows = pairs_per_forward(actors, pairs, budget)
    losses, right = [], []
    for start in range(0, share, micro_rows):
        part = mine[start : start + micro_rows]
        _, live = pair_rewards(actors, [pairs[i] for i in part], weight, [mix(seed, i) for i in part])
        assert live is not None
        counts = torch.tensor(real[start : start + micro_rows], device=live.device)
        loss = torch.where(counts, bradley_terry(live[:, 0], live[:, 1]), 0.0)
        actors.reward.feedback.backward(loss.sum() * ranks / len(pairs))
        losses.append(loss.detach()[counts])
        right.append((live[:, 0] > live[:, 1]).float()[counts])
    return torch.cat(losses), torch.cat(right)


def replay_batch(labels: Labels, config: FeedbackConfig, seed: int, step: int) -> list[Pair]:
    """The pairs that step `step` replays, drawn without replacement from the reward model's and from those judged so far;
    the same on every rank."""
    rng = random.Random(mix(seed, REPLAY, step))
    wanted = ((labels.pairs, config.replay_pairs), (labels.judged, config.judge_replay))
    return [pair for pairs, count in wanted for pair in rng.sample(pairs, min(count, len(pairs)))]


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
    starts = range(0, len(chosen), size)
    total, number = f.warmup_epochs * len(starts), 0
    for epoch in range(f.warmup_epochs):
        sums = comm.MetricSums()
        if epoch:
            random.Random(mix(config.seed, WARM_UP, epoch)).shuffle(chosen)
        for start in starts:
            seed = mix(config.seed, WARM_UP, number)
            batch = chosen[start : start + size]
            loss, right = learn_from_pairs(actors, batch, f.omega, seed, config.rollout.tokens_per_batch)
            lr = f.lr if f.warmup_lr is None else learning_rate(number, total, f.warmup_lr, 0, "linear")
            actors.reward.feedback.step(lr)
            sums.add("loss", loss)
            sums.add("accuracy", right)
            number += 1
    return {"pairs": float(len(chosen))} | sums.means()


@torch.no_grad()
def score_pairs(actors: Actors, pairs: Sequence[Pair], weight: float, budget: int) -> tuple[Tensor, Tensor | None]:
    """`pair_rewards` of any number of pairs, without a gradient; the same on every rank. -> [m, 2], [m, 2]."""
    rows = pairs_per_forward(actors, pairs, budget)
    parts = [
        pair_rewards(actors, pairs[i : i + rows], weight, [mix(SCORED, j) for j in range(i, i + rows)])
        for i in range(0, len(pairs), rows)
    ]
    frozen = torch.cat([text for text, _ in parts])
    live = [rewards for _, rewards in parts if rewards is not None]
    return frozen, torch.cat(live) if live else None
