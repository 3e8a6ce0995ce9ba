"""`r2m reward` on one rank: fit a reward model on labelled pairs with the Bradley-Terry loss."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r2m_cli.build import local_device
from r2m_cli.checkpoints.space import require_room_for_fit
from r2m_cli.config.schema import Config
from r2m_cli.console import say
from r2m_cli.conversation import Pair
from r2m_cli.data.source import load_source, renderable, say_notes
from r2m_cli.data.truncation import Truncation, told_apart
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import DTYPES
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import FIT
from r2m_cli.fitting.reward_fit import fit_backbone, fit_head, varied
from r2m_cli.fitting.unfinished import Unfinished, unfinished
from r2m_cli.maths.statistics import RESAMPLES, Estimate
from r2m_cli.models.formats import format_of, reward_format
from r2m_cli.models.loading import fresh_llama, load_reward_model, token_limit
from r2m_cli.models.tokenizers import check_known
from r2m_cli.stages.accuracy import accuracy_of, percent, units_of, unsure
from r2m_cli.stages.label_pairs import labelled_pairs, save_pairs
from r2m_cli.stages.reward_check import equal_rewards
from r2m_cli.tasks.sft import fit_lm
from r2m_cli.text import number


def run(config: Config, run_dir: Path) -> None:
    """Fit a reward model and write it to `run_dir` as a Hugging Face folder, with its metrics in `fit.json`.

    These are the accuracy on held-out pairs before and after the fit, each with both ends of its interval (null if there is
    none); the mean loss of the last epoch; and the mean and (population) standard deviation of the fitted model's scores of
    the held-out responses, chosen and rejected together, with which an ensemble puts its members on one scale.

    Raises:
        UserError: there are no labelled pairs, or no model to start from.
    """
    with unfinished(config, run_dir) as kept:
        _fit(config, run_dir, kept)


def _fit(config: Config, run_dir: Path, kept: Unfinished) -> None:
    source, c = load_source(config.data, 1), config.reward
    device = local_device(config)
    if c.base is not None:
        chat = reward_format(c, c.base, "reward.base")
    elif source.world is not None:
        chat = format_of(source.world.tokenizer(), "reward model", c.template, c.end_token)
    else:
        raise UserError("reward.path and reward.base are both null: name a model to start from (reward.base=FOLDER)")
    source = renderable(source, [chat])
    say_notes([*source.notes, *check_known(source, chat)])
    pairs, heldout = labelled_pairs(config, source, device)
    pairs, heldout = pairs[: c.fit.rows], heldout[: config.eval.pairs]
    tokenizer = chat.tokenizer
    seed = varied(config.data.seed, c.fit.seed)
    if c.base is not None:
        say(f"loading reward.base={c.base}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            dtype = DTYPES[config.engine.dtype]
            classifier = load_reward_model(c.base, "reward.base", dtype, chat.pad_id, new_head=True)
        classifier.to(device)  # type: ignore[arg-type]  # only now: a new head is drawn on the CPU, the same everywhere
    else:
        classifier = fresh_llama(c, tokenizer, chat.pad_id, seed, scorer=True)
        if c.pretrain_epochs:
            lm: Any = fresh_llama(c, tokenizer, chat.pad_id, seed, scorer=False)
            epochs = replace(config.policy.fit, epochs=c.pretrain_epochs)
            engine, _ = fit_lm(lm, chat, source.demonstrations, config, epochs, kept)
            with engine.whole():
                classifier.base_model.load_state_dict(lm.base_model.state_dict())
    require_room_for_fit(classifier, run_dir)
    truncation = Truncation(chat, *token_limit(classifier, tokenizer, c.max_tokens))
    notes = [note] if (note := chat.note()) is not None else []
    (pairs, more), (heldout, further) = (
        _told_apart(truncation, part, what) for part, what in ((pairs, "training pairs"), (heldout, "held-out pairs"))
    )
    for note in (*notes, *more, *further):
        say(f"note: {note}")
    rows, tests = (
        [(truncation.ids(p.prompt, p.chosen), truncation.ids(p.prompt, p.rejected)) for p in part]
        for part in (pairs, heldout)
    )
    fitting = fit_head if c.fit.parameters == "head" else fit_backbone
    before, after, loss = fitting(config, classifier, rows, tests, chat, device, run_dir, kept)
    units = units_of(pair.prompt for pair in heldout)
    accuracies = [
        accuracy_of(rewards[0] - rewards[1], units, RESAMPLES, config.data.seed) for rewards in (before, after)
    ]
    for warning in equal_rewards(after[0] - after[1]):
        say(f"warning: {warning}")
    if comm.is_main():
        chat.save(run_dir)
        values = _values(accuracies, after, loss) | {"pairs": len(rows), "heldout": len(tests)}
        (run_dir / FIT).write_text(json.dumps(values, indent=2))
        if source.world is not None:
            save_pairs(run_dir, pairs, heldout)
    percents = f"{accuracies[0].value:.1%} -> {percent(accuracies[1])}"
    say(
        f"reward model on {len(rows)} pairs: {percents} of {len(tests)} held-out pairs right{unsure(accuracies[1])}, loss "
        f"{number(loss)}"
    )
    comm.barrier()


def _told_apart(truncation: Truncation, pairs: list[Pair], what: str) -> tuple[list[Pair], list[str]]:
    """The pairs that the reward model can distinguish, and notes for the user. Raises UserError if there are none."""
    kept, notes = told_apart([truncation], pairs, what)
    if not kept:
        raise UserError(f"all {len(pairs)} {what} are equal after truncation: they are longer than {truncation.limit}")
    return [pairs[i] for i in kept], notes


def _values(accuracies: Sequence[Estimate], after: Tensor, loss: float) -> dict[str, float | None]:
    """The content of fit.json: accuracy before and after the fit, and the rewards after it."""
    values: dict[str, float | None] = {}
    for name, accuracy in zip(("accuracy_before", "accuracy"), accuracies):
        low, high = accuracy.interval or (None, None)
        values |= {name: accuracy.value, f"{name}_low": low, f"{name}_high": high}
    scores = after.float()
    spread = {"score_mean": float(scores.mean()), "score_std": float(scores.std(correction=0))}
    return values | {"loss": loss} | spread
