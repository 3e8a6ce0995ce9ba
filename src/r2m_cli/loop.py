"""The training loop: R2M's Algorithm 1, one function call per line of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from r2m_cli.batch import Annotated
from r2m_cli.checkpoints import checkpoint
from r2m_cli.checkpoints.state import LoopState
from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS
from r2m_cli.config.schema import Config
from r2m_cli.conversation import Prompt
from r2m_cli.data.source import PromptStream
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.judges.openai_judge import OpenAIJudge
from r2m_cli.maths.schedule import adapted_beta, feedback_weight, learning_rate
from r2m_cli.models.actors import Actors
from r2m_cli.models.reward_function import FunctionFailed
from r2m_cli.monitor import stop
from r2m_cli.monitor.observer import Observer, Timer, step_tokens
from r2m_cli.seeds import Stream, draw_seed
from r2m_cli.stages.advantages import advantages
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.baseline import greedy_responses
from r2m_cli.stages.critic_step import critic_step
from r2m_cli.stages.evaluation import evaluate, pair_accuracy
from r2m_cli.stages.judged import judge_step
from r2m_cli.stages.metrics import rollout_metrics
from r2m_cli.stages.mismatch import corrected
from r2m_cli.stages.packing import balance, pack, shard
from r2m_cli.stages.pair_learning import Labels, replay_batch
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout
from r2m_cli.text import fixed


@dataclass(frozen=True)
class Training:
    """What every step of a run works with."""

    actors: Actors
    prompts: PromptStream
    eval_prompts: list[Prompt]
    labels: Labels
    config: Config
    folder: Path
    observer: Observer
    origin: dict[str, Any] = field(
        default_factory=dict
    )  # the configuration and inputs that the run started with, for its checkpoints


def train(run: Training, state: LoopState) -> None:
    """Run the steps after `state.step` up to config.train.steps; `state` is updated in place.

    Raises:
        UserError: a loss, gradient or log-probability is not a finite number, or no reward is. The newest checkpoint is
            older than the failed step.
        stop.Stopped: a signal or train.stop_at asked the run to stop; a checkpoint of the last step is written.
    """
    config, observer = run.config, run.observer
    begun = perf_counter() - state.seconds
    if state.step == 0 and config.eval.every:
        observer.stage("eval")
        observer.row(0, measured(run, 0, pairs=True))

    for step in range(state.step + 1, config.train.steps + 1):
        timer = Timer(observer.stage, run.actors.device)
        annotated, values = train_step(run, state, step, timer)
        ended = why_it_ends(step, values, config)
        if config.eval.every and (step % config.eval.every == 0 or ended):
            with timer("eval"), failing_at(step):
                values |= measured(run, step, pairs=ended is not None)

        tokens = step_tokens(annotated.rollout)
        state.step, state.ended, state.tokens = step, ended, state.tokens + tokens
        state.beta = next_beta(state.beta, values, config)
        stopping = stop.requested(run.folder) or step == config.train.stop_at
        values |= timer.metrics(tokens) | {"num_tokens": float(state.tokens)}
        # Write the row before the checkpoint: if the run dies in between, resuming repeats the step and replaces its row.
        observer.row(step, values, annotated)
        state.seconds = perf_counter() - begun
        if ended or stopping or (config.checkpoint.every and step % config.checkpoint.every == 0):
            save(run, state)
        if ended == "guard":
            kl, limit = fixed(values["kl"]), f"{config.guard.kl:g}"
            observer.warn(f"step {step}: KL {kl} is above guard.kl={limit}: the run ends here", "guard")
        if ended:
            return
        if stopping:
            raise stop.Stopped(step)


def train_step(run: Training, state: LoopState, step: int, timer: Timer) -> tuple[Annotated, dict[str, float]]:
    """One step of R2M (arXiv 2601.22664, Algorithm 1). -> this rank's annotated rollout, and the metrics over all ranks."""
    actors, labels, config, budget = run.actors, run.labels, run.config, run.config.rollout.tokens_per_batch
    c = config.ppo if state.beta is None else replace(config.ppo, beta=state.beta)
    weight, temperature = weight_at(step, config), config.rollout.temperature
    policy_lr, critic_lr = (
        learning_rate(step - 1, config.train.steps, lr, c.warmup_steps, c.lr_schedule) for lr in (c.lr, c.critic.lr)
    )

    with timer("rollout"):
        mine, group_ids = shard(run.prompts.batch(step - 1, c.prompts_per_step))
        batch = rollout(actors, mine, group_ids, c.group_size, config.rollout, config.seed, Stream.ROLLOUT, step)
        batch = balance(batch, together=2 if FEEDBACKS[config.feedback.kind].mixes else 1)
        packs = pack(batch, budget, c.mini_batches)
    with timer("annotate"), failing_at(step):
        annotated = annotate(actors, batch, [p for mini_batch in packs for p in mini_batch], weight, temperature)
        require_finite(annotated, step)
    greedy = preference = reward_step = learn = None
    if ESTIMATORS[c.algorithm].greedy:
        with timer("baseline"), failing_at(step):
            greedy = greedy_responses(actors, batch, config, step, weight)
    trainable, mismatch = corrected(advantages(annotated, c, greedy), c.ratio, config.rollout.is_cap)
    if labels.judge is not None:
        with timer("judge"):
            preference = ask(run, annotated, state, step)
    if actors.reward.feedback is not None and FEEDBACKS[config.feedback.kind].learns:
        reward_step = RewardStep(actors, annotated, config.feedback, weight, preference)
        learn = timer("reward_step")(reward_step.consume)

    with not_finite_is_an_error(step):
        with timer("policy_step"):
            metrics = policy_step(actors, trainable, packs, c, temperature, policy_lr, on_fresh_states=learn)
        if actors.critic is not None:
            with timer("critic_step"):
                metrics.update(critic_step(actors.critic, trainable, packs, c, critic_lr))
        if reward_step:
            with timer("reward_step"):
                replayed = replay_batch(labels, config.feedback, config.seed, step)
                reward_step.replay(replayed, draw_seed(Stream.REPLAY_STEP, config.seed, step), budget)
                metrics.update(reward_step.update(config.feedback.lr))

    metrics.update(rollout_metrics(annotated))
    values = metrics.means() | mismatch | {"learning_rate": policy_lr, "beta": c.beta}
    if labels.judge is not None:
        values["reward_model/labels"] = float(len(labels.judged))
    if actors.reward.feedback is not None:
        values["feedback/weight"] = weight
    return annotated, values


def weight_at(step: int, config: Config) -> float:
    """w(t), the weight of the original reward token embedding in the live reward at a step; 1 without an adapter."""
    if FEEDBACKS[config.feedback.kind].states is None:
        return 1.0
    return feedback_weight(step, config.train.steps, config.feedback.omega, config.feedback.schedule)


def next_beta(beta: float | None, values: dict[str, float], config: Config) -> float | None:
    """The KL weight of the next step, adapted to ppo.kl_target; unchanged if there is no target."""
    c = config.ppo
    if c.kl_target is None:
        return beta
    return adapted_beta(c.beta if beta is None else beta, values["kl"], c.kl_target, c.beta)


def why_it_ends(step: int, values: dict[str, float], config: Config) -> str | None:
    """ "steps" after the last step, "guard" if the KL is above guard.kl; None if the run continues."""
    if step == config.train.steps:
        return "steps"
    limit = config.guard.kl
    return "guard" if limit is not None and values["kl"] > limit else None


def measured(run: Training, step: int, pairs: bool) -> dict[str, float]:
    """The metrics on the fixed prompts and, with `pairs`, on the held-out pairs; the pairs are scored with the final weight w(T)."""
    actors, config = run.actors, run.config
    values = evaluate(actors, run.eval_prompts, config, weight_at(step, config))
    if pairs:
        last = weight_at(config.train.steps, config)
        values |= pair_accuracy(actors, run.labels.heldout, last, config.rollout.tokens_per_batch)
    return values


def ask(run: Training, annotated: Annotated, state: LoopState, step: int) -> Tensor:
    """The judge's preferences, see `judge_step`. If the judge fails, the previous step is checkpointed. Collective."""
    labels = run.labels
    try:
        preference = judge_step(labels, annotated, run.config.feedback, run.folder, step)
    except UserError as error:
        kept = ""
        if state.step:
            save(run, state)
            kept = f". Step {state.step} is saved: continue with resume={run.folder}; judge.* may be changed"
        raise UserError(f"step {step}: {error}{kept}") from error
    if isinstance(labels.judge, OpenAIJudge) and labels.judge.unparsed:
        run.observer.warn(
            "some of the judge's answers contain no verdict and are ignored; check that judge.model can follow the instructions"
        )
    return preference


def save(run: Training, state: LoopState) -> None:
    """Write a checkpoint. Collective."""
    run.observer.stage("checkpoint")
    checkpoint.save(run.folder, run.actors, state, run.origin, run.config.checkpoint.keep)


@contextmanager
def failing_at(step: int) -> Iterator[None]:
    """Add the step number to errors of reward.function. Raises UserError; the launcher then ends the other ranks too."""
    try:
        yield
    except FunctionFailed as error:
        raise UserError(f"step {step}: {error}") from error


@contextmanager
def not_finite_is_an_error(step: int) -> Iterator[None]:
    """Turn a gradient or loss that is not finite into a UserError."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"step {step}: {error}; the step is not saved. Start again with a lower ppo.lr or feedback.lr, or a higher ppo.beta; "
            "if this is the first step, check the reward model with `r2m evaluate`"
        ) from error


def require_finite(annotated: Annotated, step: int) -> None:
    """Raise UserError on every rank if any log-probability of any rank is not a finite number, or if no rank has a finite
    reward."""
    if comm.max_over_ranks(float(not annotated.old_logp.isfinite().all())):
        raise UserError(
            f"step {step}: a log-probability is not a finite number (NaN or infinite); nothing was updated. Check the "
            "policy with `r2m evaluate`, or try engine.dtype=fp32"
        )
    if not comm.max_over_ranks(float(annotated.valid.any())):
        raise UserError(
            f"step {step}: no reward is a finite number (all are NaN or infinite); nothing was updated. If this is the first step, "
            "check the reward model with `r2m evaluate`, or try engine.dtype=fp32; at a later step, lower feedback.lr"
        )
