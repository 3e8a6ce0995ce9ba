"""Every layer's hidden states of complete sequences, averaged over their tokens right after each forward."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from r2m_cli.console import Count
from r2m_cli.errors import UserError
from r2m_cli.maths.masking import length_mask
from r2m_cli.models.body import body
from r2m_cli.models.sequences import pad


@torch.no_grad()
def pooled_states(
    lm: Any, rows: Sequence[list[int]], starts: Sequence[int], budget: int, pad_id: int, what: str
) -> Tensor:
    """Mean state of the tokens from `starts` to the end, by layer. States of single tokens are not kept.

    Layer 0 is the embeddings' output, layer l the output of block l. For the last layer transformers returns the input of
    the LM head, that is, the states after the final norm.

    Args:
        lm: a causal language model of transformers.
        rows: N lists of token ids.
        starts: N, index of the first token that counts; less than the row's length.
        budget: tokens per forward, padding included; a single row may have more.
        what: name of the states, for progress and errors.

    Returns:
        [N, layers + 1, D] fp32, on the CPU.

    Raises:
        UserError: the architecture does not return its hidden states, or they are not finite.
    """  # fmt: skip
    device = next(lm.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # rows of one forward have similar lengths
    parts, start, count = [], 0, Count(what)
    while start < len(order):
        batch = order[start : start + max(1, budget // len(rows[order[start]]))]
        tokens, lengths = pad([rows[i] for i in batch], pad_id)
        first = torch.tensor([starts[i] for i in batch])
        mask = length_mask(lengths, tokens.shape[1]) & ~length_mask(first, tokens.shape[1])
        real = length_mask(lengths, tokens.shape[1]).long()
        states = body(lm)(
            input_ids=tokens.to(device), attention_mask=real.to(device), use_cache=False, output_hidden_states=True
        ).hidden_states
        if states is None:
            raise UserError(
                f"{what}: a {lm.config.model_type} model does not return its hidden states; use another one"
            )
        weights = (mask / mask.sum(dim=1, keepdim=True)).to(device)
        parts.append(torch.stack([torch.einsum("bs,bsd->bd", weights, h.float()) for h in states], dim=1).cpu())
        start += len(batch)
        count(start, len(order))
    pooled = torch.cat(parts)[torch.tensor(order).argsort()]
    if not pooled.isfinite().all():
        raise UserError(f"{what}: some are not finite numbers; try engine.dtype=fp32, or another model")
    return pooled
