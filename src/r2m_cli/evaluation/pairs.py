"""A reward model on labelled pairs: how often it scores the chosen reply above the rejected one."""

from statistics import fmean

import torch
from torch import Tensor

from r2m_cli.console import Count
from r2m_cli.conversation import Pair
from r2m_cli.data.truncation import told_apart, which_cut
from r2m_cli.evaluation.measures import Measures
from r2m_cli.files.run_folder import PAIRS
from r2m_cli.models.actors import Actors
from r2m_cli.stages.accuracy import units_of
from r2m_cli.stages.pair_learning import fits, pair_rewards, pairs_per_forward, scored_seed
from r2m_cli.stages.reward_check import equal_rewards


def accuracy(actors: Actors, pairs: list[Pair], weight: float, budget: int, measures: Measures) -> None:
    """`pairs/accuracy` of the initial reward model on the text alone, and, where the run has feedback,
    `pairs/accuracy_feedback` of the live one, with `pairs/accuracy_difference`, the second minus the first on the same pairs.

    A margin of 0 is wrong; pairs that are equal once they are cut to what the model reads are left out and counted as
    `pairs/equal_after_cut`; of the others `pairs/cut_ratio` is the share of conversations that are cut. Every pair goes to
    `pairs.jsonl` with its margins (chosen minus rejected, units of reward).
    Intervals are over distinct prompts.

    Args:
        weight: w(t) at t = T, that is Omega.
        budget: tokens per forward.
    """
    if not pairs:
        measures.notes.append("no labelled pairs to measure the reward model on")
        return
    kept = [i for i, pair in enumerate(pairs) if fits(actors, pair)]
    if len(kept) < len(pairs):
        left_out = f"{len(pairs) - len(kept)} of {len(pairs)} labelled pairs are longer than the policy can read"
        measures.notes.append(f"{left_out}, and are left out")
    if not kept:
        return
    apart, notes = told_apart(actors.reward.truncations, [pairs[i] for i in kept], "labelled pairs")
    if len(apart) < len(kept):
        measures.number("pairs/equal_after_cut", len(kept) - len(apart))
    kept = [kept[i] for i in apart]
    measures.notes += notes
    if not kept:
        return
    text, live = margins(actors, [pairs[i] for i in kept], weight, budget)
    measures.notes += equal_rewards(text)
    right, units = (text > 0).double(), units_of(pairs[i].prompt for i in kept)
    measures.mean("pairs/accuracy", right, units, (0.0, 1.0))
    if live is not None:
        with_feedback = (live > 0).double()
        measures.mean("pairs/accuracy_feedback", with_feedback, units, (0.0, 1.0))
        measures.mean("pairs/accuracy_difference", with_feedback - right, units, (-1.0, 1.0))
    measures.number("pairs/count", len(kept))
    texts = [(pair.prompt, reply) for pair in (pairs[i] for i in kept) for reply in (pair.chosen, pair.rejected)]
    measures.number("pairs/cut_ratio", fmean(which_cut(actors.reward.truncations, *zip(*texts))))
    table = []
    for row, i in enumerate(kept):
        found = {"margin_text": text[row].item()} | ({"margin_feedback": live[row].item()} if live is not None else {})
        table.append({"index": i, **found, **vars(pairs[i])})
    measures.rows(PAIRS, table)


@torch.no_grad()
def margins(actors: Actors, pairs: list[Pair], weight: float, budget: int) -> tuple[Tensor, Tensor | None]:
    """Reward of the chosen minus that of the rejected reply: the initial model on the text, the live one with states.

    Two [pairs], the second None without feedback. Arguments as in `accuracy`.
    """
    text, live, rows = [], [], pairs_per_forward(actors, pairs, budget)
    count = Count("scoring labelled pairs")
    for start in range(0, len(pairs), rows):
        part = pairs[start : start + rows]
        frozen, fresh = pair_rewards(
            actors, part, weight, seeds=list(map(scored_seed, range(start, start + len(part))))
        )
        text.append((frozen[:, 0] - frozen[:, 1]).double().cpu())
        if fresh is not None:
            live.append((fresh[:, 0] - fresh[:, 1]).double().cpu())
        count(start + len(part), len(pairs))
    # Equal replies (the world's policy may sample one twice) have no margin, whatever rounding says.
    differ = torch.tensor([float(pair.chosen != pair.rejected) for pair in pairs], dtype=torch.float64)
    return torch.cat(text) * differ, torch.cat(live) * differ if live else None
