"""`r2m train` on one rank: build the actors, run the loop, and write all files of the run folder."""

import json
import random
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from r2m_cli.build import build_actors
from r2m_cli.checkpoints import checkpoint
from r2m_cli.checkpoints.continuation import steps_are_done
from r2m_cli.checkpoints.fingerprint import inputs
from r2m_cli.checkpoints.space import require_room_for_run
from r2m_cli.checkpoints.state import LoopState
from r2m_cli.config.schema import Config
from r2m_cli.console import say
from r2m_cli.conversation import Pair, Prompt
from r2m_cli.data.source import PromptStream, Source, fitting, load_source, renderable
from r2m_cli.data.template import ChatFormat
from r2m_cli.data.truncation import told_apart
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.files.cache import cache_dir
from r2m_cli.files.jsonl import lines_of
from r2m_cli.files.run_folder import METRICS, SUMMARY
from r2m_cli.judges.judge import gold_judge, labeller_judge
from r2m_cli.judges.openai_judge import OpenAIJudge
from r2m_cli.loop import Training, train, weight_at
from r2m_cli.models.actors import Actors
from r2m_cli.models.decoding import NOTES
from r2m_cli.models.sharing import ASKED
from r2m_cli.models.tokenizers import check_known
from r2m_cli.monitor.observer import Observer
from r2m_cli.monitor.sinks import Sinks
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.judged import remembered
from r2m_cli.stages.label_pairs import known_pairs
from r2m_cli.stages.pair_learning import Labels, fits
from r2m_cli.stages.reward_check import reward_check
from r2m_cli.stages.warm_up import warm_up
from r2m_cli.text import number


def run(config: Config, run_dir: Path) -> None:
    """Train; raises what `loop.train` raises."""
    begun = perf_counter()
    origin = {"config": asdict(config), "inputs": inputs(config) if comm.is_main() else {}}
    source = load_source(config.data, config.eval.prompts)
    actors = build_actors(config, source)
    formats = [actors.format, *(member.format for member in actors.reward.truncations)]
    source = renderable(source, formats)
    prompts, eval_prompts, notes = usable_prompts(source, actors.format, config)
    notes += check_known(source, *formats)
    labels, of_labels = real_labels(config, source, actors)

    state = LoopState()
    warnings: list[str] = []
    if config.resume:
        state = checkpoint.load(run_dir, actors)
        say(f"continuing after step {state.step} of {config.train.steps}")
        labels.judged.extend(remembered(run_dir, state.step))
    require_room_for_run(config, actors, run_dir, config.train.steps - state.step)
    if not config.resume:
        notes += remarks(actors, prompts, config) + of_labels
        more, warnings = before_training(config, source, actors, labels, run_dir)
        notes += more
    done = config.resume is not None and steps_are_done(state, run_dir, config)
    comm.barrier()
    if comm.is_main():
        (run_dir / SUMMARY).unlink(missing_ok=True)  # it describes the run before this continuation
    with _sinks(config, run_dir, state.step) as sinks:
        begun -= state.seconds  # of the earlier parts of the run
        observer = Observer(sinks, config.logger.samples_every)
        for note in notes if state.step == 0 else []:
            observer.warn(note, "note")
        for warning in warnings:
            observer.warn(warning)
        if not done:
            stream = PromptStream(prompts, config.seed)
            state.seconds = perf_counter() - begun
            train(Training(actors, stream, eval_prompts, labels, config, run_dir, observer, origin), state)
        if config.checkpoint.export:
            observer.stage("export")
            settings = {
                "kind": config.feedback.kind, "omega": weight_at(config.train.steps, config), "dim": config.feedback.dim,
                "heads": config.feedback.heads, "query": config.feedback.query, "features": config.feedback.features,
                "temperature": config.rollout.temperature,
            }  # fmt: skip
            checkpoint.export(run_dir, actors, config.policy.path, config.reward.path, settings)
        if sinks is not None:
            sinks.close(summary(run_dir, config, state.step, perf_counter() - begun))


def real_labels(config: Config, source: Source, actors: Actors) -> tuple[Labels, list[str]]:
    """The labelled pairs and the judge that the configuration needs, and notes on pairs that were truncated or left out.

    Raises:
        UserError: pairs are needed and there are none; or from the judge.
    """
    f, judge = config.feedback, None
    pairs: list[Pair] = []
    notes: list[str] = []
    if f.warmup_pairs or f.replay_pairs:
        # Draw no more pairs than the run can use: tokenizing a large data set takes minutes.
        known, wanted = known_pairs(config, source, "train"), f.warmup_pairs + f.replay_pairs * config.train.steps
        drawn = random.Random(draw_seed(Stream.KNOWN_PAIRS, config.seed)).sample(known, min(wanted, len(known)))
        pairs, notes = _usable(actors, drawn, "labelled pairs")
        if not pairs:
            key = "feedback.warmup_pairs" if f.warmup_pairs else "feedback.replay_pairs"
            raise UserError(
                f"{key}: the data has no labelled pairs (chosen, rejected) that fit the policy's context and differ within the "
                "reward model's limit (reward.max_tokens); set it to 0"
            )
    if f.judge == "gold":
        judge = gold_judge(source.gold)
    elif f.judge == "labeller":
        assert source.world is not None
        judge = labeller_judge(source.world, draw_seed(Stream.LABELLER, config.seed))
    elif f.judge == "openai":
        judge = OpenAIJudge(config.judge, cache_dir() / "judge")
    heldout = known_pairs(config, source, "heldout")[: config.eval.reward_check_pairs]
    heldout, more = _usable(actors, heldout, "held-out pairs")
    return Labels(judge, pairs, heldout), notes + more


def _usable(actors: Actors, pairs: list[Pair], what: str) -> tuple[list[Pair], list[str]]:
    """The pairs that fit the policy's context and that the reward model can distinguish, and notes for the user."""
    read = [pair for pair in pairs if fits(actors, pair)]
    kept, notes = told_apart(actors.reward.truncations, read, what)
    if len(read) < len(pairs):
        notes.insert(
            0, f"{len(pairs) - len(read)} of {len(pairs)} {what} are longer than the policy's context and are left out"
        )
    return [read[i] for i in kept], notes


def before_training(
    config: Config, source: Source, actors: Actors, labels: Labels, run_dir: Path
) -> tuple[list[str], list[str]]:
    """Run the warm-up of the adapter and the reward check; returns notes and warnings for the user. Collective."""
    notes: list[str] = []
    warnings: list[str] = []
    if config.feedback.warmup_pairs:
        try:
            values = warm_up(actors, labels, config, run_dir)
        except FloatingPointError as error:
            rate = "feedback.lr" if config.feedback.warmup_lr is None else "feedback.warmup_lr"
            raise UserError(f"feedback.warmup_pairs: {error}; lower {rate}, or check the reward model") from error
        notes.append("warm-up of adapter and head: " + ", ".join(f"{k} {number(v, 3)}" for k, v in values.items()))
    if labels.heldout:
        weight = weight_at(config.train.steps, config)
        warm = config.feedback.warmup_pairs > 0
        more, warnings = reward_check(actors, labels.heldout, weight, config.rollout.tokens_per_batch, warm)
        notes += more
    return notes, warnings


def remarks(actors: Actors, prompts: list[Prompt], config: Config) -> list[str]:
    """Notes about things that work but may surprise the user."""
    chats = [actors.format, *(member.format for member in actors.reward.truncations)]
    notes = list(dict.fromkeys(note for note in (chat.note() for chat in chats) if note is not None))
    models = [("policy", actors.format), *(("reward model", reader.format) for reader in actors.reward.truncations[:1])]
    for what, chat in models:
        if chat.pad_id in chat.eos_ids:
            notes.append(f"the {what}'s tokenizer pads with its end token; r2m masks by length, other tools may not")
    for what, reason in (("policy", actors.policy.module.unshared), ("reward model", actors.reward.unshared)):
        if reason:
            why = reason if reason == ASKED else f"it cannot share them ({reason})"
            notes.append(f"the {what} reads every prompt once per response: {why}")
    if (how := NOTES.get(actors.policy.module.decoder)) is not None:
        notes.append(f"the policy {how}")
    longest = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    if actors.reward.max_tokens < longest:
        notes.append(
            f"the reward model reads at most {actors.reward.max_tokens} tokens ({actors.reward.limited_by}), but a conversation may "
            f"have {longest} or more: of longer ones it reads only the end"
        )
    if config.ppo.prompts_per_step > len(prompts):
        notes.append(
            f"ppo.prompts_per_step={config.ppo.prompts_per_step}, but there are {len(prompts)} prompts: some prompts repeat within a step"
        )
    return notes


def usable_prompts(source: Source, chat: ChatFormat, config: Config) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """Training and evaluation prompts that fit into the context, and notes for the user about the rest.

    Raises:
        UserError: no prompt is left, or there are fewer evaluation prompts than ranks.
    """
    limit = config.rollout.max_prompt_tokens
    prompts, eval_prompts = (fitting(p, chat, limit) for p in (source.prompts, source.eval_prompts))
    notes = list(source.notes)
    left_out = len(source.prompts) + len(source.eval_prompts) - len(prompts) - len(eval_prompts)
    if left_out:
        notes.append(f"{left_out} prompts are longer than rollout.max_prompt_tokens={limit} and are left out")
    if not prompts:
        raise UserError(f"every prompt is longer than rollout.max_prompt_tokens={limit} policy tokens; raise it")
    eval_prompts = eval_prompts[: config.eval.prompts]
    even = len(eval_prompts) // comm.world_size() * comm.world_size()
    if config.eval.every and not even:
        raise UserError(
            f"{len(eval_prompts)} evaluation prompts of at most {limit} tokens for {comm.world_size()} rank(s); raise "
            "data.holdout or eval.prompts, or set eval.every=0"
        )
    return prompts, eval_prompts[:even], notes


def _sinks(config: Config, run_dir: Path, start: int) -> Any:
    if not comm.is_main():
        return nullcontext()
    c = config.logger
    # Step 0 is the evaluation before training; a resumed run continues after its checkpoint.
    first = start + 1 if start else 0
    return Sinks(c.kinds, run_dir, config.train.steps, c.project, run_dir.name, asdict(config), first)


def summary(run_dir: Path, config: Config, steps: int, seconds: float) -> dict[str, Any]:
    """The run's final values, from metrics.jsonl (which also covers the part before a resume)."""
    rows = [json.loads(line) for line in lines_of(run_dir / METRICS)]
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    values: dict[str, Any] = {"steps": steps, "seed": config.seed, "seconds": round(seconds, 2)}
    values |= {
        name: last[name] for name in sorted(last) if name.startswith("eval/") or name in ("reward", "gold", "kl")
    }
    gold = [(row["eval/gold"], row["step"]) for row in rows if row.get("eval/gold") is not None]
    if gold:
        values["gold_start"], values["gold_end"] = gold[0][0], gold[-1][0]
        values["gold_peak"], values["gold_peak_step"] = max(gold, key=lambda pair: pair[0])
    # The objective of a sweep: gold if it is known, otherwise the reward.
    candidates = (last.get(name) for name in ("eval/gold", "gold", "eval/reward", "reward"))
    values["objective"] = next((value for value in candidates if value is not None), None)
    return values
