"""The catalogue of every number a training run logs: name, unit, reduction, meaning.

Names are TRL's if TRL has the metric. The reduction says how the values of micro-batches and ranks become one
number per step:

- ``mean``: sums and counts are added up and divided once, so that the result does not depend on how the
  step was split into micro-batches or over ranks;
- ``sum``: the sum;
- ``max``: the largest value (times and memory: the slowest or fullest rank counts);
- ``last``: already the same on every rank; the step's last value is used.
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
    # rewards of the policy
    ("reward", "score", "mean", "live reward model's score of the step's rollouts, without the KL penalty"),
    ("reward_std", "score", "mean", "standard deviation of the live reward within a group, mean over the groups"),
    ("reward_frozen", "score", "mean", "the same responses scored by the initial, frozen reward model"),
    ("reward_function", "score", "mean", "reward.function times reward.function_weight; included in both rewards above"),
    ("frac_reward_zero_std", "share", "mean", "groups whose rewards are all equal: nothing is learned from them"),
    ("frac_reward_missing", "share", "mean", "rewards that are not a finite number: masked, advantage 0"),
    ("gold", "gold", "mean", "true reward of the step's rollouts (worlds only)"),
    # how far the policy has moved
    ("kl", "nats", "mean", "KL to the reference: k1 (log pi_old - log pi_ref) on the samples, summed over a "
     "sequence; unbiased, may be negative"),
    ("beta", "", "last", "weight of the KL in this step (adapted if ppo.kl_target is set)"),
    ("entropy", "nats", "mean", "entropy of the tempered next-token distribution, per response token"),
    ("clip_ratio/region_mean", "share", "mean", "importance ratios that clipping removed from the gradient"),
    ("ratio_mean", "", "mean", "pi_theta / pi_old, per sequence or token (ppo.ratio); 1 at the start of a step"),
    ("completions/mean_length", "tokens", "mean", "response length, EOS included"),
    ("completions/clipped_ratio", "share", "mean", "responses that hit max_new_tokens without EOS"),
    ("rollout/logp_gap", "nats", "mean", "distance of vLLM's log-probabilities from the trainer's, per response token "
     "(rollout.engine=vllm)"),
    ("rollout/ratio_max", "", "max", "largest importance weight pi_old / pi_vllm, of a response or token (ppo.ratio), before "
     "rollout.is_cap (rollout.engine=vllm)"),
    # the policy step
    ("loss", "", "mean", "policy loss: clipped surrogate plus beta times policy/kl_loss, minus the entropy bonus"),
    ("policy/kl_loss", "nats", "mean", "KL term of the policy loss, before beta (ppo.kl_estimator); 0 with ppo.kl_in=reward"),
    ("grad_norm", "", "mean", "norm of the policy's gradient before clipping, mean over the step's updates"),
    ("learning_rate", "", "last", "policy's learning rate of this step"),
    ("num_tokens", "tokens", "sum", "prompt and response tokens since the run began; prompts count K times"),
    # the reward step
    ("reward_model/cut_ratio", "share", "mean", "conversations that lose their beginning because they exceed the reward model's limit "
     "(reward.max_tokens, its positions, or its tokenizer's model_max_length)"),
    ("reward_model/loss", "", "mean", "GREBT: (1 - alpha) bt + alpha gre, mean over groups"),
    ("reward_model/bt", "nats", "mean", "Bradley-Terry part, -log sigmoid(winner - loser)"),
    ("reward_model/gre", "nats", "mean", "group reward entropy part; at most log K"),
    ("reward_model/accuracy", "share", "mean", "pairs within the rollouts' groups that the live reward model "
     "orders as gold does (worlds only)"),
    ("reward_model/accuracy_frozen", "share", "mean", "the same for the initial, frozen reward model"),
    ("reward_model/margin", "score", "mean", "winner's reward minus loser's, before the update"),
    ("reward_model/grad_norm", "", "mean", "norm of the adapter's and head's gradient before clipping"),
    ("reward_model/agreement", "share", "mean", "groups whose pair used for training (best and worst response) is ordered "
     "the same way by the frozen reward model"),
    ("reward_model/judge_agreement", "share", "mean", "judged pairs, without ties, that the judge and the live reward model "
     "order the same way (feedback.judge)"),
    ("reward_model/labels", "pairs", "last", "pairs labelled by the judge since the run began"),
    ("reward_model/replay_loss", "nats", "mean", "Bradley-Terry loss of the replayed labelled pairs (feedback.replay_pairs)"),
    ("reward_model/replay_accuracy", "share", "mean", "replayed pairs that the live reward model orders correctly, before "
     "training on them"),
    # the critic (ppo=ppo)
    ("critic/loss", "", "mean", "half the clipped squared error of the values, mean per response"),
    ("critic/clip_ratio", "share", "mean", "values that clipping removed from the gradient"),
    ("critic/grad_norm", "", "mean", "norm of the critic's gradient before clipping, mean over the step's updates"),
    ("critic/value", "score", "mean", "the critic's values before the update, per response token"),
    ("critic/return", "score", "mean", "the returns that the critic is trained on, per response token"),
    # the feedback (the policy's hidden states)
    ("feedback/weight", "", "last", "w(t) of this step: weight of the original reward token embedding"),
    ("feedback/refresh_cosine", "", "mean", "cosine between a group's centred rewards with fresh states and with old states"),
    ("feedback/attention_entropy", "nats", "mean", "entropy of the adapter's attention over the tokens"),
    ("feedback/adapter_scale", "", "mean", "rms of the adapter's output A over the rms of H_last"),
    # a fixed set of prompts, so that steps can be compared
    ("eval/gold", "gold", "mean", "true reward on the fixed evaluation prompts (worlds only)"),
    ("eval/reward", "score", "mean", "live reward model on the fixed evaluation prompts"),
    ("eval/reward_frozen", "score", "mean", "initial, frozen reward model on the same prompts: the proxy"),
    ("eval/kl", "nats", "mean", "KL to the reference on the fixed evaluation prompts, estimated as kl"),
    ("eval/length", "tokens", "mean", "response length on the fixed evaluation prompts, EOS included"),
    ("eval/finished", "share", "mean", "evaluation responses that end with EOS"),
    ("eval/repetition", "share", "mean", "words of an evaluation response that occurred earlier in it"),
    ("eval/pair_accuracy", "share", "mean", "held-out labelled pairs that the live reward model orders correctly, with the states "
     "of the current policy and w = Omega; before and after training; with several warm-up passes, the same pairs chose the pass"),
    ("eval/pair_accuracy_frozen", "share", "mean", "the same for the initial, frozen reward model"),
    # time and memory
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
"""Metric names of earlier runs -> their current names."""

SHOWN = {"reward": "reward", "reward_frozen": "frozen", "gold": "gold", "kl": "KL"}
"""The metrics of a step that are shown on the terminal: metric -> short name, in display order."""


def check_names(names: Iterable[str]) -> None:
    """Check that all `names` are in the catalogue.

    Raises:
        KeyError: some are not; the message lists them.
    """
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        raise KeyError(f"not in the metric catalogue (r2m_cli/monitor/catalogue.py): {', '.join(unknown)}")
