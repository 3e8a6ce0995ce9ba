"""Stage 2: one look of every model at the rollout: rewards, old and reference log-probabilities (Algorithm 1, line
"reward annotation")."""

import torch
from torch import Tensor

from r2m_cli.batch import Annotated, Rollout, micro_batches
from r2m_cli.maths.masking import length_mask
from r2m_cli.models.actors import Actors
from r2m_cli.models.policy import PolicyOutput


@torch.no_grad()
def annotate(actors: Actors, rollout: Rollout, weight: float, temperature: float, micro_groups: int) -> Annotated:
    """Annotate.

    The policy's hidden states come from the forward that the old log-probabilities need anyhow. Each micro-batch's
    states are read by the adapter at once and dropped: what is kept is one reward per sequence.

    Args:
        weight: w(t), the weight of the original reward token embedding.
    """
    width = int(rollout.response_lengths.max())
    prompts = rollout.prompt_of
    columns: dict[str, list[Tensor]] = {k: [] for k in ("rte", "old", "ref", "ent", "reward", "attention", "scale")}
    for part in micro_batches(len(prompts), rollout.group_size, micro_groups):
        rte = actors.reward.embed(prompts[part], rollout.responses[part], actors.device)
        output = forward(actors.policy, rollout, part, temperature, with_entropy=True)
        columns["rte"].append(rte)
        columns["old"].append(_widen(output.logp, width))
        columns["ent"].append(_widen(output.entropy, width))
        if actors.reward.feedback is not None:
            score = actors.reward.feedback(rte, output.hidden, output.hidden_mask, weight)
            columns["reward"].append(score.reward)
            columns["attention"].append(score.attention_entropy)
            columns["scale"].append(score.adapter_scale)
        if actors.reference is not None:
            columns["ref"].append(_widen(forward(actors.reference, rollout, part, temperature).logp, width))

    rte = torch.cat(columns["rte"])
    frozen = actors.reward.frozen_head(rte).squeeze(1)
    live = torch.cat(columns["reward"]) if columns["reward"] else frozen
    gold = None
    if actors.gold is not None:
        scores = [actors.gold(*row) for row in zip(prompts, rollout.responses, rollout.finished)]
        gold = torch.tensor(scores, device=actors.device).view(-1, rollout.group_size)
    return Annotated(
        rollout=rollout,
        old_logp=torch.cat(columns["old"]),
        ref_logp=torch.cat(columns["ref"]) if columns["ref"] else None,
        entropy=torch.cat(columns["ent"]),
        mask=length_mask(rollout.response_lengths, width),
        rte=rte,
        rewards=live.view(-1, rollout.group_size),
        frozen_rewards=frozen.view(-1, rollout.group_size),
        gold=gold,
        attention_entropy=torch.cat(columns["attention"]) if columns["attention"] else rte.new_zeros(0),
        adapter_scale=torch.cat(columns["scale"]) if columns["scale"] else rte.new_zeros(0),
    )


def forward(
    policy: object, rollout: Rollout, part: slice, temperature: float, with_entropy: bool = False
) -> PolicyOutput:
    """One micro-batch of the rollout through a policy, cut to its own longest sequence."""
    prompt_lengths, response_lengths = rollout.prompt_lengths[part], rollout.response_lengths[part]
    longest = int((prompt_lengths + response_lengths).max())
    tokens = rollout.tokens[part, :longest]
    return policy(tokens, prompt_lengths, response_lengths, temperature, with_entropy)  # type: ignore[operator, no-any-return]


def _widen(values: Tensor | None, width: int) -> Tensor:
    assert values is not None
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
