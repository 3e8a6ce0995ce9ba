"""Sampling K responses per prompt from given uniform numbers, and the tokens that end a response."""

from typing import Any

import torch
from torch import Tensor

from r2m_cli.console import say
from r2m_cli.models.body import body
from r2m_cli.models.draws import inverse_cdf
from r2m_cli.models.graphs import CannotCapture
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

    The draws are given, one row of numbers per response, so a response depends only on its own row: any sample can be
    drawn again, and the split of the prompts over ranks changes nothing.

    Args:
        prompts: n lists of token ids.
        uniforms: [n * K, R] in (0, 1]; R is the largest number of new tokens.
        eos_ids: tokens that end a response.

    Returns:
        n * K lists of new token ids, the end token included if the response has one; a group's K are adjacent.
    """  # fmt: skip
    if policy.static_sampler is not None:
        try:
            return policy.static_sampler.sample(policy, prompts, group_size, uniforms, temperature, eos_ids, pad_id)
        except CannotCapture as reason:
            say(f"note: decoding with the policy cannot be captured as a CUDA graph ({reason}): it samples more slowly")
            policy.static_sampler = None
    device = next(policy.parameters()).device
    rows = list(range(len(prompts) * group_size))  # the responses that are still being written
    responses: list[list[int]] = [[] for _ in rows]
    uniforms = uniforms.to(device)
    ends = torch.tensor(sorted(eos_ids), device=device)
    decoder = policy.decoder(body(policy.lm), prompts, group_size, pad_id)
    for step in range(uniforms.shape[1]):
        logits = policy.logits(decoder.states).float()
        drawn = inverse_cdf(logits / temperature, uniforms[rows, step]) if temperature > 0 else logits.argmax(dim=1)
        for row, token in zip(rows, drawn.tolist()):
            responses[row].append(token)
        going = ~torch.isin(drawn, ends)
        if step + 1 == uniforms.shape[1] or not going.any():
            break
        rows = [row for row, goes in zip(rows, going.tolist()) if goes]
        decoder.advance(drawn, going)
    return responses


def end_ids(lm: Any) -> set[int]:
    """The tokens at which transformers' `generate` stops with this model: those of its generation_config, or else of its
    config.json. There may be others in addition to the tokenizer's EOS (Llama 3, Qwen, GLM)."""
    ids = lm.generation_config.eos_token_id
    return set() if ids is None else set(ids) if isinstance(ids, list) else {int(ids)}


def uniform_rows(seed: int, stream: Stream, step: int, indices: list[int], width: int) -> Tensor:
    """Draws in (0, 1], a row per sample, each from a generator seeded by (seed, stream, step, sample). [len, width]."""
    return uniforms_of([draw_seed(stream, seed, step, index) for index in indices], width)


def uniforms_of(seeds: list[int], width: int) -> Tensor:
    """Draws in (0, 1], a row per seed. [len, width]."""
    return torch.stack([1 - torch.rand(width, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
