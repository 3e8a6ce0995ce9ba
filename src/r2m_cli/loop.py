"""The training loop: R2M's Algorithm 1, one function call per line of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from r2m_cli.batch import Annotated, Rollout
from r2m_cli.checkpoints import checkpoint
from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS
from r2m_cli.config.schema import Config
from r2m_cli.conversation import Prompt
from r2m_cli.data.source import PromptStream
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.judges.openai_judge import OpenAIJudge
from r2m_cli.maths.schedule import adapted_beta, feedback_weight, learning_rate
from r2m_cli.models.actors import Actors
from r2m_cli.monitor import stop
from r2m_cli.monitor.observer import Observer, Timer, evaluation_metrics, rollout_metrics
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.advantages import advantages
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.critic_step import critic_step
from r2m_cli.stages.judged import Verdict, choose, judged, labels_due, of_all_ranks, remember
from r2m_cli.stages.packing import balance, pack
from r2m_cli.stages.pair_learning import Labels, replay_batch, score_pairs
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout
from r2m_cli.text import fixed


def train(
    actors: Actors,
    prompts: list[Prompt],
    eval_prompts: list[Prompt],
    config: Config,
    run_dir: Path,
    observer: Observer,
    start: int,
    labels: Labels,
) -> int:
    """Run the steps start + 1 to config.train.steps; gives the last step done.

    Raises:
        UserError: a loss, gradient or log-probability that is not a finite number, or no finite reward at all; the newest
            checkpoint is from before it.
        stop.Stopped: a signal asked for it, or train.stop_at; a checkpoint of the last step is written.
    """
    stream = PromptStream(prompts, config.seed)
    total, c, temperature = config.train.steps, config.ppo, config.rollout.temperature
    budget, beta = config.rollout.tokens_per_batch, c.beta if observer.beta is None else observer.beta
    learns = actors.reward.feedback is not None and FEEDBACKS[config.feedback.kind].learns

    if start == 0 and config.eval.every:
        observer.stage("eval")
        weight = weight_at(0, config)
        values = evaluate(actors, eval_prompts, config, weight) | pair_accuracy(actors, labels, config)
        observer.row(0, values)

    for step in range(start + 1, total + 1):
        timer = Timer(observer.stage)
        weight, c = weight_at(step, config), replace(c, beta=beta)
        policy_lr, critic_lr = (
            learning_rate(step - 1, total, lr, c.warmup_steps, c.lr_schedule) for lr in (c.lr, c.critic.lr)
        )
        mine, group_ids = shard(stream.batch(step - 1, c.prompts_per_step))

        with timer("rollout"):
            batch = rollout(actors, mine, group_ids, c.group_size, config.rollout, config.seed, Stream.ROLLOUT, step)
            batch = balance(batch, together=2 if FEEDBACKS[config.feedback.kind].mixes else 1)
            packs = pack(batch, budget, c.mini_batches)
        with timer("annotate"):
            annotated = annotate(actors, batch, [p for mini_batch in packs for p in mini_batch], weight, temperature)
            require_finite(annotated, step)
        greedy = preference = reward_step = None
        if ESTIMATORS[c.algorithm].greedy:
            with timer("baseline"):
                greedy = greedy_responses(actors, batch, config, step, weight)
        trainable = advantages(annotated, c, greedy)
        if labels.judge is not None:
            with timer("judge"):
                preference = ask(labels, annotated, config, actors, run_dir, step, observer)
        if learns:
            reward_step = RewardStep(actors, annotated, config.feedback, weight, preference)

        with timer("policy_step"), not_finite_is_an_error(step):
            on_fresh_states = reward_step.consume if reward_step else None
            metrics = policy_step(actors, trainable, packs, c, temperature, policy_lr, on_fresh_states)
        if actors.critic is not None:
            with timer("critic_step"), not_finite_is_an_error(step):
                metrics.update(critic_step(actors.critic, trainable, packs, c, critic_lr))
        if reward_step:
            with timer("reward_step"), not_finite_is_an_error(step):
                if replayed := replay_batch(labels, config.feedback, config.seed, step):
                    reward_step.replay(replayed, draw_seed(Stream.REPLAY_STEP, config.seed, step), budget)
                metrics.update(reward_step.update(config.feedback.lr))
            timer.shift("policy_step", "reward_step", reward_step.seconds)

        metrics.update(rollout_metrics(annotated))
        values = metrics.means() | {"learning_rate": policy_lr, "beta": beta}
        if labels.judge is not None:
            values["reward_model/labels"] = float(len(labels.judged))
        last = step == total or (config.guard.kl is not None and values["kl"] > config.guard.kl)
        if actors.reward.feedback is not None:
            values["feedback/weight"] = weight
        if config.eval.every and (step % config.eval.every == 0 or last):
            with timer("eval"):
                values |= evaluate(actors, eval_prompts, config, weight)
                values |= pair_accuracy(actors, labels, config) if last else {}

        if c.kl_target is not None:
            beta = observer.beta = adapted_beta(beta, values["kl"], c.kl_target, config.ppo.beta)
        stopping = stop.requested(run_dir) or step == config.train.stop_at
        due = config.checkpoint.every and step % config.checkpoint.every == 0
        # The row first: a run that dies in between repeats the step on resuming, and its row with it.
        observer.row(step, values, timer, annotated)
        if due or stopping or last:
            observer.stage("checkpoint")
            ended = None if not last else "steps" if step == total else "guard"
            checkpoint.save(run_dir, step, actors, observer.state | {"ended": ended}, config.checkpoint.keep)
        if last:
            if step < total:
                observer.warn(
                    f"step {step}: KL {fixed(values['kl'])} is above guard.kl={config.guard.kl:g}: the run ends here",
                    "guard",
                )
            return step
        if stopping:
            raise stop.Stopped(step)
    return total


def weight_at(step: int, config: Config) -> float:
    """w(t), the weight of the text in the live reward at a step: 1 where no adapter reads beside it."""
    if FEEDBACKS[config.feedback.kind].states is None:
        return 1.0
    return feedback_weight(step, config.train.steps, config.feedback.omega, config.feedback.schedule)


def evaluate(actors: Actors, prompts: list[Prompt], config: Config, weight: float) -> dict[str, float]:
    """One response to each fixed prompt, always with the same random draws, scored by everything that scores."""
    batch = rollout(actors, *shard(prompts), 1, config.rollout, config.seed, Stream.EVAL, 0)
    (packs,) = pack(batch, config.rollout.tokens_per_batch)
    return evaluation_metrics(annotate(actors, batch, packs, weight, config.rollout.temperature)).means()


def pair_accuracy(actors: Actors, labels: Labels, config: Config) -> dict[str, float]:
    """Held-out labelled pairs that the reward model orders right, with the states of the policy as it is and the weight
    that w(t) comes to: at w(0) = 1 nothing is read."""
    if not labels.heldout:
        return {}
    weight = weight_at(config.train.steps, config)
    frozen, live = score_pairs(actors, labels.heldout, weight, config.rollout.tokens_per_batch)
    scores = {"eval/pair_accuracy_frozen": frozen, "eval/pair_accuracy": frozen if live is None else live}
    return {name: float((rewards[:, 0] > rewards[:, 1]).float().mean()) for name, rewards in scores.items()}


def ask(
    labels: Labels,
    annotated: Annotated,
    config: Config,
    actors: Actors,
    run_dir: Path,
    step: int,
    observer: Observer,
) -> Tensor:
    """The judge's preferences, see `judged`; what it said is added to the labels. Collective.

    Raises UserError on every rank if the judge fails on any; the step before is checkpointed first.
    """
    assert labels.judge is not None
    preference, failed = torch.empty(0), ""
    verdicts: list[Verdict] = []
    asked = choose(annotated, labels_due(step, config.feedback.judge_pairs))
    try:
        preference, verdicts = judged(annotated, labels.judge, asked)
    except UserError as error:
        failed = str(error)
    failed = next((text for text in comm.gather(failed) if text), "")
    if failed:
        if step > 1:
            checkpoint.save(run_dir, step - 1, actors, observer.state, config.checkpoint.keep)
            failed += f". Step {step - 1} is saved: go on with resume={run_dir}, where judge.* may change"
        raise UserError(f"step {step}: {failed}")
    pairs = of_all_ranks(verdicts)
    labels.judged.extend(pairs)
    if comm.is_main():
        remember(run_dir, step, pairs)
    if isinstance(labels.judge, OpenAIJudge) and labels.judge.unparsed:
        observer.warn("some answers of the judge hold no verdict: they teach nothing. Is judge.model fit for it?")
    return preference


def greedy_responses(actors: Actors, sampled: Rollout, config: Config, step: int, weight: float) -> Annotated:
    """One greedy response to each prompt of the batch with its reward, ReMax's baseline."""
    likeliest = replace(config.rollout, temperature=0.0)
    batch = rollout(actors, sampled.prompts, sampled.group_ids, 1, likeliest, config.seed, Stream.GREEDY, step)
    (packs,) = pack(batch, config.rollout.tokens_per_batch)
    return annotate(actors, batch, packs, weight, config.rollout.temperature, rewards_only=True)


def shard(prompts: list[Prompt]) -> tuple[list[Prompt], range]:
    """This rank's equal part of the prompts, and their numbers."""
    size = len(prompts) // comm.world_size()
    group_ids = range(comm.rank() * size, (comm.rank() + 1) * size)
    return [prompts[i] for i in group_ids], group_ids


@contextmanager
def not_finite_is_an_error(step: int) -> Iterator[None]:
    """Turn a gradient or loss that is not finite into a UserError."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"step {step}: {error}; the step is not saved. Start anew with a lower ppo.lr or feedback.lr, or a higher ppo.beta; "
            "at the first step check the reward model with `r2m evaluate`"
        ) from error


def require_finite(annotated: Annotated, step: int) -> None:
    """Raise UserError on every rank if any rank holds a log-probability that is not a finite number, or if no rank holds a
    reward that is one."""
    if comm.max_over_ranks(float(not annotated.old_logp.isfinite().all())):
        raise UserError(
            f"step {step}: a log-probability is not a finite number (NaN or infinite); nothing was updated. Check the "
            "policy with `r2m evaluate`, or try engine.dtype=fp32"
        )
    if not comm.max_over_ranks(float(annotated.valid.any())):
        raise UserError(
            f"step {step}: no reward is a finite number (all are NaN or infinite); nothing was updated. At the first step "
            "check the reward model with `r2m evaluate`, or try engine.dtype=fp32; later lower feedback.lr"
        )
