"""Every configuration key, typed, with its unit and meaning in the comment above it.

`conf/` holds the values that an experiment is made of, this file the types and the defaults, which are those of the
embedded gold world. `check.py` checks what types cannot say.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainConfig:
    # RL steps of the whole run; also T of the feedback schedule w(t)
    steps: int = 100
    # stop after this step, checkpointed as if interrupted; resume= then goes on to the end, or to a later one; null: run to the end
    stop_at: int | None = None
    # with resume=: go on though the content of the data or of a model is another than when the run began; else that is refused
    allow_changed: bool = False


@dataclass
class FitConfig:
    # passes over the training rows
    epochs: int = 1
    # rows per optimiser step, over all ranks
    batch_size: int = 32
    # peak AdamW learning rate; decays linearly to 0
    lr: float = 1e-3
    # what is trained: full | lora (adapters merged at the end) | head (the scoring head only)
    parameters: str = "full"
    # rank of the LoRA adapters when parameters=lora
    lora_rank: int = 8
    # training rows to use at most; null: all
    rows: int | None = None


@dataclass
class ModelConfig:
    # a Hugging Face folder, a hub name, or `smollm2` (the packaged weights); null: fit one first and cache it
    path: str | None = None
    # where fitting starts when path is null: the same kinds of value; null: a fresh Llama of the size below
    base: str | None = None
    # how conversations are written for the model: a file with a chat template (Jinja) | hh ("\n\nHuman: ...") | plain (the
    # texts alone) | pair (reward models that read question and answer as two texts) | beaver (PKU-Alignment's "BEGINNING OF
    # CONVERSATION: USER: ..."); null: its tokenizer's own template, or, without one, the text of a single message and hh for
    # longer conversations
    template: str | None = None
    # a fresh model's width x layers x attention heads
    size: str = "64x2x4"
    # how a missing model is fitted (r2m sft, r2m reward)
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass
class RewardFitConfig(FitConfig):
    # weight of (chosen + rejected reward)^2, which holds the scores around 0 (Eisenstein et al. 2023)
    centring: float = 0.0
    # varies initial head, order and bootstrap of the rows; members of an ensemble get seed, seed + 1, ...
    seed: int = 0


@dataclass
class PolicyConfig(ModelConfig):
    # rank of LoRA adapters that RL trains instead of all parameters, with the base as the reference; 0: no LoRA
    lora_rank: int = 0


@dataclass
class RewardConfig(ModelConfig):
    # tokens of a conversation that the reward model reads at most; older ones are cut off on the left, and that is counted
    max_tokens: int = 1024
    # end token of a conversation: true (there is always one) | false (only what template and tokenizer write); null: where
    # nothing else closes the reply
    end_token: bool | None = None
    # reward models in an ensemble; those without a path are fitted with seeds of their own; 1: no ensemble
    members: int = 1
    # folders or hub names of the further members (the first is reward.path)
    paths: list[str] = field(default_factory=list)
    # how an ensemble gives one reward: mean | worst | uncertainty (mean - reward.uncertainty * variance)
    combine: str = "mean"
    # weight of the members' variance when combine=uncertainty
    uncertainty: float = 1.0
    # a Python function that scores responses, module:name, of a module in the working directory or an installed one; it gets
    # the prompts (lists of messages) and the responses (texts) and returns a float for each; null: none
    function: str | None = None
    # times the function's value is added to the reward model's score, frozen and live alike; null: the function alone, there
    # is no reward model
    function_weight: float | None = 1.0
    # a fresh model's passes over the demonstrations as a language model, by policy.fit, before it sees a label: with
    # reward.fit.parameters=head a generic, frozen backbone; 0: none
    pretrain_epochs: int = 0
    # how a missing model is fitted (r2m reward)
    fit: RewardFitConfig = field(default_factory=RewardFitConfig)


@dataclass
class FeedbackConfig:
    # what the reward model reads beside the text: r2m (the policy's states, learning at every step) | frozen (the same,
    # never trained) | noise (Gaussian, same mean and variance) | shuffled (another sequence's states) | head_only (nothing;
    # the scoring head alone learns) | none (nothing; the reward model stays frozen)
    kind: str = "r2m"
    # whose features the adapter attends to: policy (as it is now) | reference (as it was before RL; the policy cannot bend them) |
    # reward (the reward model's own, which tell it nothing that it could not know: a control)
    source: str = "policy"
    # which per-token features: states (last layer, the paper's) | tokens (input embeddings: a control) | both
    features: str = "states"
    # d, inner width of the cross-attention, over all heads
    dim: int = 64
    # heads of the cross-attention (the paper: 1)
    heads: int = 1
    # what asks in the cross-attention: reward (the reward token embedding H_last, the paper's) | learned (a learnt query)
    query: str = "reward"
    # Omega, floor of the weight w(t) of the original reward token embedding (eq. 4), 0 to 1
    omega: float = 0.6
    # course of w(t): cosine (from 1 down to omega, eq. 4) | constant (omega from the first step on)
    schedule: str = "cosine"
    # alpha, weight of the group-entropy term in the reward model's loss (eq. 7), 0 to 1
    alpha: float = 0.3
    # AdamW learning rate of adapter and scoring head, constant
    lr: float = 1e-3
    # groups whose own ranking is learnt from: all (the paper's) | agreed (the frozen reward model orders the pair the same
    # way) | none (labels alone: feedback.replay_pairs, feedback.judge)
    self_labels: str = "all"
    # rewards that pick winner and loser of a group: recomputed (fresh states) | annotated (those of the rollout)
    pair: str = "recomputed"
    # labelled pairs that adapter and head learn from before RL, with the starting policy's states; 0: none
    warmup_pairs: int = 0
    # passes over them; the last is kept, or an earlier one whose loss on held-out pairs (eval.reward_check_pairs) was clearly lower
    warmup_epochs: int = 1
    # AdamW learning rate of the warm-up, decaying linearly to 0; null: feedback.lr, constant
    warmup_lr: float | None = None
    # labelled pairs, with fresh states, added to every update of adapter and head; 0: none
    replay_pairs: int = 0
    # who says which of a group's best and worst response is better: none (the reward model itself) | gold | labeller (the
    # world's biased, noisy one, whose labels the reward model was fitted on) | openai
    judge: str = "none"
    # pairs that the judge labels per step, over all ranks, one of a group at most; 0.5 is one every other step
    judge_pairs: float = 4
    # pairs judged so far, with fresh states, added to every update of adapter and head; 0: none
    judge_replay: int = 0


@dataclass
class CriticConfig:
    # peak AdamW learning rate of the critic, on the policy's schedule
    lr: float = 1e-3
    # a value may move this far from the old one in a step, in units of reward; 0: no clipping
    clip: float = 0.2
    # lambda of GAE: 1 trusts the returns, 0 the critic
    gae_lambda: float = 0.95


@dataclass
class PpoConfig:
    # advantage estimator: rloo | grpo | remax (greedy baseline) | reinforce_pp (no baseline, whitened) | ppo (critic, GAE)
    algorithm: str = "rloo"
    # K, responses per prompt
    group_size: int = 4
    # n, prompts per step over all ranks
    prompts_per_step: int = 16
    # k, passes over a step's batch; with 1 (and one mini-batch) the fresh states are those from before the update
    epochs: int = 2
    # optimiser steps per pass; each takes an equal part of every rank's prompts
    mini_batches: int = 1
    # importance ratio per: sequence (the paper's) | sequence_mean (its length-normalised form, GSPO's) | token
    ratio: str = "sequence"
    # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_low: float = 0.2
    clip_high: float = 0.2
    # where an advantage is negative the loss is bounded at this ratio, above 1 + clip_high (dual clip; 3 is usual); null: no bound
    dual_clip: float | None = None
    # weight of KL(policy || reference), see kl_in; with ratio=sequence a sum over the response, in nats, else a mean over
    # its tokens; 0: no reference, and no KL is measured either
    beta: float = 0.05
    # nats per response that an adaptive weight, never below beta, holds the KL to (Ziegler et al. 2019); null: beta is constant
    kl_target: float | None = None
    # where that KL stands: loss | reward (subtracted before advantages are made, without a gradient)
    kl_in: str = "loss"
    # its estimator: k2 | k3, and k1 in the reward only (in a loss k1 has no gradient in expectation)
    kl_estimator: str = "k3"
    # weight of the policy's entropy, a mean over the response tokens in nats, that the loss rewards
    entropy_bonus: float = 0.0
    # subtracted from the reward of a response that does not end by itself, in units of reward
    eos_penalty: float = 0.0
    # rewards are clipped to [-reward_clip, reward_clip]; null: no clipping
    reward_clip: float | None = None
    # whiten the rewards by mean and standard deviation of the global batch
    whiten_rewards: bool = False
    # advantages over the global batch: none | scale (divided by their standard deviation) | whiten (centred too)
    normalise: str = "scale"
    # peak AdamW learning rate of the policy
    lr: float = 3e-4
    # after warm-up: constant | linear | cosine
    lr_schedule: str = "constant"
    # RL steps of linear warm-up
    warmup_steps: int = 0
    # AdamW weight decay of the policy
    weight_decay: float = 0.0
    # gradients are scaled down to this L2 norm; 0: no clipping
    max_grad_norm: float = 1.0
    # the critic of algorithm=ppo
    critic: CriticConfig = field(default_factory=CriticConfig)


@dataclass
class GuardConfig:
    # nats per response: a step whose rollouts' KL to the reference is above ends the run, as if train.steps were reached;
    # null: never
    kl: float | None = None


@dataclass
class RolloutConfig:
    # sampling temperature; log-probabilities are those of the tempered policy
    temperature: float = 1.0
    # response tokens at most
    max_new_tokens: int = 16
    # prompts longer than this (policy tokens) are left out, and counted
    max_prompt_tokens: int = 512
    # responses sampled at once on a rank, whole groups and at least one; bounds the memory of the cache; null: all
    batch_size: int | None = None
    # tokens per forward and backward on a rank, whole groups, a prompt counted once; bounds the memory of training
    tokens_per_batch: int = 2048


@dataclass
class DataConfig:
    # gold: the embedded world | english: warm words about things, scored by a lexicon | file: pairs or prompts from data.path
    kind: str = "gold"
    # .jsonl, .jsonl.gz, .json, .parquet, a folder of them or of datasets, or a hub data set's name
    path: str | None = None
    # split of a hub data set or a folder; a single file is one split
    split: str = "train"
    # subset (configuration) of a hub data set, or of a folder whose README names several; null: the default one
    subset: str | None = None
    # rows to read at most; null: all
    rows: int | None = None
    # seed of the world: its labels, and the SFT policy and reward model fitted on it
    seed: int = 0
    # training prompts drawn from the world, which has 336 different ones (english: 174); the evaluation prompts are drawn from the same
    prompts: int = 2000
    # demonstrations for SFT drawn from the world
    demonstrations: int = 4000
    # labelled pairs sampled from the SFT policy for the world's reward model
    pairs: int = 3000
    # share of the rows (file) held out for evaluation
    holdout: float = 0.1
    # the error of a world's labellers: points that they, not gold, give for every polite word (english: for every word of
    # eight or more letters); null: the world's own
    label_bias: float | None = None
    # their noise: Bradley-Terry temperature in points of gold, near 0 they always choose the better one; null: the world's own
    label_temperature: float | None = None
    # probability, 0 to 0.5, that a label is flipped afterwards, whatever the responses are; null: the world's own
    label_noise: float | None = None


@dataclass
class EvalConfig:
    # score the fixed evaluation prompts every so many steps; 0: never
    every: int = 5
    # fixed evaluation prompts
    prompts: int = 128
    # labelled pairs for the reward model's held-out accuracy
    pairs: int = 512
    # held-out pairs that are scored before training starts and at its end, to show the reward model's accuracy and spread, and
    # that choose the pass which a warm-up of several keeps; 0: none
    reward_check_pairs: int = 64
    # r2m evaluate: who judges win rates: none | reward (reward.path) | gold | openai
    judge: str = "none"
    # r2m evaluate: the other side of the win rate: chosen (the data's replies) | a policy's folder or hub name
    against: str = "chosen"
    # r2m evaluate: responses per prompt for the best-of-n curve, by the initial and by the live reward model; 1: none
    best_of: int = 1
    # another reward model that scores the responses in r2m evaluate, and tells hacking ones in r2m analyze; one that
    # training never saw
    reward: str | None = None


@dataclass
class AnalysisConfig:
    # N, labelled pairs whose chosen and rejected replies figure 1 compares
    sequences: int = 100
    # M, pairs of sequences of figure 2
    pairs: int = 300


@dataclass
class JudgeConfig:
    # model that an OpenAI-compatible endpoint serves
    model: str = "gpt-4o-mini"
    # base URL of the endpoint; null: the OPENAI_BASE_URL of the environment, or api.openai.com (key: OPENAI_API_KEY)
    url: str | None = None
    # seconds until a request counts as failed
    timeout: float = 60.0
    # requests under way at once
    workers: int = 8


@dataclass
class EngineConfig:
    # single: one process of plain torch | zero: DeepSpeed ZeRO on engine.num_processes ranks
    kind: str = "single"
    # ZeRO stage 0 | 1 | 2 | 3
    stage: int = 2
    # ranks on this machine
    num_processes: int = 1
    # machines; with more than one, start the same command on each with its node_rank and the same rendezvous
    num_nodes: int = 1
    # this machine's number, 0 to num_nodes - 1
    node_rank: int = 0
    # HOST:PORT where the machines meet
    rendezvous: str | None = None
    # a DeepSpeed hostfile (NAME slots=N a line), which says all of the four; start the same command on every machine
    hostfile: str | None = None
    # auto (cuda where there is one) | cpu | cuda
    device: str = "auto"
    # fp32 | bf16
    dtype: str = "fp32"
    # responses to one prompt share its copy: sdpa | flex (a compiled kernel that skips what nobody sees; not yet run on a
    # GPU); or each reads a copy of its own, K times the tokens, to compare and to debug: padded
    attention: str = "sdpa"
    # trade time for memory in the policy's backward
    gradient_checkpointing: bool = False
    # keep the optimiser state in host memory (zero, stages 1 to 3)
    offload_optimizer: bool = False
    # any keys of DeepSpeed's own JSON, put over r2m's last, for the policy, the critic and sharded frozen models:
    # engine.deepspeed.zero_optimization.overlap_comm=true
    deepspeed: dict[str, Any] = field(default_factory=dict)
    # CPU threads per rank, also of engine=single; OMP_NUM_THREADS does not count
    threads: int = 1
    # seconds after which a silent collective counts as failed
    timeout: int = 1800


@dataclass
class CheckpointConfig:
    # checkpoint every so many steps; 0: only at the end or when stopped
    every: int = 0
    # newest checkpoints to keep
    keep: int = 1
    # write policy/ and reward_model/ as Hugging Face folders at the end
    export: bool = True


@dataclass
class LoggerConfig:
    # beside metrics.jsonl, which is always written: any of wandb, tensorboard
    kinds: list[str] = field(default_factory=list)
    # wandb project; a run there has the run folder's name
    project: str = "r2m"
    # write this step's samples every so many steps; 0: never
    samples_every: int = 10


@dataclass
class Config:
    # what is run; set by the word on the command line: train | sft | reward | evaluate | analyze
    task: str = "train"
    # seed of everything random in the run; 0 is as good as any
    seed: int = 0
    # a run folder to go on with from its newest checkpoint
    resume: str | None = None
    # a run folder whose policy/ and reward_model/ `r2m evaluate` takes; `r2m analyze` its policies and reward model
    run: str | None = None
    # run folders, or folders of runs, whose curves `r2m analyze` draws
    runs: list[str] = field(default_factory=list)
    # where `r2m sft` and `r2m reward` write; null: the cache that `r2m train` looks in
    output: str | None = None
    train: TrainConfig = field(default_factory=TrainConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    ppo: PpoConfig = field(default_factory=PpoConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    data: DataConfig = field(default_factory=DataConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    analysis: AnalysisConfig = field(default_factory=AnalysisConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)


@dataclass
class ReportConfig:
    # run folders, or folders of runs (a multirun); bare folders on the command line are added: r2m report RUN [RUN...]
    runs: list[str] = field(default_factory=list)
    # the page to write (.html, a .png beside it), or the picture (.png, .pdf, .svg, a page beside it); the table goes beside
    # both as .csv and .md
    out: str = "report.html"
