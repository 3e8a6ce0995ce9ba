"""Whether a model can read packed rows: asked once, when it is loaded, by trying both layouts on one small group."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from r2m_cli.models.sequences import Layout, Padded, SharedPrefix
from r2m_cli.models.shared_attention import NAMES

PADDED = "padded"
ASKED = f"engine.attention={PADDED}"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest state


@torch.no_grad()
def why_not(model: Any, read: Callable[[Layout], Tensor], attention: str = "sdpa") -> str:
    """Have a transformers model attend through `attend`, if that gives the states of padded rows; else leave it as it was.

    Args:
        read: the model's states of a layout, [T, D].
        attention: engine.attention; where flex does not do it, sdpa may. With padded nothing is tried.

    Returns:
        Nothing if it works, else the reason in a few words.
    """
    if attention == PADDED:
        return ASKED
    before, reason = model.config._attn_implementation, ""
    device = next(model.parameters()).device
    tokens = torch.tensor([[1, 2, 3, 4, 5, 6], [1, 2, 3, 5, 0, 0]], device=device)  # one prefix of 3, own parts 3 and 1
    prefix, lengths = torch.tensor([3, 3], device=device), torch.tensor([6, 4], device=device)
    row, position = torch.tensor([[0, 0, 1, 1], [2, 5, 2, 3]], device=device)
    padded, packed = Padded(tokens, lengths), SharedPrefix(tokens, prefix, lengths, 2)
    for name in dict.fromkeys((attention, "sdpa")):
        try:
            expected = read(padded)[padded.at(row, position)]
            model.set_attn_implementation(NAMES[name])
            given = read(packed)[packed.at(row, position)]
            error = (given - expected).abs().max() / expected.abs().max()
            reason = "" if error <= TOLERANCE.get(expected.dtype, 5e-2) else "its states differ"
        except Exception as failure:  # whatever an architecture does with what it does not know
            reason = str(failure).strip().split("\n")[0] or type(failure).__name__
        if not reason:
            return ""
        model.set_attn_implementation(before)
    return reason
