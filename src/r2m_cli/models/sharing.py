"""Whether a model can read packed rows: tested once, when it is loaded, with both layouts of one small group, on the device
and in the dtype of training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from r2m_cli.console import say
from r2m_cli.distributed.shards import layer_by_layer
from r2m_cli.models.sequences import Layout, Padded, SharedPrefix
from r2m_cli.models.shared_attention import NAMES, SharedAttention, attend_flex
from r2m_cli.models.windows import narrowed

PADDED = "padded"
ASKED = f"engine.attention={PADDED}"
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest state
# A prefix of 6 tokens and own parts of 5 and 1: longer than the windows, which are narrowed to 4 tokens.
ROWS = ([1, 2, 3, 4, 5, 6, 2, 4, 1, 6, 3], [1, 2, 3, 4, 5, 6, 5, 0, 0, 0, 0])
PREFIX, LENGTHS = 6, (11, 7)
FLEX_HEAD = 16  # the least head size of the compiled kernel (torch/_inductor/kernel/flex)


@torch.no_grad()
def why_not(model: Any, read: Callable[[Layout], Tensor], attention: str = "sdpa") -> str:
    """Make a transformers model use `attend` if that gives the same states as padded rows; else leave it unchanged.

    Args:
        read: a function from a layout to the model's states, [T, D].
        attention: engine.attention; if flex does not work, sdpa is tried, and a note says why. With "padded" nothing is tried.

    Returns:
        An empty text if it works, else the reason in a few words.
    """
    if attention == PADDED:
        return ASKED
    before, reason, first = model.config._attn_implementation, "", ""
    device = next(model.parameters()).device
    tokens, lengths = torch.tensor(ROWS, device=device), torch.tensor(LENGTHS, device=device)
    prefix = torch.full_like(lengths, PREFIX)
    padded, packed = Padded(tokens, lengths), SharedPrefix(tokens, prefix, lengths, len(tokens))
    row, position = padded.mask.nonzero(as_tuple=True)
    for name in dict.fromkeys((attention, "sdpa")):
        try:
            if name == "flex":
                try_flex(model, packed.attention)
            with narrowed(model), layer_by_layer(model):
                expected = read(padded)[padded.at(row, position)]
                model.set_attn_implementation(NAMES[name])
                given = read(packed)[packed.at(row, position)]
            error = (given - expected).abs().max() / expected.abs().max()
            reason = "" if error <= TOLERANCE.get(expected.dtype, 5e-2) else "its states differ"
        except Exception as failure:  # an unknown architecture can raise anything
            reason = str(failure).strip().split("\n")[0] or type(failure).__name__
        if not reason:
            if first:
                say(
                    f"note: engine.attention=flex cannot be used with this {model.config.model_type} model ({first}): sdpa instead"
                )
            return ""
        first = first or reason
        model.set_attn_implementation(before)
    return reason


@torch.enable_grad()  # type: ignore[untyped-decorator]
def try_flex(model: Any, layout: SharedAttention) -> None:
    """Run flex attention with the heads of a model, in its dtype and on its device, and backward where the model is trained:
    what compiles for some heads does not for others, or in one direction only (on a CPU there is no backward).

    Raises:
        NotImplementedError: the compiled kernel is known not to take these heads.
        Exception: whatever the compiler runs into.
    """
    config, like = model.config.get_text_config(), next(model.parameters())
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    if like.is_cuda and size < FLEX_HEAD:
        raise NotImplementedError(f"its head size is {size}, and flex attention on a GPU needs {FLEX_HEAD}")
    trained = any(p.requires_grad for p in model.parameters())
    q, k, v = (
        torch.zeros(1, n, len(layout.row), size, dtype=like.dtype, device=like.device, requires_grad=trained)
        for n in (heads, shared, shared)
    )
    output, _ = attend_flex(model, q, k, v, None, shared_attention=layout)
    if trained:
        torch.autograd.grad(output.sum(), (q, k, v))
