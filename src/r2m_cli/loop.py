"""The training loop: R2M's Algorithm 1, one function call per line of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from r2m_cli import checkpoint, stop
from r2m_cli.batch import Annotated, Prompt, Trainable
from r2m_cli.data.source import PromptStream
from r2m_cli.distributed import comm
from r2m_cli.errors import UserError
from r2m_cli.maths import advantages as estimators
from r2m_cli.maths.schedule import feedback_weight, learning_rate
from r2m_cli.models.actors import Actors
from r2m_cli.observe import Observer, Timer, evaluation_metrics, rollout_metrics
from r2m_cli.schema import Config
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.reward_step import RewardStep
from r2m_cli.stages.rollout import rollout

TRAIN, EVAL = 0, 1  # streams of random numbers


def train(
    actors: Actors,
    prompts: list[Prompt],
    eval_prompts: list[Prompt],
    config: Config,
    run_dir: Path,
    observer: Observer,
    start: int,
) -> int:
    """Run the steps start + 1 to config.train.steps; gives the last step done.

    Raises:
        UserError: a reward, loss or gradient that is not a finite number; the newest checkpoint is from before it.
        stop.Stopped: a signal asked for it, or train.stop_at; a checkpoint of the last step is written.
    """
    stream = PromptStream(prompts, config.seed)
    total, c = config.train.steps, config.ppo

    if start == 0 and config.eval.every:
        observer.row(0, evaluate(actors, eval_prompts, config, weight=1.0))

    for step in range(start + 1, total + 1):
        timer = Timer()
        weight = feedback_weight(step, total, config.feedback.omega) if actors.reward.feedback else 1.0
        policy_lr = learning_rate(step - 1, total, c.lr, c.warmup_steps, c.lr_schedule)
        mine, first = shard(stream.batch(step - 1, c.prompts_per_step))

        with timer("rollout"):
            batch = rollout(actors, mine, first, c.group_size, config.rollout, config.seed, TRAIN, step)
        with timer("annotate"):
            annotated = annotate(actors, batch, weight, config.rollout.temperature, config.engine.micro_groups)
            require_finite(annotated, step)
        trainable = Trainable(annotated, advantages(annotated, config))

        reward_step = RewardStep(actors, annotated, config.feedback, weight) if actors.reward.feedback else None
        with timer("policy_step"), not_finite_is_an_error(step, run_dir):
            metrics = policy_step(
                actors, trainable, c, config.rollout.temperature, config.engine.micro_groups, policy_lr,
                on_fresh_states=reward_step.consume if reward_step else None,
            )  # fmt: skip
        if reward_step:
            with timer("reward_step"), not_finite_is_an_error(step, run_dir):
                metrics.update(reward_step.update(config.feedback.lr))
            timer.shift("policy_step", "reward_step", reward_step.seconds)

        metrics.update(rollout_metrics(annotated))
        values = metrics.means() | {"learning_rate": policy_lr}
        if reward_step:
            values["feedback/omega"] = weight
        if config.eval.every and (step % config.eval.every == 0 or step == total):
            with timer("eval"):
                values |= evaluate(actors, eval_prompts, config, weight)

        stopping = stop.requested(run_dir) or step == config.train.stop_at
        due = config.checkpoint.every and step % config.checkpoint.every == 0
        # The row first: a run that dies in between repeats the step on resuming, and its row with it.
        observer.row(step, values, timer, annotated)
        if due or stopping or step == total:
            checkpoint.save(run_dir, step, actors, {"tokens": observer.tokens}, config.checkpoint.keep)
        if stopping and step < total:
            raise stop.Stopped(step)
    return total


def evaluate(actors: Actors, prompts: list[Prompt], config: Config, weight: float) -> dict[str, float]:
    """One response to each fixed prompt, always with the same random draws, scored by everything that scores."""
    mine, first = shard(prompts)
    batch = rollout(actors, mine, first, 1, config.rollout, config.seed, EVAL, 0)
    groups = config.engine.micro_groups * config.ppo.group_size
    return evaluation_metrics(annotate(actors, batch, weight, config.rollout.temperature, groups)).means()


def advantages(annotated: Annotated, config: Config) -> Tensor:
    """Advantages [n, K] by the configured estimator, scaled by the global batch's std if asked."""
    values = estimators.ESTIMATORS[config.ppo.algorithm](annotated.rewards)
    if config.ppo.normalise != "none":
        moments = comm.sum_over_ranks(estimators.moments(values))
        values = estimators.scale_by_std(values, moments, config.ppo.std_floor)
    return values


def shard(prompts: list[Prompt]) -> tuple[list[Prompt], int]:
    """This rank's equal part of the prompts, and the number of its first one."""
    size = len(prompts) // comm.world_size()
    first = comm.rank() * size
    return prompts[first : first + size], first


@contextmanager
def not_finite_is_an_error(step: int, run_dir: Path) -> Iterator[None]:
    """Turn a gradient or loss that is not finite into a UserError that says how to go on."""
    try:
        yield
    except FloatingPointError as error:
        raise UserError(
            f"step {step}: {error}; the step is not saved. Lower ppo.lr or feedback.lr, or raise ppo.beta, and go on with "
            f"resume={run_dir}"
        ) from error


def require_finite(annotated: Annotated, step: int) -> None:
    """Raise UserError on every rank if any rank holds a reward or a log-probability that is not a finite number."""
    for name, values in (("reward", annotated.rewards), ("log-probability", annotated.old_logp)):
        if comm.max_over_ranks(float(not values.isfinite().all())):
            raise UserError(
                f"step {step}: a {name} is not a finite number (NaN or infinite); nothing was updated. Check the model with "
                "`r2m evaluate`, or try engine.dtype=fp32"
            )
