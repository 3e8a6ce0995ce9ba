"""Every configuration key, typed, with its unit and meaning in the comment above it.

`conf/` holds the values of experiments; this file holds the types and the defaults, which are those of the embedded gold
world. `check.py` checks what types cannot express.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainConfig:
    # RL steps of the whole run; also T of the feedback schedule w(t)
    steps: int = 100
    # stop after this step with a checkpoint, as if interrupted; resume= then continues to the end or to a later stop_at; null: run to the end
    stop_at: int | None = None
    # with resume=: continue even if the content of the data or of a model has changed since the run began; false: refuse
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
    # maximum number of training rows; null: all
    rows: int | None = None


@dataclass
class ModelConfig:
    # a Hugging Face folder, a hub name, or `smollm2` (the packaged weights); null: fit one first and cache it
    path: str | None = None
    # where fitting starts when path is null: the same kinds of value; null: a fresh Llama of the size below
    base: str | None = None
    # how conversations are formatted for the model: a file with a chat template (Jinja) | hh ("\n\nHuman: ...") | plain (only
    # the texts) | pair (reward models that take question and answer as two texts) | beaver (PKU-Alignment's "BEGINNING OF
    # CONVERSATION: USER: ..."); null: the tokenizer's own template; if it has none, plain for a single message and hh for
    # longer conversations
    template: str | None = None
    # a fresh model's width x layers x attention heads
    size: str = "64x2x4"
    # how a missing model is fitted (r2m sft, r2m reward)
    fit: FitConfig = field(default_factory=FitConfig)


@dataclass
class RewardFitConfig(FitConfig):
    # weight of (chosen + rejected reward)^2, which keeps the scores centred on 0 (Eisenstein et al. 2023)
    centring: float = 0.0
    # seed of the initial head and of the order and bootstrap of the rows; members of an ensemble get seed, seed + 1, ...
    seed: int = 0


@dataclass
class PolicyConfig(ModelConfig):
    # rank of the LoRA adapters that RL trains instead of all parameters; the base model is then the reference; 0: no LoRA
    lora_rank: int = 0


@dataclass
class RewardConfig(ModelConfig):
    # maximum tokens per conversation for the reward model; longer ones are truncated on the left, and counted
    max_tokens: int = 1024
    # end token of a conversation: true (always add one) | false (only what template and tokenizer write); null: add one
    # if nothing else ends the reply
    end_token: bool | None = None
    # reward models in an ensemble; those without a path are fitted, each with its own seed; 1: no ensemble
    members: int = 1
    # folders or hub names of the further members (the first is reward.path)
    paths: list[str] = field(default_factory=list)
    # how an ensemble combines its scores: mean | worst | uncertainty (mean - reward.uncertainty * variance)
    combine: str = "mean"
    # weight of the members' variance when combine=uncertainty
    uncertainty: float = 1.0
    # a Python function that scores responses, module:name, in the working directory or an installed package; it takes
    # prompts (lists of messages) and responses (strings) and returns a float for each response; null: none
    function: str | None = None
    # factor of the function's value, which is added to both the frozen and the live score of the reward model; null: use only
    # the function, without a reward model
    function_weight: float | None = 1.0
    # passes of language-model training over the demonstrations, with the settings of policy.fit, before a fresh model sees any
    # label; with reward.fit.parameters=head this makes a generic, frozen backbone; 0: none
    pretrain_epochs: int = 0
    # how a missing model is fitted (r2m reward)
    fit: RewardFitConfig = field(default_factory=RewardFitConfig)


@dataclass
class FeedbackConfig:
    # what the reward model gets in addition to the text: r2m (the policy's states; learns at every step) | frozen (the same, but
    # never trained) | noise (Gaussian, same mean and variance) | shuffled (another sequence's states) | head_only (nothing;
    # only the scoring head learns) | none (nothing; the reward model stays frozen)
    kind: str = "r2m"
    # the model whose features the adapter attends to: policy (the current one) | reference (the policy before RL, which training
    # cannot change) | reward (the reward model's own, which add no information: a control)
    source: str = "policy"
    # which per-token features: states (last layer, the paper's) | tokens (input embeddings: a control) | both
    features: str = "states"
    # d, inner width of the cross-attention, summed over its heads
    dim: int = 64
    # heads of the cross-attention (the paper: 1)
    heads: int = 1
    # query of the cross-attention: reward (the reward token embedding H_last, as in the paper) | learned (a learned vector)
    query: str = "reward"
    # Omega, floor of the weight w(t) of the original reward token embedding (eq. 4), 0 to 1
    omega: float = 0.6
    # schedule of w(t): cosine (from 1 down to omega, eq. 4) | constant (omega from the first step on)
    schedule: str = "cosine"
    # alpha, weight of the group-entropy term in the reward model's loss (eq. 7), 0 to 1
    alpha: float = 0.3
    # AdamW learning rate of adapter and scoring head, constant
    lr: float = 1e-3
    # groups whose ranking by the reward model itself is used as a label: all (as in the paper) | agreed (only where the frozen
    # reward model ranks the pair the same way) | none (only other labels: feedback.replay_pairs, feedback.judge)
    self_labels: str = "all"
    # rewards that choose the winner and loser of a group: recomputed (with fresh states) | annotated (from the rollout)
    pair: str = "recomputed"
    # labelled pairs for training adapter and head before RL, with the states of the initial policy; 0: none
    warmup_pairs: int = 0
    # passes over them; the last pass is kept, or an earlier one if its loss on held-out pairs (eval.reward_check_pairs) was clearly lower
    warmup_epochs: int = 1
    # AdamW learning rate of the warm-up, decaying linearly to 0; null: feedback.lr, constant
    warmup_lr: float | None = None
    # labelled pairs, with fresh states, added to every update of adapter and head; 0: none
    replay_pairs: int = 0
    # who decides which of a group's best and worst responses is better: none (the reward model itself) | gold | labeller (the
    # world's biased and noisy labeller, which also labelled the data that the reward model was fitted on) | openai
    judge: str = "none"
    # pairs that the judge labels per step, over all ranks, at most one per group; 0.5 means one every other step
    judge_pairs: float = 4
    # pairs judged so far, with fresh states, added to every update of adapter and head; 0: none
    judge_replay: int = 0


@dataclass
class CriticConfig:
    # peak AdamW learning rate of the critic, on the policy's schedule
    lr: float = 1e-3
    # largest change of a value in a step, in units of reward; 0: no clipping
    clip: float = 0.2
    # lambda of GAE: 1 uses only the returns, 0 relies on the critic
    gae_lambda: float = 0.95


@dataclass
class PpoConfig:
    # advantage estimator: rloo | grpo | remax (greedy baseline) | reinforce_pp (no baseline, whitened) | ppo (critic, GAE)
    algorithm: str = "rloo"
    # K, responses per prompt
    group_size: int = 4
    # n, prompts per step over all ranks
    prompts_per_step: int = 16
    # k, passes over a step's batch; with 1 (and one mini-batch) the states for the reward update are those from before the policy update
    epochs: int = 2
    # optimiser steps per pass; each uses an equal part of every rank's prompts
    mini_batches: int = 1
    # importance ratio per: sequence (as in the paper) | sequence_mean (normalised by length, as in GSPO) | token
    ratio: str = "sequence"
    # the ratio is clipped to [1 - clip_low, 1 + clip_high]
    clip_low: float = 0.2
    clip_high: float = 0.2
    # dual clip: for negative advantages the loss is bounded at this ratio; must be above 1 + clip_high, 3 is usual; null: no bound
    dual_clip: float | None = None
    # weight of KL(policy || reference), see kl_in; with ratio=sequence a sum over the response, in nats, otherwise a mean
    # over its tokens; 0: no reference model, and no KL is measured
    beta: float = 0.05
    # target KL in nats per response, reached by adapting its weight, never below beta (Ziegler et al. 2019); null: beta is constant
    kl_target: float | None = None
    # where the KL is applied: loss | reward (subtracted before the advantages are computed, without a gradient)
    kl_in: str = "loss"
    # estimator of this KL: k2 | k3 | k1 (only with kl_in=reward: in the loss its gradient is zero in expectation)
    kl_estimator: str = "k3"
    # weight of the entropy bonus in the loss: the policy's entropy in nats, averaged over the response tokens
    entropy_bonus: float = 0.0
    # penalty on the reward of a response that has no end token, in units of reward
    eos_penalty: float = 0.0
    # rewards are clipped to [-reward_clip, reward_clip]; null: no clipping
    reward_clip: float | None = None
    # whiten the rewards by mean and standard deviation of the global batch
    whiten_rewards: bool = False
    # how advantages are normalised over the global batch: none | scale (divided by their standard deviation) | whiten (also centred)
    normalise: str = "scale"
    # peak AdamW learning rate of the policy
    lr: float = 3e-4
    # after warm-up: constant | linear | cosine
    lr_schedule: str = "constant"
    # RL steps of linear warm-up
    warmup_steps: int = 0
    # AdamW weight decay of the policy
    weight_decay: float = 0.0
    # gradients are clipped to this L2 norm; 0: no clipping
    max_grad_norm: float = 1.0
    # the critic of algorithm=ppo
    critic: CriticConfig = field(default_factory=CriticConfig)


@dataclass
class GuardConfig:
    # limit in nats per response: a step whose rollouts have a higher KL to the reference ends the run, as if train.steps were
    # reached; null: no limit
    kl: float | None = None


@dataclass
class RolloutConfig:
    # sampling temperature; log-probabilities are those of the tempered policy
    temperature: float = 1.0
    # maximum tokens per response
    max_new_tokens: int = 16
    # prompts longer than this (policy tokens) are left out, and counted
    max_prompt_tokens: int = 512
    # responses sampled at once on a rank, in complete groups (at least one group); limits the memory of the KV cache; null: all
    batch_size: int | None = None
    # tokens per forward and backward pass on a rank, in complete groups, each prompt counted once; limits the memory of training
    tokens_per_batch: int = 2048
    # what writes the responses: native (r2m's own loop) | vllm (an engine in every rank, with a whole copy of the policy that
    # gets its weights before each rollout; needs r2m[vllm]; experimental: it has not yet run on a GPU)
    engine: str = "native"
    # with engine=vllm, the most that an importance weight pi_old / pi_vllm is: a response (with ppo.ratio=token a token) counts
    # by its weight, which corrects for vLLM's slightly different probabilities; null: no correction
    is_cap: float | None = 2.0
    # any of vLLM's engine arguments, put over r2m's last: rollout.vllm.gpu_memory_utilization=0.5 (the share of a GPU's memory
    # that vLLM takes while it samples; 0.3 unless set)
    vllm: dict[str, Any] = field(default_factory=dict)


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
    # maximum number of rows to read; null: all
    rows: int | None = None
    # seed of the world: of its labels, and of the SFT policy and reward model fitted on it
    seed: int = 0
    # training prompts drawn from the world, which has 336 distinct ones (english: 174); evaluation prompts are drawn from the same set
    prompts: int = 2000
    # demonstrations for SFT drawn from the world
    demonstrations: int = 4000
    # labelled pairs sampled from the SFT policy for the world's reward model
    pairs: int = 3000
    # share of the rows (file) held out for evaluation
    holdout: float = 0.1
    # bias of a world's labellers: extra points, not in gold, for every polite word (english: for every word of eight or more
    # letters); null: the world's own
    label_bias: float | None = None
    # noise of the labellers: Bradley-Terry temperature in points of gold; near 0 they always choose the better one; null: the world's own
    label_temperature: float | None = None
    # probability, 0 to 0.5, that a label is flipped afterwards, independently of the responses; null: the world's own
    label_noise: float | None = None


@dataclass
class EvalConfig:
    # steps between evaluations on the fixed prompts; 0: never
    every: int = 5
    # fixed evaluation prompts
    prompts: int = 128
    # labelled pairs for the reward model's held-out accuracy
    pairs: int = 512
    # held-out pairs scored before and after training to show the reward model's accuracy and spread; they also choose which pass
    # of the warm-up is kept (feedback.warmup_epochs); 0: none
    reward_check_pairs: int = 64
    # r2m evaluate: judge of the win rates: none | reward (reward.path) | gold | openai
    judge: str = "none"
    # r2m evaluate: the other side of the win rate: chosen (the data's replies) | a policy's folder or hub name
    against: str = "chosen"
    # r2m evaluate: responses per prompt for the best-of-n curve, by the initial and by the live reward model; 1: none
    best_of: int = 1
    # another reward model, never used in training: it also scores the responses in r2m evaluate, and decides which count as
    # reward hacking in r2m analyze
    reward: str | None = None


@dataclass
class AnalysisConfig:
    # N, labelled pairs for figure 1, which compares their chosen and rejected replies
    sequences: int = 100
    # M, pairs of sequences for figure 2
    pairs: int = 300


@dataclass
class JudgeConfig:
    # model served by the OpenAI-compatible endpoint
    model: str = "gpt-4o-mini"
    # base URL of the endpoint; null: the environment variable OPENAI_BASE_URL, or api.openai.com (key: OPENAI_API_KEY)
    url: str | None = None
    # seconds after which a request counts as failed
    timeout: float = 60.0
    # requests sent at the same time
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
    # HOST:PORT that all machines connect to, on one of them
    rendezvous: str | None = None
    # a DeepSpeed hostfile (one line NAME slots=N per machine), which sets these four keys; start the same command on every machine
    hostfile: str | None = None
    # auto (cuda if available) | cpu | cuda
    device: str = "auto"
    # fp32 | bf16
    dtype: str = "fp32"
    # attention: sdpa | flex (a compiled kernel that skips masked blocks; not yet run on a GPU), where the responses to a prompt
    # share one copy of it | padded (each response has its own copy of the prompt, up to K times the tokens; for debugging)
    attention: str = "sdpa"
    # save memory in the policy's backward pass by recomputing activations, which takes more time
    gradient_checkpointing: bool = False
    # keep the optimiser state in CPU memory (engine=zero with stages 1 to 3)
    offload_optimizer: bool = False
    # any keys of DeepSpeed's own JSON; they overwrite r2m's settings for the policy, the critic and sharded frozen models:
    # engine.deepspeed.zero_optimization.overlap_comm=true
    deepspeed: dict[str, Any] = field(default_factory=dict)
    # CPU threads per rank, also with engine=single; OMP_NUM_THREADS is ignored
    threads: int = 1
    # seconds after which a silent collective counts as failed
    timeout: int = 1800


@dataclass
class CheckpointConfig:
    # steps between checkpoints; 0: only at the end or when stopped
    every: int = 0
    # number of newest checkpoints to keep
    keep: int = 1
    # write policy/ and reward_model/ as Hugging Face folders at the end
    export: bool = True


@dataclass
class LoggerConfig:
    # loggers in addition to metrics.jsonl, which is always written: any of wandb, tensorboard
    kinds: list[str] = field(default_factory=list)
    # wandb project; a run there has the run folder's name
    project: str = "r2m"
    # steps between samples written to samples.jsonl; 0: never
    samples_every: int = 10


@dataclass
class Config:
    # the task; set by the word on the command line: train | sft | reward | evaluate | analyze
    task: str = "train"
    # seed of everything random in the run
    seed: int = 0
    # a run folder to continue from its newest checkpoint
    resume: str | None = None
    # a run folder: `r2m evaluate` uses its policy/ and reward_model/, `r2m analyze` its policies and reward model
    run: str | None = None
    # run folders, or folders of runs, for which `r2m analyze` draws curves
    runs: list[str] = field(default_factory=list)
    # output folder of `r2m sft` and `r2m reward`; null: the cache that `r2m train` uses
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
    # run folders, or folders of runs (a multirun); folders named without a key are added: r2m report RUN [RUN...]
    runs: list[str] = field(default_factory=list)
    # the page to write (.html, with a .png next to it), or the picture (.png, .pdf, .svg, with a page next to it); the table is
    # written next to both as .csv and .md
    out: str = "report.html"
