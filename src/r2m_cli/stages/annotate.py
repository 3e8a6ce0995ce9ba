"""Stage 2: score the rollout with every model: rewards, old and reference log-probabilities (Algorithm 1, line "reward
annotation")."""

from collections import defaultdict

import torch
from torch import Tensor

from r2m_cli.batch import Annotated, Rollout
from r2m_cli.data.truncation import which_cut
from r2m_cli.maths.masking import length_mask
from r2m_cli.maths.shaping import fill_missing
from r2m_cli.models.actors import Actors
from r2m_cli.models.states import ANNOTATED
from r2m_cli.stages.packing import Pack, columns


@torch.no_grad()
def annotate(
    actors: Actors,
    rollout: Rollout,
    packs: list[Pack],
    weight: float,
    temperature: float,
    rewards_only: bool = False,
) -> Annotated:
    """Score the rollout with every model.

    The policy's hidden states come from the forward that the old log-probabilities need anyway. The adapter reads each
    pack's states at once, then they are dropped: only one reward per sequence is kept.

    Args:
        packs: all packs of the rollout.
        weight: w(t), the weight of the original reward token embedding.
        rewards_only: leave out reference and critic (responses that are scored but not trained on).
    """
    prompts, reward = rollout.prompt_of, actors.reward
    block = max(2, rollout.group_size)
    tables: dict[str, list[Tensor]] = defaultdict(list)  # [b, R'] per pack
    vectors: dict[str, list[Tensor]] = defaultdict(list)  # [b] or [b, D_rm] per pack
    for pack in packs:
        rows = pack.rows.tolist()
        texts = [prompts[i] for i in rows], [rollout.responses[i] for i in rows]
        rte, own = reward.embed(*texts, actors.device)
        output = actors.policy(pack.sequences, temperature, with_entropy=True)
        reference = None
        if actors.reference is not None and (actors.feedback_source == "reference" or not rewards_only):
            reference = actors.reference(pack.sequences, temperature)
            tables["ref"].append(reference.logp)
        vectors["rte"].append(rte)
        vectors["frozen"].append(reward.frozen_scores(rte, *texts, actors.device))
        tables["old"].append(output.logp)
        tables["entropy"].append(output.entropy)
        if reward.feedback is not None:
            seen = {"policy": output.states, "reference": reference and reference.states, "reward": own}[
                actors.feedback_source
            ]
            assert seen is not None
            score = reward.live_scores(rte, seen, weight, [rollout.seeds[i] for i in rows], block, phase=ANNOTATED)
            vectors["live"].append(score.reward)
            if score.attention_entropy is not None and score.adapter_scale is not None:
                vectors["attention"].append(score.attention_entropy)
                vectors["scale"].append(score.adapter_scale)
        if actors.critic is not None and not rewards_only:
            tables["values"].append(actors.critic(pack.sequences))

    width = int(rollout.response_lengths.max())
    joined = {name: columns(packs, parts) for name, parts in vectors.items()}
    joined |= {name: columns(packs, parts, width) for name, parts in tables.items()}
    groups = (-1, rollout.group_size)
    frozen = joined["frozen"].view(groups)
    live = joined["live"].view(groups) if "live" in joined else frozen
    added = reward.function_scores(prompts, rollout.responses, actors.device)
    if added is not None:
        added = added.view(groups)
        frozen, live = frozen + added, live + added
    valid = live.isfinite() & frozen.isfinite()
    gold = None
    if actors.gold is not None:
        scores = [actors.gold(*row) for row in zip(prompts, rollout.responses, rollout.finished)]
        gold = torch.tensor(scores, device=actors.device).view(groups)
    nothing = live.new_zeros(0)
    return Annotated(
        rollout=rollout,
        old_logp=joined["old"],
        ref_logp=joined.get("ref"),
        entropy=joined["entropy"],
        mask=length_mask(rollout.response_lengths, width),
        rte=torch.where(valid.view(-1, 1), joined["rte"], 0.0),
        rewards=fill_missing(live, valid),
        frozen_rewards=fill_missing(frozen, valid),
        valid=valid,
        gold=gold,
        values=joined.get("values"),
        attention_entropy=joined.get("attention", nothing),
        adapter_scale=joined.get("scale", nothing),
        cut=torch.tensor(which_cut(reward.truncations, prompts, rollout.responses)),
        function_rewards=None if added is None else torch.where(valid, added, 0.0),
    )
