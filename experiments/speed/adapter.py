"""The adapter's algebraic form against the textbook's keys and values: one forward and backward.

python experiments/speed/adapter.py [--quick]
"""

import math
import sys

import torch
from common import Results, seconds, spread
from models import one_thread
from torch import Tensor

from r2m_cli.models.cross_attention import CrossAttention
from r2m_cli.models.states import States

# B, S, D_p, D_rm, d
SIZES = [(16, 512, 576, 576, 512), (16, 512, 2048, 2048, 1024), (16, 512, 4096, 4096, 2048)]


def textbook(module: CrossAttention, rte: Tensor, hidden: Tensor) -> Tensor:
    """arXiv 2601.22664, eq. 3 as it is written, with fused kernels where torch has them. [B, D_rm], [B, S, D_p] -> [B, D_rm]."""
    query, keys, values = rte @ module.w_q, hidden @ module.w_k, hidden @ module.w_v
    scores = torch.bmm(keys, query[:, :, None]).squeeze(2) / math.sqrt(query.shape[1])
    return torch.bmm(scores.softmax(dim=1)[:, None], values).squeeze(1) @ module.w_o


def run(quick: bool) -> Results:
    """`adapter.textbook_over_ours` at the largest size, and, unless it is to be quick, the same at the smaller ones."""
    one_thread()
    results: Results = {}
    for rows, length, policy, reward, inner in SIZES[-1:] if quick else SIZES:
        module = CrossAttention(reward, policy, inner)
        rte, hidden = torch.randn(rows, reward), torch.randn(rows, length, policy)
        own = torch.eye(rows, dtype=torch.bool).repeat_interleave(length, dim=1)
        states = States(hidden.flatten(0, 1), own)
        torch.testing.assert_close(module(rte, states)[0], textbook(module, rte, hidden), atol=1e-3, rtol=1e-3)

        def ours(module=module, rte=rte, states=states):  # type: ignore[no-untyped-def]
            module.zero_grad()
            module(rte, states)[0].sum().backward()

        def theirs(module=module, rte=rte, hidden=hidden):  # type: ignore[no-untyped-def]
            module.zero_grad()
            textbook(module, rte, hidden).sum().backward()

        ours()
        ratios = [seconds(theirs) / seconds(ours) for _ in range(3 if quick else 9)]
        entry = spread(ratios)
        print(f"  d {inner}, D_p {policy}, S {length}: textbook / ours {entry['median']}", flush=True)
        results[f"adapter.textbook_over_ours.d{inner}"] = entry
        results["adapter.textbook_over_ours"] = entry
    return results


if __name__ == "__main__":
    print(run("--quick" in sys.argv))
