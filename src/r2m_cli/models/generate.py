"""Sampling K responses per prompt: prefill the prompt once, expand its cache K times, drop rows as they finish."""

import torch
from torch import Tensor

from r2m_cli.models.policy import Policy
from r2m_cli.seeds import Stream, draw_seed


@torch.no_grad()
def sample(
    policy: Policy,
    prompts: list[list[int]],
    group_size: int,
    uniforms: Tensor,
    temperature: float,
    eos_ids: set[int],
    pad_id: int,
) -> list[list[int]]:
    """Sample from softmax(logits / temperature), without top-k or top-p; temperature 0 takes the likeliest token.

    The draws are given, one row of numbers per response, so a response depends on its own row alone: any sample can be
    drawn again, and the split of the prompts over ranks changes nothing.

    Args:
        prompts: n lists of token ids.
        uniforms: [n * K, R] in (0, 1]; R is the largest number of new tokens.

    Returns:
        n * K lists of new token ids, the end token included where there is one; a group's K are adjacent.
    """  # fmt: skip
    device = next(policy.parameters()).device
    longest = max(map(len, prompts))
    tokens = torch.tensor([[pad_id] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)

    output = policy.lm.base_model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=True)
    cache = output.past_key_values
    cache.batch_repeat_interleave(group_size)
    state = output.last_hidden_state[:, -1].repeat_interleave(group_size, dim=0)
    mask = mask.repeat_interleave(group_size, dim=0)
    position = positions[:, -1].repeat_interleave(group_size)

    uniforms = uniforms.to(device)
    ends = torch.tensor(sorted(eos_ids), device=device)
    responses: list[list[int]] = [[] for _ in range(len(mask))]
    rows = torch.arange(len(mask), device=device)  # the responses that are still being written
    for step in range(uniforms.shape[1]):
        logits = policy.logits(state).float()
        drawn = inverse_cdf(logits / temperature, uniforms[rows, step]) if temperature > 0 else logits.argmax(dim=1)
        for row, token in zip(rows.tolist(), drawn.tolist()):
            responses[row].append(token)
        going = ~torch.isin(drawn, ends)
        if step + 1 == uniforms.shape[1] or not going.any():
            break
        if not going.all():
            keep = going.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            rows, drawn, mask, position = rows[keep], drawn[keep], mask[keep], position[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        position = position + 1
        output = policy.lm.base_model(
            input_ids=drawn[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        state = output.last_hidden_state[:, -1]
    return responses


def inverse_cdf(logits: Tensor, uniforms: Tensor) -> Tensor:
    """One draw per row: the first token whose cumulative probability reaches the uniform. [B, V], [B] -> [B]."""
    cumulative = logits.softmax(dim=1).cumsum(dim=1)
    target = (uniforms * cumulative[:, -1])[:, None]  # the sum is 1 up to rounding
    return torch.searchsorted(cumulative, target).squeeze(1).clamp_max(logits.shape[1] - 1)


def uniform_rows(seed: int, stage: Stream, step: int, indices: list[int], width: int) -> Tensor:
    """Draws in (0, 1], a row per sample, each from a generator seeded by (seed, stage, step, sample). [len, width]."""
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed(draw_seed(stage, seed, step, index))
        rows.append(1 - torch.rand(width, generator=generator))
    return torch.stack(rows)
