"""How the states of fixed texts change while a run trains its policy (Figure 9, right)."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from r2m_cli.analysis.results import Results
from r2m_cli.analysis.sequences import CHOSEN, Selection
from r2m_cli.checkpoints import checkpoint
from r2m_cli.config.schema import Config
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed.engine import DTYPES
from r2m_cli.files.run_folder import POLICY, checkpoints
from r2m_cli.maths.similarity import rowwise_similarity
from r2m_cli.maths.statistics import Estimate, bootstrap_mean
from r2m_cli.models.layers import pooled_states
from r2m_cli.models.loading import load_causal_lm
from r2m_cli.models.lora import with_lora


def drift(
    config: Config, run: Path, chat: ChatFormat, selection: Selection, device: torch.device, results: Results
) -> tuple[list[int], Tensor]:
    """Mean similarity of a text's last-layer states under the policies of any two steps, with intervals over texts.

    The texts are the chosen replies of figure 1, one per prompt. The steps are 0, those of the existing checkpoints, and the
    run's last. Writes `drift.csv`, one row per pair of steps; returns the steps and the means [steps, steps].

    Raises:
        UserError: a checkpoint is damaged, or states are not finite.
    """
    chosen = [s for s in selection.sequences[: selection.compared] if s.label == CHOSEN]
    texts = list({s.unit: s for s in reversed(chosen)}.values())  # the first text of each prompt
    rows, starts = [s.tokens for s in texts], [s.prompt_tokens for s in texts]
    budget, deep = config.rollout.tokens_per_batch, {}
    for step, lm in _policies(config, run, device, results):
        states = pooled_states(lm, rows, starts, budget, chat.pad_id, f"states of the policy at step {step}")
        deep[step] = states[:, -1].clone()
    steps = list(deep)
    table, means = [], torch.ones(len(steps), len(steps), dtype=torch.float64)
    for i, a in enumerate(steps):
        for j, b in enumerate(steps[i:], start=i):
            alike = bootstrap_mean(rowwise_similarity(deep[a], deep[b]), results.resamples, results.seed)
            table.append({"step_a": a, "step_b": b} | alike._asdict())
            means[i, j] = means[j, i] = alike.value
    results.table("drift.csv", table)
    to_start = [row for row in table if row["step_a"] == 0 and row["step_b"] != 0]
    results.figures["drift"] = {"texts": len(texts), "steps": steps, "similarity_to_start": to_start}
    end = Estimate(*(to_start[-1][name] for name in Estimate._fields))
    results.line("9, drift", f"step {steps[-1]} to 0, {len(texts)} texts", end)
    return steps, means


def _policies(config: Config, run: Path, device: torch.device, results: Results) -> Iterator[tuple[int, nn.Module]]:
    """Yield (step, the policy after it), one at a time; the last policy is the one in the run's policy/."""
    assert config.policy.path is not None, "the run's own"
    dtype, last = DTYPES[config.engine.dtype], config.train.steps
    lm = load_causal_lm(config.policy.path, "policy.path", dtype, device)
    yield 0, lm
    found = [(int(folder.name.removeprefix("step_")), folder) for folder in checkpoints(run)]
    between = [(step, folder) for step, folder in found if step < last]
    if between and config.policy.lora_rank:  # the checkpoints hold the base's weights with unmerged adapters
        with_lora(lm, config.policy.lora_rank, "CAUSAL_LM").to(device)
    for step, folder in between:
        if not checkpoint.load_policy(folder, lm):
            results.notes.append(
                f"{folder}: written by DeepSpeed's ranks and not read; drift is measured only between start and end"
            )
            break
        yield step, lm
    if len(between) < 2:
        results.notes.append(
            f"{len(between)} checkpoints before the last step; for more, set checkpoint.every and checkpoint.keep"
        )
    yield last, load_causal_lm(str(run / POLICY), "run", dtype, device)
