"""Stage 2: one look of every model at the rollout: rewards, old and reference log-probabilities (Algorithm 1, line
"reward annotation")."""

from collections import defaultdict

import torch
from torch import Tensor

from r2m_cli.batch import Annotated, Rollout, micro_batches
from r2m_cli.distributed.engine import Engine
from r2m_cli.maths.masking import length_mask
from r2m_cli.maths.shaping import fill_missing
from r2m_cli.models.actors import Actors
from r2m_cli.models.policy import PolicyOutput
from r2m_cli.models.states import ANNOTATED


@torch.no_grad()
def annotate(
    actors: Actors,
    rollout: Rollout,
    weight: float,
    temperature: float,
    micro_groups: int,
    rewards_only: bool = False,
) -> Annotated:
    """Annotate.

    The policy's hidden states come from the forward that the old log-probabilities need anyhow. Each micro-batch's
    states are read by the adapter at once and dropped: what is kept is one reward per sequence.

    Args:
        weight: w(t), the weight of the original reward token embedding.
        rewards_only: leave out reference and critic (responses that are scored but not trained on).
    """
    width = int(rollout.response_lengths.max())
    prompts, reward = rollout.prompt_of, actors.reward
    block = rollout.group_size
    if block == 1:  # single responses: feedback=shuffled swaps neighbours, which a micro-batch must not part
        block, micro_groups = 2, micro_groups + micro_groups % 2
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for part in micro_batches(len(prompts), rollout.group_size, micro_groups):
        texts = (prompts[part], rollout.responses[part])
        rte = reward.embed(*texts, actors.device)
        output = forward(actors.policy, rollout, part, temperature, with_entropy=True)
        columns["rte"].append(rte)
        columns["old"].append(_widen(output.logp, width))
        columns["entropy"].append(_widen(output.entropy, width))
        columns["frozen"].append(reward.frozen_scores(rte, *texts, actors.device))
        if reward.feedback is not None:
            score = reward.read(rte, output.hidden, output.hidden_mask, weight, rollout.seeds[part], block, ANNOTATED)
            columns["live"].append(score.reward)
            if score.attention_entropy is not None and score.adapter_scale is not None:
                columns["attention"].append(score.attention_entropy)
                columns["scale"].append(score.adapter_scale)
        if actors.reference is not None and not rewards_only:
            columns["ref"].append(_widen(forward(actors.reference, rollout, part, temperature).logp, width))
        if actors.critic is not None and not rewards_only:
            columns["values"].append(_widen(values(actors.critic, rollout, part), width))

    joined = {name: torch.cat(parts) for name, parts in columns.items()}
    groups = (-1, rollout.group_size)
    frozen = joined["frozen"].view(groups)
    live = joined["live"].view(groups) if "live" in joined else frozen
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
    )


def values(critic: Engine, rollout: Rollout, part: slice) -> Tensor:
    """The critic's values of one micro-batch of the rollout, cut to its own longest sequence. [b, R']."""
    return critic(*_cut(rollout, part))  # type: ignore[no-any-return]


def forward(
    policy: object, rollout: Rollout, part: slice, temperature: float, with_entropy: bool = False
) -> PolicyOutput:
    """One micro-batch of the rollout through a policy, cut to its own longest sequence."""
    return policy(*_cut(rollout, part), temperature, with_entropy)  # type: ignore[operator, no-any-return]


def _cut(rollout: Rollout, part: slice) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, prompt lengths and response lengths of a micro-batch, without padding that none of it needs."""
    prompt_lengths, response_lengths = rollout.prompt_lengths[part], rollout.response_lengths[part]
    longest = int((prompt_lengths + response_lengths).max())
    return rollout.tokens[part, :longest], prompt_lengths, response_lengths


def _widen(values: Tensor | None, width: int) -> Tensor:
    assert values is not None
    return torch.nn.functional.pad(values, (0, width - values.shape[1]))
