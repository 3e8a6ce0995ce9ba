"""Shared fixtures: the gold world's tokenizer and tiny actors, built in memory; no network, one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

# What needs torch or transformers is imported inside the fixtures, so that tests of neither start fast.


@pytest.fixture(scope="session")
def world():
    """The gold world."""
    from r2m_cli.data.gold_world import GoldWorld

    return GoldWorld()


@pytest.fixture(scope="session")
def chat(world):
    """The word-level tokenizer's chat format, for policy and reward model alike."""
    from r2m_cli.data.template import ChatFormat

    return ChatFormat(world.tokenizer())


@pytest.fixture(scope="session")
def prompts(world):
    """Four prompts of the gold world of different lengths: some continue a conversation."""
    first, second, third, fourth = world.prompts(4, seed=0)
    user, reply = "user", {"role": "assistant", "content": "i suggest piano ."}
    return [
        ({"role": user, "content": first},),
        ({"role": user, "content": third}, reply, {"role": user, "content": second}),
        ({"role": user, "content": third},),
        ({"role": user, "content": "please"}, reply, {"role": user, "content": fourth}),
    ]


@pytest.fixture(scope="session")
def make_actors(world, chat):
    """A function that builds fresh tiny actors; the same arguments give the same weights.

    Arguments: seed, feedback (an adapter that learns), reference (a frozen policy of other weights, so that the KL is
    not 0), policy_dtype, max_tokens of the reward model, kind as in `feedback.*`, critic (one of PPO,
    untrained), lora_rank (adapters in the policy, whose base is then the reference), source and features
    as in `feedback.*`.
    """
    import torch

    from r2m_cli.config.schema import ModelConfig
    from r2m_cli.distributed.engine import SingleEngine
    from r2m_cli.models.actors import Actors, RewardModel
    from r2m_cli.models.critic import Critic
    from r2m_cli.models.loading import fresh_llama
    from r2m_cli.models.lora import BaseOfLora, with_lora
    from r2m_cli.models.policy import Policy
    from r2m_cli.models.reward_model import FeedbackHead, HeadOnly, RewardBackbone, find_head, frozen_head
    from r2m_cli.models.states import width

    device = torch.device("cpu")

    def model(size: int, seed: int, scorer: bool):
        config = ModelConfig(size=f"{size}x2x2")
        built = fresh_llama(config, chat.tokenizer, chat.pad_id, seed, scorer)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():  # larger weights than the initial ones: logits and rewards that differ
            for weight in built.parameters():
                weight.add_(0.12 * torch.randn(weight.shape, generator=generator))
            if not scorer:  # end tokens often enough for responses of different lengths
                built.get_input_embeddings().weight[chat.tokenizer.eos_token_id] *= 3
        return built

    def make(
        seed=0, feedback=True, reference=True, policy_dtype=torch.float32, max_tokens=64, kind="r2m",
        critic=False, lora_rank=0, source="policy", features="states",
    ):  # fmt: skip
        lm = model(16, seed, scorer=False).to(policy_dtype)
        lora = with_lora(lm, lora_rank, "CAUSAL_LM", seed) if lora_rank else None
        policy = SingleEngine(Policy(lm, features=features), device, 0.0, 1.0)
        frozen = None
        if reference:
            other = Policy(model(16, seed + 200, scorer=False), features=features).requires_grad_(False)
            frozen = BaseOfLora(policy, lora) if lora is not None else other
        classifier = model(12, seed + 100, scorer=True)
        head = find_head(classifier)
        learner = None
        if feedback and kind != "none":
            module = (
                HeadOnly(head)
                if kind == "head_only"
                else FeedbackHead(head, width(classifier if source == "reward" else lm, features), 8, seed)
            )
            learner = SingleEngine(module, device, 0.0, 0.0)
        return Actors(
            policy=policy,
            reference=frozen,
            reward=RewardModel(
                backbone=RewardBackbone(classifier, features=features).requires_grad_(False),
                frozen_head=frozen_head(head),
                feedback=learner,
                format=chat,
                max_tokens=max_tokens,
                kind=kind,
                source=source,
            ),
            format=chat,
            gold=lambda prompt, response, finished: world.score(prompt[-1]["content"], response, finished),
            device=device,
            critic=SingleEngine(Critic(model(16, seed + 300, scorer=False)), device, 0.0, 1.0) if critic else None,
            lora=lora,
        )

    return make
