"""`r2m sft` on one rank: fit the policy's starting point on demonstrations."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from r2m_cli.build import local_device
from r2m_cli.checkpoints.space import require_room_for_fit
from r2m_cli.config.schema import Config, FitConfig
from r2m_cli.console import say
from r2m_cli.conversation import Prompt
from r2m_cli.data.source import load_source, renderable, say_notes
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import DTYPES, Engine, make_engine
from r2m_cli.errors import UserError
from r2m_cli.files.run_folder import FIT
from r2m_cli.fitting.fit import fit
from r2m_cli.fitting.unfinished import Unfinished, unfinished
from r2m_cli.models.formats import format_of, policy_format
from r2m_cli.models.loading import fresh_llama, load_causal_lm
from r2m_cli.models.lora import merged, with_lora
from r2m_cli.models.policy import Policy
from r2m_cli.models.sequences import Sequences, pad
from r2m_cli.models.tokenizers import check_known
from r2m_cli.seeds import Stream
from r2m_cli.stages.packing import rows_per_forward
from r2m_cli.text import number


def run(config: Config, run_dir: Path) -> None:
    """Fit a policy and write it to `run_dir` as a Hugging Face folder, with its metrics in `fit.json`.

    Raises:
        UserError: there are no demonstrations, or none within the length limits.
    """
    with unfinished(config, run_dir) as kept:
        _fit(config, run_dir, kept)


def _fit(config: Config, run_dir: Path, kept: Unfinished) -> None:
    source, c = load_source(config.data, 1), config.policy
    if c.base is not None:
        chat = policy_format(c, c.base, "policy.base")
    elif source.world is not None:
        chat = format_of(source.world.tokenizer(), "policy", c.template)
    else:
        raise UserError("policy.path and policy.base are both null: name a model to start from (policy.base=FOLDER)")
    source = renderable(source, [chat])
    say_notes([*source.notes, *check_known(source, chat)])

    if c.base is not None:
        say(f"loading policy.base={c.base}")
        lm = load_causal_lm(c.base, "policy.base", DTYPES[config.engine.dtype], local_device(config))
    else:
        lm = fresh_llama(c, chat.tokenizer, chat.pad_id, config.data.seed, scorer=False)
    require_room_for_fit(lm, run_dir)
    note = chat.note()
    if note is not None:
        say(f"note: {note}")
    fitted = with_lora(lm, c.fit.lora_rank, "CAUSAL_LM") if c.fit.parameters == "lora" else lm
    engine, values = fit_lm(lm, chat, source.demonstrations, config, c.fit, kept)
    with engine.whole():
        if comm.is_main():
            merged(fitted).save_pretrained(run_dir)
    if comm.is_main():
        chat.save(run_dir)
        (run_dir / FIT).write_text(json.dumps(values, indent=2))
    say(f"SFT on {values['demonstrations']} demonstrations: loss {number(values['loss'])} nats per token")
    comm.barrier()


def fit_lm(
    lm: Any,
    chat: ChatFormat,
    demonstrations: list[tuple[Prompt, str]],
    config: Config,
    fit_config: FitConfig,
    kept: Unfinished,
) -> tuple[Engine, dict[str, float]]:
    """Fit a language model on the replies of demonstrations; returns the engine that holds it and the fit's metrics.

    Raises:
        UserError: no demonstration is within the length limits; or from `fit`.
    """
    rows, notes = _rows(demonstrations[: fit_config.rows], chat, config)
    for note in notes:
        say(f"note: {note}")
    device = local_device(config)
    engine = make_engine(Policy(lm), config.engine, device, weight_decay=0.0, max_grad_norm=1.0)

    def loss_of(batch: Sequence[tuple[list[int], list[int]]]) -> Tensor:
        tokens, lengths = pad([prompt + response for prompt, response in batch], chat.pad_id)
        prompts = torch.tensor([len(prompt) for prompt, _ in batch])
        responses = (lengths - prompts).to(device)
        output = engine(Sequences(tokens.to(device), prompts.to(device), responses, group_size=1), 1.0)
        return -output.logp.sum(dim=1) / responses

    micro_rows = rows_per_forward(config.rollout.tokens_per_batch, [len(p) + len(r) for p, r in rows])
    stream, seed, part = Stream.SFT_ORDER, config.data.seed, kept.part("sft", rows)
    loss = fit(engine, rows, loss_of, fit_config, stream, seed, "SFT", micro_rows, part)  # type: ignore[arg-type]
    return engine, {"loss": loss, "demonstrations": len(rows)}


def _rows(
    demonstrations: list[tuple[Prompt, str]], chat: ChatFormat, config: Config
) -> tuple[list[tuple[list[int], list[int]]], list[str]]:
    """Token ids of the prompts and replies to train on, and notes on what is left out or truncated."""
    limit, most = config.rollout.max_prompt_tokens, config.rollout.max_new_tokens
    whole = [(chat.prompt_ids(p), chat.response_ids(p, r)) for p, r in demonstrations]
    rows = [(prompt, reply[:most]) for prompt, reply in whole if len(prompt) <= limit]
    if not rows:
        where = f"data.path={config.data.path}" if config.data.kind == "file" else f"data={config.data.kind}"
        if not demonstrations:
            raise UserError(
                f"no demonstrations for SFT: {where} has no replies; use pairs, or prompts with a completion"
            )
        raise UserError(
            f"no demonstrations for SFT: {where} has none with a prompt of at most rollout.max_prompt_tokens={limit} tokens; "
            "raise it"
        )
    notes = []
    if len(rows) < len(whole):
        notes.append(
            f"{len(whole) - len(rows)} of {len(whole)} demonstrations have a prompt longer than rollout.max_prompt_tokens={limit} "
            "and are left out; raise it"
        )
    cut = sum(len(reply) > most for prompt, reply in whole if len(prompt) <= limit)
    if cut:
        notes.append(
            f"{cut} of {len(rows)} demonstrations have a reply longer than rollout.max_new_tokens={most} and are truncated, so "
            "the policy does not learn to end them; raise it"
        )
    return rows, notes
