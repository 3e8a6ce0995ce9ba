"""A policy on the fixed evaluation prompts: its responses, and every model's scores of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r2m_cli.batch import Rollout
from r2m_cli.config.schema import Config
from r2m_cli.conversation import Prompt
from r2m_cli.data.messages import write_transcript
from r2m_cli.data.source import Source, fitting
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.truncation import cut_notes
from r2m_cli.errors import UserError
from r2m_cli.evaluation.measures import Measures
from r2m_cli.models.actors import Actors
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.stages.accuracy import units_of
from r2m_cli.stages.evaluation import fixed_responses
from r2m_cli.stages.metrics import evaluation_values
from r2m_cli.text import from_home


def evaluation_prompts(source: Source, chat: ChatFormat, config: Config, measures: Measures) -> list[Prompt]:
    """The first eval.prompts held-out prompts that the policy can read.

    Raises:
        UserError: no prompt is left.
    """
    limit = config.rollout.max_prompt_tokens
    prompts = fitting(source.eval_prompts, chat, limit)
    measures.notes += source.notes
    if len(prompts) < len(source.eval_prompts):
        measures.notes.append(
            f"{len(source.eval_prompts) - len(prompts)} evaluation prompts are longer than "
            f"rollout.max_prompt_tokens={limit} and are left out"
        )
    if not prompts:
        raise UserError(f"every evaluation prompt is longer than rollout.max_prompt_tokens={limit} tokens; raise it")
    return prompts[: config.eval.prompts]


def scored(actors: Actors, prompts: list[Prompt], config: Config, weight: float, measures: Measures) -> Rollout:
    """One response to each prompt, with the same random draws and metrics (`eval/*`) as a training run's own evaluation.

    Args:
        weight: w(t) of the live reward.
    """
    annotated = fixed_responses(actors, prompts, config, weight)
    batch, units = annotated.rollout, units_of(prompts)
    measures.notes += cut_notes(actors.reward.truncations, prompts, batch.responses, "responses with their prompts")
    for name, values in evaluation_values(annotated).items():
        bounds = (0.0, 1.0) if name in ("eval/finished", "eval/repetition") else None
        measures.mean(name, values.double(), units, bounds)
    measures.number("eval/cut_ratio", annotated.cut.double().mean().item())
    return batch


def text_scores(
    reward: RewardModel, prompts: list[Prompt], responses: list[str], device: torch.device, rows: int
) -> Tensor:
    """Rewards of a reward model that reads the text alone, `rows` conversations at a time. [B] float64, on the CPU."""
    parts = [
        reward.score(prompts[start : start + rows], responses[start : start + rows], device).double().cpu()
        for start in range(0, len(prompts), rows)
    ]
    return torch.cat(parts)


def alpaca_rows(batch: Rollout, config: Config) -> list[dict[str, Any]]:
    """The responses in AlpacaEval's output format (github tatsu-lab/alpaca_eval, `--model_outputs`).

    A prompt of a single user turn is its own instruction; a longer one is written as an HH transcript, system message
    included.
    """
    named = config.run or str(config.policy.path)
    name = from_home(named).resolve().name if from_home(named).exists() else named
    path = config.data.path or ""
    dataset = (
        f"{config.data.kind}_world" if config.data.kind != "file" else Path(path).name if Path(path).exists() else path
    )
    return [
        {"instruction": instruction(prompt), "output": response, "generator": name, "dataset": dataset}
        for prompt, response in zip(batch.prompt_of, batch.responses)
    ]


def instruction(prompt: Prompt) -> str:
    """A prompt as one text."""
    return prompt[0]["content"] if len(prompt) == 1 else write_transcript(prompt).strip()
