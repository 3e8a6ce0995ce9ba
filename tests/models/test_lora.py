"""LoRA policies: adapters that start as nothing, alone learn, and are switched off for the reference."""

import copy

import pytest
import torch
from packs import flat, packs, sequences

from r2m_cli.batch import Trainable
from r2m_cli.config.schema import PpoConfig, RolloutConfig
from r2m_cli.distributed.engine import SingleEngine
from r2m_cli.maths.advantages import rloo
from r2m_cli.models.lora import BaseOfLora, merged, merged_from, with_lora
from r2m_cli.models.policy import Policy
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.policy_step import policy_step
from r2m_cli.stages.rollout import rollout

TEMPERATURE, K, RANK = 0.8, 3, 4
TOKENS = torch.tensor([[5, 9, 6, 11, 17, 8, 20, 7]])


def annotated_by(actors, prompts):
    batch = rollout(
        actors, prompts, range(len(prompts)), K, RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8), 5, 0, 1
    )
    return annotate(actors, batch, flat(batch, 2), 0.6, TEMPERATURE)


def update(actors, prompts, lr=1e-2):
    """One policy step that moves the adapters a good way. -> the batch it was made from."""
    annotated = annotated_by(actors, prompts)
    batch = Trainable(annotated, 10 * rloo(annotated.rewards).flatten())
    policy_step(
        actors, batch, packs(annotated.rollout, 2), PpoConfig(group_size=K, epochs=2, beta=0.1), TEMPERATURE, lr, None
    )
    return annotated


@torch.no_grad()
def logits(lm):
    return lm(TOKENS).logits


def adapter_parameters(actors):
    return {name: p for name, p in actors.policy.module.named_parameters() if "lora_" in name}


def test_before_training_the_adapters_change_nothing(make_actors):
    assert torch.equal(logits(make_actors(lora_rank=RANK).policy.module.lm), logits(make_actors().policy.module.lm))


def test_before_training_the_policy_is_its_own_reference(make_actors, prompts):
    annotated = annotated_by(make_actors(lora_rank=RANK), prompts)
    assert torch.equal(annotated.old_logp, annotated.ref_logp)


def test_every_linear_layer_has_adapters_of_the_rank_and_nothing_else_learns(make_actors):
    actors = make_actors(lora_rank=RANK)
    learning = {name for name, p in actors.policy.module.named_parameters() if p.requires_grad}
    assert learning == set(adapter_parameters(actors))
    assert sum(p.numel() for p in actors.policy.parameters) == sum(
        RANK * (m.in_features + m.out_features)
        for name, m in make_actors().policy.module.lm.named_modules()
        if isinstance(m, torch.nn.Linear) and name != "lm_head"
    )


def test_the_initial_adapters_come_from_the_seed_and_leave_the_global_generator_alone(make_actors):
    before = torch.get_rng_state()
    made = [with_lora(copy.deepcopy(make_actors().policy.module.lm), RANK, "CAUSAL_LM", seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = ([p for name, p in m.named_parameters() if "lora_A" in name] for m in made)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_only_the_adapters_move_in_a_policy_step(make_actors, prompts):
    actors = make_actors(lora_rank=RANK)
    before = {name: p.detach().clone() for name, p in actors.policy.module.named_parameters()}
    update(actors, prompts)
    moved = {name for name, p in actors.policy.module.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(adapter_parameters(actors))
    start = make_actors()
    assert (logits(actors.policy.module.lm) - logits(start.policy.module.lm)).abs().max() > 0.05


def test_after_training_the_reference_is_still_the_base(make_actors, prompts):
    """To the last bit what the policy was before there were adapters, while the policy itself has gone on."""
    actors, plain = make_actors(lora_rank=RANK), make_actors()
    annotated = update(actors, prompts)
    batch = annotated.rollout
    rows = (sequences(batch), TEMPERATURE)
    with torch.no_grad():
        reference, base, policy = (p(*rows).logp for p in (actors.reference, plain.policy.module, actors.policy))
    assert torch.equal(reference, base)
    assert (policy - base).abs().max() > 1e-2


def test_a_look_at_the_reference_leaves_the_adapters_on_and_trainable(make_actors, prompts):
    """Also in the middle of a policy's graph: its gradient is the same with the look as without it."""
    actors = make_actors(lora_rank=RANK)
    batch = update(actors, prompts).rollout
    rows = (sequences(batch), TEMPERATURE)
    gradients = []
    for look in (False, True):
        logp = actors.policy(*rows).logp
        if look:
            reference = actors.reference(*rows).logp
            assert not reference.requires_grad
        again = actors.policy(*rows).logp
        assert torch.equal(again, logp)
        actors.policy.backward(logp.sum() + again.sum())
        gradients.append([p.grad.clone() for p in actors.policy.parameters])
        assert all(p.requires_grad for p in adapter_parameters(actors).values())
        assert all(p.requires_grad == ("lora_" in name) for name, p in actors.policy.module.named_parameters())
        actors.policy.optimizer.zero_grad()
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
        assert first.abs().max() > 0


def test_the_reference_holds_no_parameters_of_its_own(make_actors):
    """They are the policy's: counted twice they would be placed, saved or sharded twice."""
    reference = make_actors(lora_rank=RANK).reference
    assert isinstance(reference, BaseOfLora)
    assert not list(reference.parameters())
    assert not list(reference.buffers())


def test_a_base_with_saved_adapters_folded_in_is_the_trained_policy(make_actors, prompts, tmp_path):
    actors = make_actors(lora_rank=RANK)
    update(actors, prompts)
    actors.lora.save_pretrained(tmp_path)
    plain = merged_from(make_actors().policy.module.lm, tmp_path)
    assert not [name for name, _ in plain.named_parameters() if "lora" in name]
    torch.testing.assert_close(logits(plain), logits(actors.policy.module.lm), atol=1e-5, rtol=1e-5)


def test_adapters_folded_in_place_are_the_trained_policy_and_a_plain_model_stays(make_actors, prompts):
    actors = make_actors(lora_rank=RANK)
    update(actors, prompts)
    expected = logits(actors.policy.module.lm)
    torch.testing.assert_close(logits(merged(actors.lora)), expected, atol=1e-5, rtol=1e-5)
    plain = make_actors().policy.module.lm
    assert merged(plain) is plain


def test_the_sampler_draws_from_the_adapted_policy(make_actors, prompts, tmp_path):
    actors = make_actors(lora_rank=RANK)
    update(actors, prompts, lr=3e-2)
    actors.lora.save_pretrained(tmp_path)
    plain = make_actors()
    merged_from(plain.policy.module.lm, tmp_path)
    config = RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8)
    adapted, folded, base = (
        rollout(a, prompts, range(len(prompts)), K, config, 9, 0, 2).tokens for a in (actors, plain, make_actors())
    )
    assert adapted.tolist() == folded.tolist()
    assert adapted.tolist() != base.tolist()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_with_and_without_gradient_checkpointing_alike(make_actors, prompts, checkpointing):
    """A frozen embedding gives the first layer an input without a gradient, which checkpointing must survive."""
    lm = copy.deepcopy(make_actors().policy.module.lm)
    with_lora(lm, RANK, "CAUSAL_LM", 1)
    policy = SingleEngine(Policy(lm, checkpointing), torch.device("cpu"), 0.0, 1.0)
    batch = rollout(
        make_actors(),
        prompts,
        range(len(prompts)),
        K,
        RolloutConfig(temperature=TEMPERATURE, max_new_tokens=8),
        5,
        0,
        1,
    )
    rows = (sequences(batch), TEMPERATURE)
    policy.backward(policy(*rows).logp.sum())
    found = {name: p.grad for name, p in policy.module.named_parameters() if p.requires_grad}
    # B starts at 0, so A's gradient is 0 and all of the first one is B's.
    assert all((gradient.abs().max() > 0) == ("lora_B" in name) for name, gradient in found.items())
    norm = torch.stack([g.norm() for g in found.values()]).norm()
    assert norm.item() == pytest.approx(plain_norm(make_actors, batch), rel=1e-4)


def plain_norm(make_actors, batch):
    """The same norm through peft's own wrapper and single, unpadded sequences."""
    lm = copy.deepcopy(make_actors().policy.module.lm)
    wrapper = with_lora(lm, RANK, "CAUSAL_LM", 1)
    total = torch.zeros(())
    for tokens, p, r in zip(batch.tokens, batch.prompt_lengths, batch.response_lengths):
        ids = tokens[: p + r]
        log_p = (wrapper(input_ids=ids[None]).logits[0] / TEMPERATURE).log_softmax(dim=1)
        total = total + log_p[torch.arange(p - 1, p + r - 1), ids[p:]].sum()
    total.backward()
    return torch.stack([p.grad.norm() for p in wrapper.parameters() if p.grad is not None]).norm().item()
