"""`r2m train` on one rank: build the actors, run the loop, leave the run folder complete."""

import json
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

from r2m_cli import checkpoint
from r2m_cli.batch import Prompt
from r2m_cli.build import build_actors
from r2m_cli.data.source import Source, fitting, load_source
from r2m_cli.data.template import ChatFormat
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.loop import train
from r2m_cli.observe import Observer
from r2m_cli.schema import Config
from r2m_cli.sinks import Sinks


def run(config: Config, run_dir: Path) -> None:
    """Train; raises what `loop.train` raises."""
    begun = perf_counter()
    source = load_source(config.data, config.eval.prompts)
    actors = build_actors(config, source)
    prompts, eval_prompts, notes = usable_prompts(source, actors.format, config)

    state: dict[str, Any] = {"step": 0, "tokens": 0}
    if config.resume:
        state = checkpoint.load(run_dir, actors)
    with _sinks(config, run_dir, state["step"]) as sinks:
        observer = Observer(sinks, config.logger.samples_every, state["tokens"])
        for note in notes if state["step"] == 0 else []:
            observer.warn(note)
        steps = train(actors, prompts, eval_prompts, config, run_dir, observer, state["step"])
        if config.checkpoint.export:
            settings = {
                "omega": config.feedback.omega, "dim": config.feedback.dim, "temperature": config.rollout.temperature
            }  # fmt: skip
            assert config.reward.path is not None
            checkpoint.export(run_dir, actors, config.reward.path, settings)
        if sinks is not None:
            sinks.close(summary(run_dir, config, steps, perf_counter() - begun))


def usable_prompts(source: Source, chat: ChatFormat, config: Config) -> tuple[list[Prompt], list[Prompt], list[str]]:
    """Training and evaluation prompts that fit into the context, and what the person should know of the rest.

    Raises:
        UserError: none is left, or fewer evaluation prompts than ranks.
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
    name = c.name or run_dir.name
    # Step 0 is the evaluation before training; a resumed run goes on behind its checkpoint.
    first = start + 1 if start else 0
    return Sinks(c.kinds, run_dir, config.train.steps, c.project, name, asdict(config), first)


def summary(run_dir: Path, config: Config, steps: int, seconds: float) -> dict[str, Any]:
    """The run's final figures, from metrics.jsonl (which also covers the part before a resume)."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    figures: dict[str, Any] = {"steps": steps, "seed": config.seed, "seconds": round(seconds, 2)}
    figures |= {
        name: last[name] for name in sorted(last) if name.startswith("eval/") or name in ("reward", "gold", "kl")
    }
    gold = [(row["eval/gold"], row["step"]) for row in rows if row.get("eval/gold") is not None]
    if gold:
        figures["gold_start"], figures["gold_end"] = gold[0][0], gold[-1][0]
        figures["gold_peak"], figures["gold_peak_step"] = max(gold, key=lambda pair: pair[0])
    # What a sweep optimises: the truth where it is known, the reward where it is not.
    candidates = (last.get(name) for name in ("eval/gold", "gold", "eval/reward", "reward"))
    figures["objective"] = next((value for value in candidates if value is not None), None)
    return figures
