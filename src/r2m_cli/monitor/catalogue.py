"""The catalogue of every number a training run logs: name, unit, reduction, meaning.

TRL's names where TRL has them. The reduction says how the values that the micro-batches and ranks hold
become the one number of the step:

- ``mean``: (sum, count) pairs are added up and divided once, so that the result does not depend on how the
  step was cut into micro-batches or spread over ranks;
- ``sum``: added up;
- ``max``: the largest (times, memory: the slowest or fullest rank is the one that counts);
- ``last``: already the same on every rank; the step's last value is taken.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "sum", "max", "last"]


@dataclass(frozen=True)
class Metric:
    """One logged number. `unit` is "" for scores and other pure numbers without a natural unit."""

    name: str
    unit: str
    reduction: Reduction
    meaning: str


_ROWS: tuple[tuple[str, str, Reduction, str], ...] = (
    # what the policy earns
    ("reward", "score", "mean", "the live reward model's score of the step's rollouts, no KL penalty"),
    ("reward_std", "score", "mean", "std of the live reward within a group, mean over the groups"),
    ("reward_frozen", "score", "mean", "the same responses scored by the initial, frozen reward model"),
    ("reward_function", "score", "mean", "the part of both that reward.function gives, times reward.function_weight"),
    ("frac_reward_zero_std", "share", "mean", "groups whose rewards are all equal: they teach nothing"),
    ("frac_reward_missing", "share", "mean", "rewards that are not a finite number: masked, advantage 0"),
    ("gold", "gold", "mean", "true reward of the step's rollouts (worlds only)"),
    # how far it went
    ("kl", "nats", "mean", "KL to the reference: k1 (log pi_old - log pi_ref) on the samples, summed over a "
     "sequence; unbiased, may be negative"),
    ("beta", "", "last", "weight of the KL in this step (ppo.kl_target moves it)"),
    ("entropy", "nats", "mean", "entropy of the tempered next-token distribution, per response token"),
    ("clip_ratio/region_mean", "share", "mean", "ratios that clipping took out of the gradient"),
    ("ratio_mean", "", "mean", "pi_theta / pi_old, per sequence or token (ppo.ratio); 1 at a step's start"),
    ("completions/mean_length", "tokens", "mean", "response length, EOS included"),
    ("completions/clipped_ratio", "share", "mean", "responses that hit max_new_tokens without EOS"),
    # the policy step
    ("loss", "", "mean", "whole policy loss: clipped surrogate plus beta times policy/kl_loss, minus the entropy bonus"),
    ("policy/kl_loss", "nats", "mean", "KL term of the policy loss, before beta (ppo.kl_estimator); 0 with ppo.kl_in=reward"),
    ("grad_norm", "", "mean", "norm of the policy's gradient before clipping, mean over the step's updates"),
    ("learning_rate", "", "last", "policy's learning rate of this step"),
    ("num_tokens", "tokens", "sum", "prompt and response tokens since the run began; prompts count K times"),
    ("reward_model/cut_ratio", "share", "mean", "conversations that lose their beginning: they are longer than the reward model "
     "reads (reward.max_tokens, its positions, or its tokenizer's model_max_length)"),
    # the reward step
    ("reward_model/loss", "", "mean", "GREBT: (1 - alpha) bt + alpha gre, mean over groups"),
    ("reward_model/bt", "nats", "mean", "Bradley-Terry part, -log sigmoid(winner - loser)"),
    ("reward_model/gre", "nats", "mean", "group reward entropy part; at most log K"),
    ("reward_model/accuracy", "share", "mean", "pairs within the rollouts' groups that the live reward model "
     "orders as gold does (worlds only)"),
    ("reward_model/accuracy_frozen", "share", "mean", "the same for the initial, frozen reward model"),
    ("reward_model/margin", "score", "mean", "winner's reward minus loser's, before the update"),
    ("reward_model/grad_norm", "", "mean", "norm of the adapter's and head's gradient before clipping"),
    ("reward_model/agreement", "share", "mean", "groups whose trained pair, best and worst response, "
     "the frozen reward model orders the same way"),
    ("reward_model/judge_agreement", "share", "mean", "judged pairs, ties left out, that the judge orders as the live "
     "reward model does (feedback.judge)"),
    ("reward_model/labels", "pairs", "last", "pairs that the judge has labelled since the run began"),
    ("reward_model/replay_loss", "nats", "mean", "Bradley-Terry loss of the replayed labelled pairs (feedback.replay_pairs)"),
    ("reward_model/replay_accuracy", "share", "mean", "replayed pairs that the live reward model orders right, before it "
     "learns from them"),
    # the critic (ppo=ppo)
    ("critic/loss", "", "mean", "clipped squared error of the values, half, mean per response"),
    ("critic/clip_ratio", "share", "mean", "values that clipping took out of the gradient"),
    ("critic/grad_norm", "", "mean", "norm of the critic's gradient before clipping, mean over the step's updates"),
    ("critic/value", "score", "mean", "the critic's values before the update, per response token"),
    ("critic/return", "score", "mean", "the returns that it learns, per response token"),
    # the feedback (the policy's hidden states)
    ("feedback/weight", "", "last", "w(t) of this step: weight of the original reward token embedding"),
    ("feedback/refresh_cosine", "", "mean", "a group's rewards with fresh against old states (centred)"),
    ("feedback/attention_entropy", "nats", "mean", "entropy of the adapter's attention over the tokens"),
    ("feedback/adapter_scale", "", "mean", "rms of the adapter's output A over the rms of H_last"),
    # a fixed set of prompts, so that steps can be compared
    ("eval/gold", "gold", "mean", "true reward on the fixed evaluation prompts (worlds only)"),
    ("eval/reward", "score", "mean", "live reward model on the fixed evaluation prompts"),
    ("eval/reward_frozen", "score", "mean", "initial, frozen reward model on the same: the proxy"),
    ("eval/kl", "nats", "mean", "KL to the reference on the fixed evaluation prompts, estimated as kl"),
    ("eval/length", "tokens", "mean", "response length on the fixed evaluation prompts, EOS included"),
    ("eval/finished", "share", "mean", "evaluation responses that end with EOS"),
    ("eval/repetition", "share", "mean", "words of an evaluation response that it said before"),
    ("eval/pair_accuracy", "share", "mean", "held-out labelled pairs that the live reward model orders right, with the states "
     "of the policy as it is and w at Omega; before and at the end of training; with several passes of warm-up the pairs that chose the pass"),
    ("eval/pair_accuracy_frozen", "share", "mean", "the same for the initial, frozen reward model"),
    # where the time and the memory go
    ("step_time", "s", "max", "wall time of the whole step"),
    ("time/rollout", "s", "max", "sampling the responses"),
    ("time/annotate", "s", "max", "old and reference log-probabilities, hidden states, rewards"),
    ("time/baseline", "s", "max", "ReMax's greedy responses and their rewards"),
    ("time/judge", "s", "max", "waiting for the judge's labels"),
    ("time/critic_step", "s", "max", "the k epochs of the critic's update"),
    ("time/policy_step", "s", "max", "the k epochs of the policy update"),
    ("time/reward_step", "s", "max", "forward, backward and update of adapter and head"),
    ("time/eval", "s", "max", "evaluation on the fixed prompts"),
    ("perf/tokens_per_second", "tokens/s", "sum", "prompt and response tokens per second of step time"),
    ("perf/peak_memory_bytes", "bytes", "max", "peak so far: the accelerator's, or on CPU the process's"),
)  # fmt: skip

CATALOGUE: dict[str, Metric] = {row[0]: Metric(*row) for row in _ROWS}
"""Name -> metric, in display order."""

RENAMED = {"feedback/omega": "feedback/weight"}
"""Metrics of earlier runs -> what they are called now."""

SHOWN = {"reward": "reward", "reward_frozen": "frozen", "gold": "gold", "kl": "KL"}
"""What a terminal shows of a step: metric -> its short word, in display order."""


def check_names(names: Iterable[str]) -> None:
    """Hold `names` to the catalogue.

    Raises:
        KeyError: names the metrics that the catalogue does not know.
    """
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise KeyError(f"not in the metric catalogue (r2m_cli/monitor/catalogue.py): {', '.join(unknown)}")
