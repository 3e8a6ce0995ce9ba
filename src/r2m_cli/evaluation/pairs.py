"""A reward model on labelled pairs: how often it scores the chosen reply above the rejected one."""

from statistics import fmean

from r2m_cli.conversation import Pair
from r2m_cli.data.truncation import told_apart, which_cut
from r2m_cli.evaluation.measures import Measures
from r2m_cli.files.run_folder import PAIRS
from r2m_cli.models.actors import Actors
from r2m_cli.stages.accuracy import margins, units_of
from r2m_cli.stages.pair_learning import fits, score_pairs
from r2m_cli.stages.reward_check import equal_rewards


def accuracy(actors: Actors, pairs: list[Pair], weight: float, budget: int, measures: Measures) -> None:
    """`pairs/accuracy` of the initial reward model on the text alone and, if the run has feedback, `pairs/accuracy_feedback`
    of the live one, with `pairs/accuracy_difference`, the second minus the first on the same pairs.

    A margin of 0 counts as wrong. Pairs whose replies are equal after the cut to the model's limit are left out and counted as
    `pairs/equal_after_cut`; `pairs/cut_ratio` is the share of cut conversations among the others. Every pair is written to
    `pairs.jsonl` with its margins (chosen minus rejected, units of reward).
    Intervals are over distinct prompts.

    Args:
        weight: w(T), which is Omega.
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
    measured = [pairs[i] for i in kept]
    frozen, fresh = score_pairs(actors, measured, weight, budget, counted=True)
    text, live = margins(measured, frozen), None if fresh is None else margins(measured, fresh)
    measures.notes += equal_rewards(text)
    right, units = (text > 0).double(), units_of(pair.prompt for pair in measured)
    measures.mean("pairs/accuracy", right, units, (0.0, 1.0))
    if live is not None:
        with_feedback = (live > 0).double()
        measures.mean("pairs/accuracy_feedback", with_feedback, units, (0.0, 1.0))
        measures.mean("pairs/accuracy_difference", with_feedback - right, units, (-1.0, 1.0))
    measures.number("pairs/count", len(kept))
    texts = [(pair.prompt, reply) for pair in measured for reply in (pair.chosen, pair.rejected)]
    measures.number("pairs/cut_ratio", fmean(which_cut(actors.reward.truncations, *zip(*texts))))
    table = []
    for row, i in enumerate(kept):
        found = {"margin_text": text[row].item()} | ({"margin_feedback": live[row].item()} if live is not None else {})
        table.append({"index": i, **found, **vars(pairs[i])})
    measures.rows(PAIRS, table)
