"""From the configuration to the actors: tokenizers, models, engines."""

from dataclasses import replace

import torch

from r2m_cli.config.combinations import without_reward_model
from r2m_cli.config.registry import ESTIMATORS, FEEDBACKS
from r2m_cli.config.schema import Config
from r2m_cli.console import say
from r2m_cli.data.source import Source
from r2m_cli.distributed.engine import DTYPES, make_engine, place_frozen, resolve_device
from r2m_cli.distributed.shards import all_finite, gathered
from r2m_cli.errors import UserError
from r2m_cli.models.actors import Actors, function_alone
from r2m_cli.models.classifier_check import check_reward
from r2m_cli.models.context import context_length, why_no_longer
from r2m_cli.models.critic import Critic
from r2m_cli.models.ensemble import Calibration, Ensemble, calibration_of
from r2m_cli.models.formats import policy_format, reward_format
from r2m_cli.models.generate import end_ids
from r2m_cli.models.loading import load_causal_lm, load_reward_model, resolve, token_limit
from r2m_cli.models.lora import BaseOfLora, with_lora
from r2m_cli.models.policy import Policy
from r2m_cli.models.reward_backbone import RewardBackbone, find_head, frozen_head
from r2m_cli.models.reward_function import function_of
from r2m_cli.models.reward_model import FeedbackHead, HeadOnly, RewardModel
from r2m_cli.models.samplers import Sampler, native
from r2m_cli.models.states import width
from r2m_cli.seeds import Stream, draw_seed


def local_device(config: Config) -> torch.device:
    """This rank's device."""
    local_rank = 0
    if config.engine.kind == "zero":
        from r2m_cli.distributed.zero import local_rank as read

        local_rank = read()
    return resolve_device(config.engine.device, local_rank)


def build_actors(config: Config, source: Source, policy_path: str | None = None) -> Actors:
    """Load every model that the run needs, wrap the trained ones in engines and place the frozen ones.

    Args:
        policy_path: a policy to evaluate instead of the configured one, which stays the reference.

    Raises:
        UserError: a model that cannot be loaded, or whose context is too short for prompt and response.
    """
    assert config.policy.path is not None, "prepare() fills it"
    device, dtype, engine = local_device(config), DTYPES[config.engine.dtype], config.engine
    say(f"loading policy {policy_path or config.policy.path}")
    lm = load_causal_lm(policy_path or config.policy.path, "policy.path", dtype, device, engine)
    chat = policy_format(config.policy, config.policy.path, "policy.path", end_ids(lm))
    check_context(config, f"policy.path={config.policy.path}", context_length(lm.config), why_no_longer(lm.config))
    training, trainer = config.task == "train", config.ppo
    lora = None
    if training and config.policy.lora_rank:
        lora = with_lora(lm, config.policy.lora_rank, "CAUSAL_LM", draw_seed(Stream.LORA, config.seed))
    policy = Policy(
        lm, engine.gradient_checkpointing, engine.attention, features_of(config, "policy", lora is not None)
    )
    feedback_size = width(lm, config.feedback.features)
    if not all_finite(policy):
        raise UserError(
            f"policy.path={policy_path or config.policy.path}: its weights hold numbers that are not finite"
        )
    if not policy.agrees_with_its_model():
        raise UserError(
            f"policy.path={config.policy.path}: a {lm.config.model_type} model changes its logits after the LM head in a way "
            "that r2m does not support; use another architecture"
        )
    _ = policy.decoder  # must be chosen before an engine has the model
    sampler = sampler_of(config, policy_path or config.policy.path, device)
    decay, norm = trainer.weight_decay, trainer.max_grad_norm
    policy_engine = make_engine(policy, engine, device, weight_decay=decay, max_grad_norm=norm)
    reference: torch.nn.Module | None = None
    if trainer.beta > 0:
        if lora is not None:
            reference = BaseOfLora(policy_engine, lora)
        else:
            base = load_causal_lm(config.policy.path, "policy.path", dtype, device, engine)
            like = policy if policy_path in (None, config.policy.path) else None
            frozen = Policy(base, attention=engine.attention, features=features_of(config, "reference"), like=like)
            reference = place_frozen(frozen, engine, device)
    critic = None
    if training and ESTIMATORS[trainer.algorithm].critic:
        body = load_causal_lm(config.policy.path, "policy.path", dtype, device, engine)
        values = Critic(body, engine.gradient_checkpointing, engine.attention)
        critic = make_engine(values, engine, device, weight_decay=decay, max_grad_norm=norm)
    alone = without_reward_model(config)
    reward = function_alone(config.reward, chat) if alone else build_reward(config, feedback_size, device)
    return Actors(
        policy=policy_engine,
        reference=reference,
        reward=reward,
        format=chat,
        gold=source.gold if source.world is not None else None,
        device=device,
        critic=critic,
        lora=lora,
        sampler=sampler,
    )


def sampler_of(config: Config, policy: str, device: torch.device) -> Sampler:
    """What writes the policy's responses. vLLM starts before the trainer takes its memory. Raises UserError."""
    if config.rollout.engine == "native":
        return native
    from r2m_cli.models.vllm_sampler import VllmSampler

    say("starting vLLM")
    return VllmSampler(resolve(policy, "policy.path"), config, device)


def build_reward(config: Config, feedback_size: int, device: torch.device, key: str = "reward.path") -> RewardModel:
    """The reward model: the frozen backbone, its initial head and, unless feedback=none, the trainable adapter and head.

    With reward.paths it is an ensemble with reward.path as its first member.

    Args:
        feedback_size: D_p, width of what the adapter reads of the policy.
        key: the configuration key that named the model, for error messages.
    """
    assert config.reward.path is not None
    say(f"loading reward model {config.reward.path}")
    chat = reward_format(config.reward, config.reward.path, key)
    dtype = DTYPES[config.engine.dtype]
    classifier = load_reward_model(
        config.reward.path, key, dtype, chat.pad_id, device=device, engine=config.engine
    )  # fmt: skip
    head, f = find_head(classifier), config.feedback
    module: torch.nn.Module | None = None
    with gathered(list(head.parameters())):
        initial = frozen_head(head).to(device)
        if FEEDBACKS[f.kind].states is not None:
            seed = draw_seed(Stream.ADAPTER, config.seed)
            size = width(classifier, f.features) if f.source == "reward" else feedback_size
            module = FeedbackHead(head, size, f.dim, seed, f.heads, f.query == "learned")
        elif f.kind != "none":
            module = HeadOnly(head)
    feedback = None
    if module is not None:
        feedback = make_engine(module, config.engine, device, weight_decay=0.0, max_grad_norm=0.0, small=True)
    max_tokens, limited_by = token_limit(classifier, chat.tokenizer, config.reward.max_tokens)
    backbone = RewardBackbone(
        classifier.requires_grad_(False), config.engine.attention, features_of(config, "reward"), chat.boundary
    )
    check_reward(backbone, chat, f"{key}={config.reward.path}")
    return RewardModel(
        backbone=place_frozen(backbone, config.engine, device),
        frozen_head=initial,
        feedback=feedback,
        format=chat,
        max_tokens=max_tokens,
        limited_by=limited_by,
        kind=f.kind,
        source=f.source,
        ensemble=_ensemble(config, device) if config.reward.paths else None,
        function=function_of(config.reward),
        unshared=backbone.unshared,
    )


def build_heldout_reward(config: Config, device: torch.device) -> RewardModel | None:
    """The reward model named by eval.reward, which reads only the text; None if eval.reward is not set."""
    if config.eval.reward is None:
        return None
    # reward.template belongs to reward.path, not to this model.
    named = replace(config.reward, path=config.eval.reward, members=1, paths=[], template=None, end_token=None)
    model = replace(named, function=None, function_weight=1.0)
    alone = replace(config, reward=model, feedback=replace(config.feedback, kind="none"))
    return build_reward(alone, 0, device, key="eval.reward")


def _ensemble(config: Config, device: torch.device) -> Ensemble:
    """The models of reward.paths, and the calibration of every member, reward.path first."""
    c = config.reward
    assert c.path is not None
    further = []
    for i, path in enumerate(c.paths):
        member = replace(c, path=path, paths=[], function=None)
        alone = replace(config, reward=member, feedback=replace(config.feedback, kind="none"))
        further.append(build_reward(alone, 0, device, f"reward.paths[{i}]"))
    calibrations = tuple(calibration_of(path) or Calibration() for path in (c.path, *c.paths))
    truncations = tuple(one for member in further for one in member.truncations)
    return Ensemble(tuple(member.score for member in further), calibrations, c.combine, c.uncertainty, truncations)


def features_of(config: Config, model: str, lora: bool = False) -> str:
    """feedback.features for the model named by feedback.source; "states" for the others.

    Args:
        model: policy | reference | reward.
        lora: the reference is this same policy with its LoRA adapters switched off.
    """
    f = config.feedback
    whose = (model, "reference") if lora else (model,)
    return f.features if FEEDBACKS[f.kind].states is not None and f.source in whose else "states"


def check_context(config: Config, policy: str, context: int | None, why: str = "") -> None:
    """Raises UserError if prompt and response together can exceed the policy's `context`, in tokens.

    `why` is appended to the number of tokens in the message.
    """
    needed = config.rollout.max_prompt_tokens + config.rollout.max_new_tokens
    if context is not None and needed > context:
        raise UserError(
            f"rollout.max_prompt_tokens + rollout.max_new_tokens = {needed}, but {policy} "
            f"reads {context} tokens at most{why}; lower one of them"
        )
