"""Combinations of configuration values that cannot work; each is refused with one line that says how to fix it."""

from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS, has_own_models
from r2m_cli.config.schema import Config
from r2m_cli.errors import UserError

VLLM_COLDEST = 0.01  # it takes any lower temperature above 0 for this one
LEARNING = tuple(kind for kind, feedback in FEEDBACKS.items() if feedback.learns)


def check_combinations(config: Config) -> None:
    """Raises UserError for the first combination that cannot work."""
    for check in (
        check_words,
        _starting_points,
        _templates,
        _ppo,
        _rollout,
        _feedback,
        _reward,
        _judges,
        _engine,
        _data,
        _analysis,
    ):
        check(config)


def check_words(c: Config) -> None:
    """Raises UserError for a key that belongs to another word."""
    for key, value, tasks in (
        ("resume", c.resume, ("train",)),
        ("run", c.run, ("evaluate", "analyze")),
        ("runs", c.runs or None, ("report", "analyze")),
        ("output", c.output, ("sft", "reward")),
    ):
        if value is not None and c.task not in tasks:
            raise UserError(f"{key}={value}: `r2m {c.task}` does not use it; it belongs to r2m {' and '.join(tasks)}")
    if c.run is not None and c.runs:
        raise UserError(f"runs={c.runs}: reads only the metrics of runs; analyse run={c.run} in a separate command")
    for key, rows in (
        ("data.rows", c.data.rows),
        ("policy.fit.rows", c.policy.fit.rows),
        ("reward.fit.rows", c.reward.fit.rows),
    ):
        if rows is not None and rows < 2:
            raise UserError(f"{key}={rows}: must be at least 2, or null for all rows")


def _starting_points(c: Config) -> None:
    for word, key, model in (("sft", "policy", c.policy), ("reward", "reward", c.reward)):
        if c.task == word and model.path is not None and model.base is None:
            raise UserError(
                f"{key}.path={model.path}: this is for a fitted model; `r2m {word}` starts from {key}.base, so name the model there"
            )


def _templates(c: Config) -> None:
    if c.policy.template == "pair":
        raise UserError(
            "policy.template=pair: a policy continues one text, but pair makes two; use it for reward models only "
            "(reward.template=pair)"
        )


def _ppo(c: Config) -> None:
    p, estimator = c.ppo, ESTIMATORS[c.ppo.algorithm]
    if p.group_size < 2 and estimator.compares:
        raise UserError(
            f"ppo.group_size={p.group_size}: {p.algorithm} compares the K responses of a prompt, so K must be at least 2"
        )
    if p.dual_clip is not None and not p.dual_clip > 1 + p.clip_high:
        raise UserError(
            f"ppo.dual_clip={p.dual_clip:g}: must be above 1 + ppo.clip_high = {1 + p.clip_high:g} (3 is usual), or null"
        )
    if estimator.per_token and p.ratio != "token":
        raise UserError(
            f"ppo.ratio={p.ratio}: {p.algorithm} computes an advantage for every token; it needs ppo.ratio=token"
        )
    if p.kl_estimator == "k1" and p.kl_in == "loss" and p.beta > 0:
        raise UserError("ppo.kl_estimator=k1 has no gradient in expectation: use k2 or k3, or ppo.kl_in=reward")
    if p.kl_target is not None and not (p.kl_target > 0 and p.beta > 0):
        raise UserError(
            f"ppo.kl_target={p.kl_target}: must be above 0, and ppo.beta={p.beta:g} too (it is the initial weight)"
        )
    if c.guard.kl is not None and not c.guard.kl >= 0:
        raise UserError(f"guard.kl={c.guard.kl}: must be at least 0, or null to never end the run early")
    if c.guard.kl is not None and p.beta == 0:
        raise UserError(f"guard.kl={c.guard.kl:g}: ppo.beta=0 means that no KL is measured; set ppo.beta above 0")
    if p.reward_clip is not None and not p.reward_clip > 0:
        raise UserError(f"ppo.reward_clip={p.reward_clip}: must be above 0, or null for no clipping")
    if p.clip_low >= 1:
        raise UserError(f"ppo.clip_low={p.clip_low}: must be below 1 (the ratio is clipped to 1 - clip_low)")


def _rollout(c: Config) -> None:
    r = c.rollout
    if r.batch_size is not None and r.batch_size < 1:
        raise UserError(f"rollout.batch_size={r.batch_size}: must be at least 1, or null for all at once")
    if r.temperature <= 0:
        raise UserError(f"rollout.temperature={r.temperature}: must be above 0 (1 samples the policy itself)")
    if r.is_cap is not None and not r.is_cap > 0:
        raise UserError(f"rollout.is_cap={r.is_cap:g}: must be above 0 (2 is usual), or null for no correction")
    if r.engine == "native" and r.vllm:
        raise UserError("rollout.vllm: needs rollout.engine=vllm; r2m's own loop does not use vLLM")
    if r.engine == "vllm" and r.temperature < VLLM_COLDEST:
        raise UserError(
            f"rollout.temperature={r.temperature:g}: vLLM samples no colder than {VLLM_COLDEST:g}; raise it, or use "
            "rollout.engine=native"
        )


def _feedback(c: Config) -> None:
    f = c.feedback
    if c.ppo.group_size < 2 and f.kind in LEARNING:
        raise UserError(
            f"ppo.group_size={c.ppo.group_size}: feedback={f.kind} learns from the order of a prompt's K responses, so K "
            "must be at least 2 (or feedback=none)"
        )
    for key, asked in (
        ("feedback.warmup_pairs", f.warmup_pairs > 0),
        ("feedback.replay_pairs", f.replay_pairs > 0),
        ("feedback.judge", f.judge != "none"),
    ):
        if asked and f.kind not in LEARNING:
            raise UserError(f"{key}: feedback={f.kind} does not learn; this key needs feedback={'|'.join(LEARNING)}")
    if f.judge != "none" and f.alpha == 1:
        raise UserError("feedback.judge: with feedback.alpha=1 its labels have no weight; lower feedback.alpha")
    if f.judge != "none" and not f.judge_pairs > 0:
        raise UserError(f"feedback.judge_pairs={f.judge_pairs:g}: must be above 0, or feedback.judge=none")
    if f.judge_replay and f.judge == "none":
        raise UserError("feedback.judge_replay: there are no judged pairs to replay; it needs feedback.judge")
    if f.self_labels == "none" and f.kind in LEARNING and f.judge == "none" and not f.replay_pairs:
        raise UserError(
            "feedback.self_labels=none: the update needs labels, and there are none; set feedback.replay_pairs or "
            "feedback.judge, or feedback=frozen"
        )
    if f.source == "reference" and FEEDBACKS[f.kind].states is not None and c.ppo.beta == 0:
        raise UserError("feedback.source=reference: with ppo.beta=0 there is no reference; set ppo.beta above 0")
    if f.dim % f.heads:
        raise UserError(f"feedback.dim={f.dim}: must be a multiple of feedback.heads={f.heads}")
    if f.warmup_lr is not None and not f.warmup_lr > 0:
        raise UserError(f"feedback.warmup_lr={f.warmup_lr}: must be above 0, or null for feedback.lr")
    if f.judge != "none" and f.judge_pairs > c.ppo.prompts_per_step:
        raise UserError(
            f"feedback.judge_pairs={f.judge_pairs:g}: at most one pair per group, so it cannot exceed "
            f"ppo.prompts_per_step={c.ppo.prompts_per_step}"
        )


def without_reward_model(c: Config) -> bool:
    """Whether reward.function alone scores the responses."""
    return c.reward.function is not None and c.reward.function_weight is None


def _reward(c: Config) -> None:
    r = c.reward
    if r.function is None and r.function_weight is None:
        raise UserError("reward.function is not set: name a Python function, reward.function=module:name")
    if without_reward_model(c):
        _function_alone(c)
    if r.paths and len(r.paths) + 1 > r.members:
        raise UserError(
            f"reward.members={r.members}: too few for reward.path and {len(r.paths)} reward.paths; raise it to {len(r.paths) + 1}"
        )
    if r.pretrain_epochs and (r.base is not None or not has_own_models(c.data.kind)):
        raise UserError(
            f"reward.pretrain_epochs={r.pretrain_epochs}: only a fresh model of the gold world needs it; reward.base is "
            "already pretrained"
        )
    if r.members == 1 and r.combine != "mean":
        raise UserError(f"reward.combine={r.combine}: there is only one reward model; raise reward.members")
    if r.members > 1 and c.feedback.kind != "none" and c.task == "train":
        raise UserError(f"reward.members={r.members}: an ensemble is a frozen baseline; it needs feedback=none")


def _function_alone(c: Config) -> None:
    r, why = c.reward, f"reward.function={c.reward.function} scores alone (reward.function_weight=null)"
    if c.task == "train" and c.feedback.kind != "none":
        raise UserError(
            f"feedback={c.feedback.kind}: {why}, and feedback needs a reward model; add feedback=none, or set "
            "reward.function_weight=1 to add the function to a model's score"
        )
    if c.task == "reward":
        raise UserError(f"r2m reward: {why}: there is no model to fit; run r2m train instead")
    if c.task == "analyze" and not reads_curves_only(c):
        raise UserError(
            f"r2m analyze: {why}, and the figures need a reward model; r2m analyze runs=[RUN] needs curves only"
        )
    named = (("reward.path", r.path), ("reward.base", r.base), ("reward.paths", r.paths or None))
    key = next((f"{key}={value}" for key, value in named if value is not None), None)
    if key is not None or r.members > 1:
        raise UserError(
            f"{key or f'reward.members={r.members}'}: {why}; leave the model out, or set reward.function_weight=1 to add the "
            "function to its score"
        )


def _judges(c: Config) -> None:
    for key, judge in (("feedback.judge", c.feedback.judge), ("eval.judge", c.eval.judge)):
        if judge in ("gold", "labeller") and c.data.kind == "file":
            raise UserError(
                f"{key}={judge}: only a world has this judge (data=gold, data=english); use openai"
                + (", or a reward model, eval.judge=reward" if key == "eval.judge" else "")
            )
    if c.judge.timeout <= 0:
        raise UserError(f"judge.timeout={c.judge.timeout}: must be above 0 seconds")


def _engine(c: Config) -> None:
    ranks = c.engine.num_processes * c.engine.num_nodes
    if c.engine.kind == "single" and ranks > 1:
        raise UserError(f"engine.num_processes={ranks} needs engine=zero; engine=single is one process")
    if c.engine.num_nodes > 1 and not c.engine.rendezvous:
        raise UserError("engine.num_nodes > 1 needs engine.rendezvous=HOST:PORT, the same on every machine")
    if c.engine.node_rank >= c.engine.num_nodes:
        raise UserError(f"engine.node_rank={c.engine.node_rank}: must be below engine.num_nodes={c.engine.num_nodes}")
    parts = ranks * c.ppo.mini_batches
    if c.ppo.prompts_per_step % parts:
        raise UserError(
            f"ppo.prompts_per_step={c.ppo.prompts_per_step}: must be a multiple of ranks x ppo.mini_batches = {parts}, "
            "so that every rank makes the same optimiser steps"
        )
    if c.engine.kind == "single" and c.engine.dtype == "bf16" and c.task not in ("evaluate", "analyze"):
        raise UserError(
            "engine.dtype=bf16 needs engine=zero, which also keeps the weights in fp32: with bf16 weights alone, small "
            "updates are lost (on one device: engine=zero engine.num_processes=1)"
        )
    if c.engine.offload_optimizer and (c.engine.kind != "zero" or c.engine.stage == 0):
        raise UserError("engine.offload_optimizer=true needs engine=zero with engine.stage 1, 2 or 3")


def _data(c: Config) -> None:
    if c.data.label_temperature is not None and c.data.label_temperature <= 0:
        raise UserError(
            f"data.label_temperature={c.data.label_temperature}: must be above 0, or null for the world's own"
        )
    if c.data.label_noise is not None and not 0 <= c.data.label_noise <= 0.5:
        raise UserError(
            f"data.label_noise={c.data.label_noise}: must lie between 0 and 0.5, or null for the world's own"
        )
    if c.data.kind != "file" and c.data.path:
        raise UserError(f"data.path={c.data.path}: a world does not read a file; add data=file")
    if c.data.kind == "file" and not c.data.path:
        raise UserError("data.path is not set: name a file of preference pairs or prompts, data.path=FILE")
    if c.policy.fit.parameters == "head":
        raise UserError("policy.fit.parameters=head: a policy has no scoring head; choose full or lora")
    unknown = [kind for kind in c.logger.kinds if kind not in ("wandb", "tensorboard")]
    if unknown:
        raise UserError(f"logger.kinds: unknown logger {unknown[0]}; choose from wandb, tensorboard")
    if c.train.stop_at is not None and not 1 <= c.train.stop_at <= c.train.steps:
        raise UserError(f"train.stop_at={c.train.stop_at}: must lie between 1 and train.steps={c.train.steps}")


def reads_curves_only(c: Config) -> bool:
    """Whether `r2m analyze` reads only the metrics of runs and no model: runs= is set, or no model or data is named."""
    named = c.run or c.policy.path or c.policy.base or c.reward.path or c.reward.base or c.data.kind == "file"
    return c.task == "analyze" and (bool(c.runs) or not named)


def _analysis(c: Config) -> None:
    if c.task != "analyze":
        return
    if c.engine.kind != "single":
        raise UserError("r2m analyze runs in one process: use engine=single")
    models = (("policy.path", c.policy.path), ("reward.path", c.reward.path), ("data.path", c.data.path))
    named = next(((key, value) for key, value in models if value is not None), None)
    if c.runs and named:
        raise UserError(
            f"runs={c.runs}: reads only the metrics of runs; analyse {named[0]}={named[1]} in a separate command"
        )
    if c.eval.reward is not None and c.run is None:
        raise UserError(
            f"eval.reward={c.eval.reward}: decides which responses of a run count as reward hacking; it needs run=RUN"
        )
    fitted = next((key for key, model in (("policy", c.policy), ("reward", c.reward)) if model.path is None), None)
    if c.data.kind == "file" and c.data.holdout == 1 and c.run is None and fitted is not None and not c.runs:
        raise UserError(
            f"{fitted}.path is null and data.holdout=1 leaves no rows to fit one on: name a model, {fitted}.path=FOLDER, or "
            "set the share that was held out when it was fitted (data.holdout=0.1 unless you changed it)"
        )
