"""Real labels for the light update: a judge on the step's own pairs, replayed and warm-up pairs of the reward model."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.data.preferences import Pair
from r2m_cli.distributed import comm
from r2m_cli.judges.judge import Comparison, Judge
from r2m_cli.maths.reward_loss import bradley_terry
from r2m_cli.models.actors import Actors, pad
from r2m_cli.models.loading import context_length
from r2m_cli.models.sequences import Sequences
from r2m_cli.models.states import LABELLED
from r2m_cli.schema import Config
from r2m_cli.seeds import mix
from r2m_cli.stages.packing import rows_per_forward

REPLAY, WARM_UP = 8, 9  # streams of random numbers


@dataclass(frozen=True)
class Labels:
    """Where real labels come from."""

    judge: Judge | None = None
    pairs: list[Pair] = field(default_factory=list)  # labelled pairs of the reward model, for warm-up and replay


def judged(annotated: Annotated, judge: Judge, budget: int) -> Tensor:
    """What the judge says of best and worst response, by annotated reward, of the step's first `budget` groups.

    Returns:
        [n] preference for the best one, 0 to 1; NaN where the judge was not asked.
    """
    rollout, rewards = annotated.rollout, annotated.rewards
    whole = annotated.valid.all(dim=1).tolist()  # a group with a missing reward learns nothing: no label for it
    asked = [group for group in range(len(whole)) if rollout.numbers[group] < budget and whole[group]]
    best, worst = (index.tolist() for index in (rewards.argmax(dim=1), rewards.argmin(dim=1)))
    questions = []
    for group in asked:
        pair = [group * rollout.group_size + index[group] for index in (best, worst)]
        texts, ends = [rollout.responses[i] for i in pair], [rollout.finished[i] for i in pair]
        questions.append(Comparison(rollout.prompts[group], texts[0], texts[1], (ends[0], ends[1])))
    said = rewards.new_full((len(whole),), torch.nan)
    if questions:
        said[asked] = torch.tensor(judge(questions), dtype=said.dtype, device=said.device)
    return said


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
    chat, reward = actors.format, actors.reward
    prompts = [p.prompt for p in pairs for _ in (p.chosen, p.rejected)]
    replies = [reply for p in pairs for reply in (p.chosen, p.rejected)]
    rte = reward.embed(prompts, replies, actors.device)
    frozen = reward.frozen_scores(rte, prompts, replies, actors.device).view(-1, 2)
    if reward.feedback is None:
        return frozen, None
    if reward.kind == "head_only":
        return frozen, reward.feedback(rte, None, weight).reward.view(-1, 2)
    prompt_ids = [chat.prompt_ids(p) for p in prompts]
    reply_ids = [chat.response_ids(p, r) for p, r in zip(prompts, replies)]
    tokens, lengths = pad([p + r for p, r in zip(prompt_ids, reply_ids)], chat.pad_id)
    prompt_lengths = torch.tensor([len(p) for p in prompt_ids])
    tokens, lengths, prompt_lengths = (t.to(actors.device) for t in (tokens, lengths, prompt_lengths))
    with torch.no_grad():
        output = actors.policy(Sequences(tokens, prompt_lengths, lengths - prompt_lengths, group_size=2), 1.0)
    rows = [mix(seed, side) for seed in seeds for side in (0, 1)]
    live = reward.read(rte, output.states, weight, rows, block=2, phase=LABELLED)
    return frozen, live.reward.view(-1, 2)


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


def replay_batch(pairs: list[Pair], count: int, seed: int, step: int) -> list[Pair]:
    """The pairs that step `step` replays, drawn without replacement; the same on every rank."""
    return random.Random(mix(seed, REPLAY, step)).sample(pairs, min(count, len(pairs)))


def warm_up(actors: Actors, pairs: list[Pair], config: Config) -> dict[str, float]:
    """One pass of adapter and head over labelled pairs with the starting policy's states, before RL.

    The weight is Omega, the largest share that the adapter will ever have; at w(0) = 1 it would have no gradient at all.
    An update takes ppo.prompts_per_step pairs.

    Returns:
        pairs, mean loss, and share of pairs ordered right before the update that learns from them.

    Raises:
        FloatingPointError: a gradient that is not finite.
    """
    assert actors.reward.feedback is not None
    size = config.ppo.prompts_per_step
    chosen = random.Random(mix(config.seed, WARM_UP)).sample(pairs, min(config.feedback.warmup_pairs, len(pairs)))
    sums = comm.MetricSums()
    for number, start in enumerate(range(0, len(chosen), size)):
        seed = mix(config.seed, WARM_UP, number)
        loss, right = learn_from_pairs(
            actors, chosen[start : start + size], config.feedback.omega, seed, config.rollout.tokens_per_batch
        )
        actors.reward.feedback.step(config.feedback.lr)
        sums.add("loss", loss)
        sums.add("accuracy", right)
    return {"pairs": float(len(chosen))} | sums.means()
