"""`r2m evaluate` on one rank: a policy on fixed prompts, a reward model on labelled pairs, win rates, best-of-n.

With `run=` the policy and reward model are those of a finished training run, with that run's configuration; keys of data
may differ, so that its reward model can be measured on other pairs. The initial reward model is measured on the text alone;
the run's final one with the policy's hidden states and with w at t = T, which is Omega (the paper's section G.6).
"""

import json
from dataclasses import replace
from pathlib import Path

from r2m_cli.build import build_actors, build_heldout_reward
from r2m_cli.checkpoints.checkpoint import load_feedback
from r2m_cli.checkpoints.continuation import changed_since
from r2m_cli.config.schema import Config
from r2m_cli.console import say
from r2m_cli.conversation import Pair
from r2m_cli.data.source import Source, load_source, renderable
from r2m_cli.data.truncation import cut_notes
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError, printable
from r2m_cli.evaluation import best_of_n, win_rate
from r2m_cli.evaluation.measures import Measures
from r2m_cli.evaluation.pairs import accuracy
from r2m_cli.evaluation.policy import alpaca_rows, evaluation_prompts, scored, text_scores
from r2m_cli.files.run_folder import ALPACA_EVAL, POLICY, REWARD_MODEL
from r2m_cli.maths.statistics import RESAMPLES
from r2m_cli.models.tokenizers import check_known
from r2m_cli.stages.accuracy import units_of
from r2m_cli.stages.label_pairs import saved_pairs
from r2m_cli.stages.packing import rows_per_forward
from r2m_cli.text import from_home


def run(config: Config, run_dir: Path) -> None:
    """Evaluate; prints the metrics and writes them to `evaluation.json` in the run folder, updated after each part.

    Also writes `alpaca_eval.json` and, if requested, `pairs.jsonl`, `comparisons.jsonl`, `best_of_n.csv` and `.jsonl`.

    Raises:
        UserError: a model, prompt or pair is missing, or keys contradict each other.
    """
    check(config)
    source = load_source(config.data, config.eval.prompts, evaluating=True)
    run = from_home(config.run) if config.run is not None else None
    weight = 1.0
    if run is None:  # there is no point in measuring an untrained adapter
        config = replace(config, feedback=replace(config.feedback, kind="none"))
    # The configured models have the same roles as in the run: reference and initial reward model.
    actors = build_actors(config, source, str(run / POLICY) if run is not None else None)
    if run is not None and actors.reward.feedback is not None:
        weight = load_feedback(run / REWARD_MODEL, actors.reward.feedback.module)
    heldout = build_heldout_reward(config, actors.device)
    truncations = (*actors.reward.truncations, *(heldout.truncations if heldout is not None else ()))
    formats = [actors.format, *(member.format for member in truncations)]
    source = renderable(source, formats)
    measures = Measures(run_dir, RESAMPLES, config.seed)
    if run is None:
        measures.notes.append("run= is not set: this is the configured policy before any RL")
    else:
        measures.notes += changed_since(config, run)
    measures.notes += check_known(source, *formats)
    forms = [chat.note() for chat in formats]
    measures.notes += dict.fromkeys(note for note in forms if note is not None)
    prompts = evaluation_prompts(source, actors.format, config, measures)
    budget = config.rollout.tokens_per_batch
    rows = rows_per_forward(budget, [config.rollout.max_prompt_tokens + config.rollout.max_new_tokens])
    # Check for everything that may be missing before sampling anything.
    judge = win_rate.make_judge(config, actors, rows) if config.eval.judge != "none" else None
    others = win_rate.opponents(config, source, actors, prompts) if judge is not None else []

    say(f"sampling a response to each of {len(prompts)} prompts")
    batch = scored(actors, prompts, config, weight, measures)
    if heldout is not None:
        measures.notes += cut_notes(heldout.truncations, batch.prompts, batch.responses, "responses for eval.reward")
        scores = text_scores(heldout, batch.prompts, batch.responses, actors.device, rows)
        measures.mean("eval/heldout_reward", scores, units_of(prompts))
    alpaca = printable(json.dumps(alpaca_rows(batch, config), indent=2, ensure_ascii=False))
    (run_dir / ALPACA_EVAL).write_text(alpaca, encoding="utf-8")
    measures.save()
    accuracy(actors, _pairs(config, source, measures), weight, budget, measures)
    measures.save()
    if config.eval.best_of > 1:
        best_of_n.curve(actors, prompts, config, weight, heldout, rows, measures)
        measures.save()
    if judge is not None:
        win_rate.measure(judge, batch, others, measures, actors.reward if config.eval.judge == "reward" else None)
        measures.save()
    measures.show()
    if config.eval.best_of > 1:
        best_of_n.show(measures, config)


def check(config: Config) -> None:
    """Raises UserError for keys that contradict each other, and for a run without a policy."""
    if comm.world_size() > 1 or config.engine.num_processes * config.engine.num_nodes > 1:
        raise UserError("r2m evaluate runs in one process: use engine=single")
    if config.run is not None and not (from_home(config.run) / POLICY / "config.json").is_file():
        raise UserError(f"run={config.run}: it has no policy/; the run is not finished, or had checkpoint.export=false")
    if config.eval.against != win_rate.CHOSEN and config.eval.judge == "none":
        raise UserError(f"eval.against={config.eval.against}: needs a judge; add eval.judge=reward|gold|openai")
    if config.data.kind != "file" and config.data.path is not None:
        raise UserError(f"data.path={config.data.path}: a world does not read a file; add data=file")
    best_of_n.check(config)


def _pairs(config: Config, source: Source, measures: Measures) -> list[Pair]:
    """The first eval.pairs held-out pairs: from the file or, in a world, those saved with its reward model."""
    pairs = source.heldout_pairs
    if source.world is not None and config.reward.path is not None:
        pairs = saved_pairs(from_home(config.reward.path), "heldout")
    if len(pairs) > config.eval.pairs:
        measures.notes.append(f"eval.pairs={config.eval.pairs} of {len(pairs)} held-out pairs are scored")
    return pairs[: config.eval.pairs]
