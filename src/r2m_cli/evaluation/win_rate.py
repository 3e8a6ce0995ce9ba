"""How often a judge prefers the policy's response to the data's, or to another policy's."""

import json
import math
import random
from dataclasses import replace
from typing import NamedTuple

import torch

from r2m_cli.batch import Rollout
from r2m_cli.config.schema import Config, PolicyConfig
from r2m_cli.conversation import Prompt
from r2m_cli.data.source import Source
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.truncation import cut_notes
from r2m_cli.distributed.engine import DTYPES, SingleEngine
from r2m_cli.errors import UserError
from r2m_cli.evaluation.measures import Measures
from r2m_cli.evaluation.policy import text_scores
from r2m_cli.files.cache import cache_dir
from r2m_cli.files.run_folder import COMPARISONS
from r2m_cli.judges.judge import Comparison, Judge, gold_judge, score_judge
from r2m_cli.judges.openai_judge import OpenAIJudge
from r2m_cli.maths.statistics import length_controlled_win_rate, win_rate
from r2m_cli.models.actors import Actors
from r2m_cli.models.context import context_length
from r2m_cli.models.formats import policy_format
from r2m_cli.models.generate import end_ids
from r2m_cli.models.loading import load_causal_lm
from r2m_cli.models.policy import Policy
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.models.samplers import native
from r2m_cli.models.tokenizers import check_known
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.accuracy import units_of
from r2m_cli.stages.rollout import rollout

CHOSEN = "chosen"


class Opponent(NamedTuple):
    """The other side's response to one prompt, and whether it ended with its end token."""

    response: str
    finished: bool


def make_judge(config: Config, actors: Actors, rows: int) -> Judge:
    """The judge named by eval.judge: the initial reward model, the gold world, or a language model at an endpoint.

    Raises UserError, from the endpoint's judge.
    """
    if config.eval.judge == "openai":
        return OpenAIJudge(config.judge, cache_dir() / "judge")
    if config.eval.judge == "gold":
        assert actors.gold is not None, "check_combinations() saw to it"
        return gold_judge(actors.gold)

    def score(prompts: list[Prompt], responses: list[str]) -> list[float]:
        # Score each distinct text once: in different batches, equal responses would differ in the last bit, and one would win.
        names = [(json.dumps(prompt), response) for prompt, response in zip(prompts, responses)]
        texts = dict(zip(names, zip(prompts, responses)))
        asked, answers = zip(*texts.values())
        scores = dict(zip(texts, text_scores(actors.reward, list(asked), list(answers), actors.device, rows).tolist()))
        return [scores[name] for name in names]

    return score_judge(score)


def opponents(config: Config, source: Source, actors: Actors, prompts: list[Prompt]) -> list[Opponent | None]:
    """The response to compare with on each prompt; None if the data has no reply to it.

    With eval.against=chosen and a file, it is the chosen reply of the first pair with this prompt, or its completion. In the
    gold world, the chosen reply of a pair comes from the SFT policy itself and is no reference for it; there it is a
    demonstration, drawn once per prompt from data.seed and always complete. Another policy samples with the same random draws
    as the evaluated one.

    Raises:
        UserError: no prompt has a chosen reply; or the other policy cannot be loaded, or cannot read the prompts.
    """
    against = config.eval.against
    if against != CHOSEN:
        batch = _sampled(config, source, actors, prompts)
        return [Opponent(text, end) for text, end in zip(batch.responses, batch.finished)]
    if source.world is not None:
        world, seed = source.world, config.data.seed
        texts = [
            world.demonstration(prompt[-1]["content"], random.Random(draw_seed(Stream.REFERENCES, seed, i)))
            for i, prompt in enumerate(prompts)
        ]
        return [Opponent(text, True) for text in texts]
    chosen: dict[str, str] = {}
    for prompt, reply in source.references:
        chosen.setdefault(json.dumps(prompt), reply)
    found = [chosen.get(json.dumps(prompt)) for prompt in prompts]
    if not any(text is not None for text in found):
        raise UserError(
            f"eval.against=chosen: none of the {len(prompts)} evaluation prompts of data.path={config.data.path} has a chosen "
            "reply; give preference pairs, or compare with another policy, eval.against=FOLDER"
        )
    return [None if text is None else Opponent(text, True) for text in found]


def measure(
    judge: Judge, batch: Rollout, others: list[Opponent | None], measures: Measures, scorer: RewardModel | None
) -> None:
    """Ask the judge about every prompt. Measures `win_rate` and `win_rate/length_controlled` with intervals over prompts,
    `win_rate/wins`, `/ties`, `/losses` and `/length_difference` (mean, characters). Writes every comparison to
    `comparisons.jsonl`.

    Args:
        others: one per prompt of the batch, whose group size is 1.
        scorer: the reward model, if it is the judge.
    """
    sides = [(i, other) for i, other in enumerate(others) if other is not None]
    if len(sides) < len(others):
        measures.notes.append(
            f"win rate: {len(others) - len(sides)} of {len(others)} prompts have no chosen reply and are left out"
        )
    comparisons = [
        Comparison(batch.prompts[i], batch.responses[i], other.response, (batch.finished[i], other.finished))
        for i, other in sides
    ]
    if scorer is not None:
        texts = [c.prompt for c in comparisons] * 2, [c.first for c in comparisons] + [c.second for c in comparisons]
        measures.notes += cut_notes(scorer.truncations, *texts, "responses that are compared, with their prompts,")
    answers = judge(comparisons)
    without = sum(map(math.isnan, answers))
    if without:
        measures.notes.append(f"win rate: {without} of {len(answers)} comparisons have no verdict, and are left out")
        comparisons = [c for c, answer in zip(comparisons, answers) if not math.isnan(answer)]
    if not comparisons:
        raise UserError("eval.judge: no comparison has a verdict; look at the judge's answers")
    said = [answer for answer in answers if not math.isnan(answer)]
    if isinstance(judge, OpenAIJudge):
        measures.notes.append(
            f"eval.judge=openai: {judge.asked} requests, {judge.cached} verdicts from the cache, {judge.unparsed} answers "
            "without a verdict"
        )
    preferences = torch.tensor(said, dtype=torch.float64)
    differences = torch.tensor([float(len(c.first) - len(c.second)) for c in comparisons], dtype=torch.float64)
    if (differences > 0).all() or (differences < 0).all():
        which = "longer" if differences[0] > 0 else "shorter"
        measures.notes.append(
            f"win_rate/length_controlled: every response is {which} than the other side's: an extrapolation"
        )
    settings = (measures.resamples, measures.seed, units_of(c.prompt for c in comparisons))
    measures.estimate("win_rate", win_rate(preferences, *settings))
    measures.estimate("win_rate/length_controlled", length_controlled_win_rate(preferences, differences, *settings))
    measures.number("win_rate/wins", (preferences > 0.5).sum().item())
    measures.number("win_rate/ties", (preferences == 0.5).sum().item())
    measures.number("win_rate/losses", (preferences < 0.5).sum().item())
    measures.mean("win_rate/length_difference", differences, settings[-1])
    rows = [
        {"prompt": c.prompt, "response": c.first, "other": c.second, "finished": c.finished, "preference": preference}
        for c, preference in zip(comparisons, said)
    ]
    measures.rows(COMPARISONS, rows)


def _sampled(config: Config, source: Source, actors: Actors, prompts: list[Prompt]) -> Rollout:
    """The other policy's responses to the same prompts, from the same draws, through its own tokenizer and template."""
    name, key = config.eval.against, "eval.against"
    lm = load_causal_lm(name, key, DTYPES[config.engine.dtype], actors.device)
    chat = policy_format(PolicyConfig(), name, key, end_ids(lm))
    check_known(source, chat)
    limit = context_length(lm.config)
    longest = max(len(_read(chat, prompt, source)) for prompt in prompts) + config.rollout.max_new_tokens
    if limit is not None and longest > limit:
        raise UserError(
            f"{key}={name}: reads {limit} tokens at most, but the longest prompt with rollout.max_new_tokens="
            f"{config.rollout.max_new_tokens} needs {longest}; lower rollout.max_prompt_tokens or rollout.max_new_tokens"
        )
    engine = SingleEngine(Policy(lm), actors.device, weight_decay=0.0, max_grad_norm=0.0)
    other = replace(actors, policy=engine, format=chat, sampler=native)
    return rollout(other, prompts, range(len(prompts)), 1, config.rollout, config.seed, Stream.EVAL, 0)


def _read(chat: ChatFormat, prompt: Prompt, source: Source) -> list[int]:
    """The prompt's tokens. Raises UserError, with the prompt's position, if the template refuses it."""
    try:
        return chat.prompt_ids(prompt)
    except UserError as error:
        raise UserError(f"{source.place(prompt)}: {error}") from error
