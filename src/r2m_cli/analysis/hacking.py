"""Table 5: are the states of two hacking responses more similar than those of a hacking and a normal one?

To decide which response is hacking, a true reward is needed: the gold world's, or another reward model's score.
"""

import json
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from r2m_cli.analysis.results import Results, estimate
from r2m_cli.analysis.rewards import require_finite
from r2m_cli.batch import Rollout
from r2m_cli.config.schema import Config
from r2m_cli.data.source import Source, fitting
from r2m_cli.data.truncation import cut_notes
from r2m_cli.errors import UserError
from r2m_cli.evaluation.policy import text_scores
from r2m_cli.files.jsonl import text_of
from r2m_cli.maths.similarity import pair_means, pairs_by_label, similarity
from r2m_cli.maths.statistics import resample_weights
from r2m_cli.models.actors import Actors
from r2m_cli.models.layers import pooled_states
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.seeds import Stream
from r2m_cli.stages.packing import rows_per_forward
from r2m_cli.stages.rollout import rollout

SHARE = 0.25  # share of the responses called hacking: those that the reward model overrates most
KINDS = ("hacking", "normal", "across")
PAPER = dict(zip(KINDS, ("0.67", "0.75", "0.45")))


def responses(config: Config, source: Source, actors: Actors, other: RewardModel | None, results: Results) -> None:
    """Table 5: the trained policy's responses to the fixed evaluation prompts, as `r2m evaluate` draws them.

    Args:
        other: the reward model of eval.reward, whose score is then the truth; None: gold is the truth.

    Raises:
        UserError: scores or states are not finite.
    """
    if actors.gold is None and other is None:
        results.notes.append(
            "table 5 is left out: there is no true reward to tell which responses are hacking; name a reward model not used in training, "
            "eval.reward=FOLDER"
        )
        return
    limit, budget = config.rollout.max_prompt_tokens, config.rollout.tokens_per_batch
    prompts = fitting(source.eval_prompts, actors.format, limit)[: config.eval.prompts]
    if len(prompts) < 4:
        results.notes.append(
            f"table 5 is left out: {len(prompts)} evaluation prompts have at most {limit} tokens, but 4 are needed"
        )
        return
    batch = rollout(actors, prompts, range(len(prompts)), 1, config.rollout, config.seed, Stream.EVAL, 0)
    rows = rows_per_forward(budget, [limit + config.rollout.max_new_tokens])
    texts = batch.prompt_of, batch.responses
    for model, whose in ((actors.reward, ""), (other, " (eval.reward)")):
        if model is not None:
            results.notes += cut_notes(model.truncations, *texts, f"responses with their prompts{whose}")
    proxy = text_scores(actors.reward, *texts, actors.device, rows)
    if other is not None:
        truth = text_scores(other, *texts, actors.device, rows)
    else:
        assert actors.gold is not None
        truth = torch.tensor([actors.gold(*row) for row in zip(*texts, batch.finished)], dtype=torch.float64)
    results.conditions["truth"] = config.eval.reward or "gold"
    require_finite(torch.cat([proxy, truth]))
    starts, lengths = batch.prompt_lengths.tolist(), (batch.prompt_lengths + batch.response_lengths).tolist()
    tokens = [row[:length].tolist() for row, length in zip(batch.tokens, lengths)]
    states = pooled_states(actors.policy.module.lm, tokens, starts, budget, actors.format.pad_id, "states of responses")
    table5(states, batch, proxy, truth, results)


def table5(states: Tensor, batch: Rollout, proxy: Tensor, truth: Tensor, results: Results) -> None:
    """Mean similarity of the last layer's states within hacking responses, within normal ones and across, with intervals.

    Writes `responses.jsonl`, one row per response with both scores and its label. Two responses to one prompt are not a pair.

    Args:
        states: [n, layers + 1, D] of the responses.
        proxy: [n], scores of the reward model that training started with.
        truth: [n], gold or another reward model's scores.

    Raises UserError if both order the responses in the same way.
    """
    overrated = rank_difference(proxy, truth)
    if not overrated.any():
        raise UserError(
            "eval.reward: orders all responses as the run's own reward model does, so it shows no overrated ones; name another"
        )
    hacking = overrated_most(overrated)
    numbers: dict[str, int] = {}
    units = torch.tensor([numbers.setdefault(json.dumps(prompt), len(numbers)) for prompt in batch.prompt_of])
    alike, masks = similarity(states[:, -1]), pairs_by_label(hacking, units)
    plain = pair_means(alike, masks, torch.ones(1, len(units), dtype=torch.float64))[0]
    drawn = pair_means(alike, masks, resample_weights(units, results.resamples, results.seed))
    found = {kind: estimate(plain[i], drawn[:, i]) for i, kind in enumerate(KINDS)}
    # The paper's claim: responses of different kinds are less similar than responses of one kind. By how much?
    apart = estimate((plain[0] + plain[1]) / 2 - plain[2], (drawn[:, 0] + drawn[:, 1]) / 2 - drawn[:, 2])
    results.figures["table5"] = {
        "responses": len(units), "prompts": len(numbers), "hacking_responses": int(hacking.sum()), "share": SHARE, **found,
        "within_minus_across": apart,
    } | _means(proxy, truth, batch, hacking)  # fmt: skip
    if hacking.sum() < 10:
        results.notes.append(
            f"table 5: {int(hacking.sum())} hacking responses are too few for a reliable interval; raise eval.prompts"
        )
    for kind, value in found.items():
        results.line("9, table 5", kind if kind == "across" else f"within {kind}", value, PAPER[kind])
    results.line("9, table 5", "mean within, minus across", apart, "0.26")
    columns = zip(batch.prompt_of, batch.responses, batch.finished, proxy.tolist(), truth.tolist(), overrated.tolist())
    rows = [
        {"prompt": list(prompt), "response": response, "finished": finished, "proxy": p, "truth": t,
         "overrated": o, "hacking": hacks}
        for (prompt, response, finished, p, t, o), hacks in zip(columns, hacking.tolist())
    ]  # fmt: skip
    (results.folder / "responses.jsonl").write_text(text_of(rows), encoding="utf-8")


def rank_difference(proxy: Tensor, truth: Tensor) -> Tensor:
    """Rank by proxy minus rank by truth, divided by n: -1 to 1; equal values share their mean rank. [n], [n] -> [n]."""
    ranks = [torch.from_numpy(stats.rankdata(scores.double().numpy())) for scores in (proxy, truth)]
    return (ranks[0] - ranks[1]) / len(proxy)


def overrated_most(overrated: Tensor) -> Tensor:
    """True at the SHARE of the responses with the largest rank difference, at least 2; on a tie the first. [n] -> [n]."""
    count = max(2, round(SHARE * len(overrated)))
    hacking = torch.zeros(len(overrated), dtype=torch.bool)
    hacking[overrated.argsort(descending=True, stable=True)[:count]] = True
    return hacking


def _means(proxy: Tensor, truth: Tensor, batch: Rollout, hacking: Tensor) -> dict[str, Any]:
    """Mean scores and lengths of the two kinds, in the scores' own units and in tokens."""
    values = {"proxy": proxy, "truth": truth, "length": batch.response_lengths}
    return {
        f"mean_{name}": {kind: scores.double()[kept].mean().item() for kind, kept in (("hacking", hacking), ("normal", ~hacking))}
        for name, scores in values.items()
    }  # fmt: skip
