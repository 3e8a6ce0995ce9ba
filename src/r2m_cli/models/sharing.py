"""Whether a model can read packed rows: tested once, when it is loaded, with both layouts of one small group."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from r2m_cli.models.sequences import Layout, Padded, SharedPrefix
from r2m_cli.models.shared_attention import NAMES
from r2m_cli.models.windows import narrowed

PADDED = "padded"
ASKED = f"engine.attention={PADDED}"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest state
# A prefix of 6 tokens and own parts of 5 and 1: longer than the windows, which are narrowed to 4 tokens.
ROWS = ([1, 2, 3, 4, 5, 6, 2, 4, 1, 6, 3], [1, 2, 3, 4, 5, 6, 5, 0, 0, 0, 0])
PREFIX, LENGTHS = 6, (11, 7)


@torch.no_grad()
def why_not(model: Any, read: Callable[[Layout], Tensor], attention: str = "sdpa") -> str:
    """Make a transformers model use `attend` if that gives the same states as padded rows; else leave it unchanged.

    Args:
        read: the model's states of a layout, [T, D].
        attention: engine.attention; if flex does not work, sdpa is tried. With "padded" nothing is tried.

    Returns:
        An empty text if it works, else the reason in a few words.
    """
    if attention == PADDED:
        return ASKED
    before, reason = model.config._attn_implementation, ""
    device = next(model.parameters()).device
    tokens, lengths = torch.tensor(ROWS, device=device), torch.tensor(LENGTHS, device=device)
    prefix = torch.full_like(lengths, PREFIX)
    padded, packed = Padded(tokens, lengths), SharedPrefix(tokens, prefix, lengths, len(tokens))
    row, position = padded.mask.nonzero(as_tuple=True)
    for name in dict.fromkeys((attention, "sdpa")):
        try:
            with narrowed(model):
                expected = read(padded)[padded.at(row, position)]
                model.set_attn_implementation(NAMES[name])
                given = read(packed)[packed.at(row, position)]
            error = (given - expected).abs().max() / expected.abs().max()
            reason = "" if error <= TOLERANCE.get(expected.dtype, 5e-2) else "its states differ"
        except Exception as failure:  # an unknown architecture can raise anything
            reason = str(failure).strip().split("\n")[0] or type(failure).__name__
        if not reason:
            return ""
        model.set_attn_implementation(before)
    return reason
