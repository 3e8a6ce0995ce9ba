"""The policy's one forward and the sampler against plain transformers: one unpadded sequence at a time, no cache."""

import copy
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import rows_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from r2m_cli.models.draws import inverse_cdf
from r2m_cli.models.generate import sample, uniform_rows
from r2m_cli.models.policy import Policy
from r2m_cli.models.sequences import Sequences
from r2m_cli.models.states import width
from r2m_cli.seeds import mix

VOCABULARY, PAD, TEMPERATURE = 29, 0, 0.7
COMMON = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": 64,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
GEMMA = COMMON | {"head_dim": 8, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0, "sliding_window": 5}
FAMILIES = {
    "llama": COMMON,
    "qwen2": COMMON,
    "mistral": COMMON | {"sliding_window": 5},  # narrower than the sequences: the cache itself slides
    "gpt2": GPT2,  # learned absolute positions: left padding shows
    "gpt_neox": COMMON,
    "gemma2": GEMMA,  # soft cap, layers with and without a window
    "granite": COMMON | {"logits_scaling": 4.0},
    "cohere": COMMON | {"logit_scale": 0.25},
}
PROMPTS, RESPONSES = (3, 7, 1, 5), (6, 2, 9, 1)


@functools.cache
def language_model(family: str) -> torch.nn.Module:
    """A tiny random model in evaluation mode; its weights are large enough for the logits to differ."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **FAMILIES[family])).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.15 * torch.randn_like(weight))
    return model


@functools.cache
def sequences() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, VOCABULARY, (p + r,), generator=generator) for p, r in zip(PROMPTS, RESPONSES)]


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)


def forward(policy: Policy, temperature: float = TEMPERATURE, with_entropy: bool = True):
    return policy(batched(padded(sequences())), temperature, with_entropy)


def batched(tokens: Tensor) -> Sequences:
    return Sequences(tokens, torch.tensor(PROMPTS), torch.tensor(RESPONSES), group_size=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_equals_each_sequence_alone(family):
    lm = language_model(family)
    with torch.no_grad():
        got = forward(Policy(lm))
    assert got.logp.shape == got.entropy.shape == (4, max(RESPONSES))
    states = rows_of(got.states)
    for b, (ids, p, r) in enumerate(zip(sequences(), PROMPTS, RESPONSES)):
        with torch.no_grad():
            plain = lm(ids[None], output_hidden_states=True)
        log_p = (plain.logits[0].float() / TEMPERATURE).log_softmax(dim=1)
        for j in range(r):
            row = log_p[p - 1 + j]
            assert got.logp[b, j].item() == pytest.approx(row[ids[p + j]].item(), abs=1e-5)
            assert got.entropy[b, j].item() == pytest.approx(-(row.exp() * row).sum().item(), abs=1e-5)
        assert (got.logp[b, r:] == 0).all()
        assert (got.entropy[b, r:] == 0).all()
        n = p + r - 1
        torch.testing.assert_close(states[b], plain.hidden_states[-1][0, :n], atol=1e-5, rtol=1e-5)


def test_gradients_equal_each_sequence_alone():
    """The gradient of a weighted sum of log-probabilities, through all weights."""
    lm = language_model("llama")
    weights = torch.randn(4, max(RESPONSES), generator=torch.Generator().manual_seed(0))
    got = forward(Policy(lm), with_entropy=False)
    gradients = torch.autograd.grad((got.logp * weights).sum(), list(lm.parameters()))
    total = 0.0
    for b, (ids, p, r) in enumerate(zip(sequences(), PROMPTS, RESPONSES)):
        log_p = (lm(ids[None]).logits[0] / TEMPERATURE).log_softmax(dim=1)
        total = total + (log_p[torch.arange(p - 1, p + r - 1), ids[p:]] * weights[b, :r]).sum()
    for mine, oracle in zip(gradients, torch.autograd.grad(total, list(lm.parameters()))):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "gemma2"])
def test_gradient_checkpointing_changes_memory_and_no_number(family):
    """GPT-2's dropout must stay asleep, or the first epoch's ratio is not 1; and the sampler still has its cache."""
    plain = Policy(copy.deepcopy(language_model(family)))
    checkpointed = Policy(copy.deepcopy(language_model(family)), gradient_checkpointing=True)
    results = []
    for policy in (plain, checkpointed):
        got = forward(policy)
        got.logp.sum().backward()
        results.append([got.logp, got.entropy, got.states.hidden, *(p.grad for p in policy.parameters())])
        assert not any(module.training for module in policy.lm.modules())
    for mine, oracle in zip(*results):
        torch.testing.assert_close(mine, oracle, atol=1e-5, rtol=1e-5)
    uniforms = uniform_rows(0, 0, 1, [0, 1], 6)
    drawn = [sample(policy, [[5, 6]], 2, uniforms, 1.0, {1}, PAD) for policy in (plain, checkpointed)]
    assert drawn[0] == drawn[1]


def test_gradient_checkpointing_runs_every_layer_again_in_the_backward():
    """Otherwise it saves nothing: transformers quietly ignores it outside training mode."""
    policy = Policy(copy.deepcopy(language_model("llama")), gradient_checkpointing=True)
    calls = []
    for layer in policy.lm.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    got = forward(policy, with_entropy=False)
    assert len(calls) == 2
    got.logp.sum().backward()
    assert len(calls) == 4


def test_temperature_divides_the_logits():
    policy = Policy(language_model("llama"))
    ids, p, r = sequences()[0], PROMPTS[0], RESPONSES[0]
    with torch.no_grad():
        logits = policy.lm(ids[None]).logits[0]
        results = {t: forward(policy, t) for t in (0.5, 1.0, 2.0)}
    for temperature, got in results.items():
        expected = (logits / temperature).log_softmax(dim=1)[torch.arange(p - 1, p + r - 1), ids[p:]]
        torch.testing.assert_close(got.logp[0, :r], expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(got.states.hidden, results[1.0].states.hidden)
    assert results[0.5].entropy[0, 0] < results[1.0].entropy[0, 0] < results[2.0].entropy[0, 0]


def test_hidden_states_are_detached_and_the_log_probabilities_are_not():
    got = forward(Policy(language_model("llama")))
    assert got.logp.requires_grad
    assert not got.states.hidden.requires_grad
    assert got.entropy.requires_grad  # the entropy bonus
    assert forward(Policy(language_model("llama")), with_entropy=False).entropy is None


def test_what_stands_in_the_padding_is_inert():
    policy = Policy(language_model("llama"))
    tokens, lengths = padded(sequences()), torch.tensor(PROMPTS) + torch.tensor(RESPONSES)
    junk = torch.where(torch.arange(tokens.shape[1])[None] < lengths[:, None], tokens, 17)
    with torch.no_grad():
        clean = forward(policy)
        dirty = policy(batched(junk), TEMPERATURE, True)
    torch.testing.assert_close(dirty.logp, clean.logp, atol=1e-6, rtol=0)
    torch.testing.assert_close(rows_of(dirty.states), rows_of(clean.states), atol=1e-5, rtol=0)


def test_the_shortest_possible_sequence():
    got = Policy(language_model("llama"))(
        Sequences(torch.tensor([[5, 6]]), torch.tensor([1]), torch.tensor([1]), 1), 1.0
    )
    assert got.logp.shape == (1, 1)
    assert got.states.hidden.shape == (1, 16)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "padded"])
def test_what_the_adapter_reads_is_the_state_the_token_or_both(family, attention):
    """Embeddings of the same tokens, as loud as the states; Gemma's are what its own factor makes of them."""
    model = copy.deepcopy(language_model(family))  # reading leaves a hook
    found = {
        features: rows_of(forward(Policy(model, attention=attention, features=features)).states)
        for features in ("states", "tokens", "both")
    }
    for tokens, state, token, both in zip(sequences(), *found.values()):
        embedded = model.get_input_embeddings()(tokens[:-1])
        expected = (
            embedded / embedded.square().mean(1, keepdim=True).sqrt() * state.square().mean(1, keepdim=True).sqrt()
        )
        torch.testing.assert_close(token, expected.detach(), atol=1e-5, rtol=1e-4)
        assert torch.equal(both, torch.cat([state, token], dim=1))
        assert not both.requires_grad


def test_the_width_of_what_is_read():
    model = language_model("gpt2")
    assert [width(model, features) for features in ("states", "tokens", "both")] == [16, 16, 32]


# --- sampling ---------------------------------------------------------------------------------------------------------


def slow_sample(lm, prompts, group_size, uniforms, temperature, eos_ids):
    """One response at a time, every token from a fresh forward of the whole sequence, a linear search in the sum."""
    responses = []
    for row in range(len(prompts) * group_size):
        ids, new = list(prompts[row // group_size]), []
        for u in uniforms[row].tolist():
            with torch.no_grad():
                p = (lm(torch.tensor([ids])).logits[0, -1].float() / temperature).softmax(dim=0).double()
            token, cumulative = 0, float(p[0])
            while cumulative < u * float(p.sum()) and token < VOCABULARY - 1:
                token += 1
                cumulative += float(p[token])
            ids.append(token)
            new.append(token)
            if token in eos_ids:
                break
        responses.append(new)
    return responses


@pytest.mark.parametrize("family", FAMILIES)
def test_sample_equals_one_sequence_at_a_time_without_a_cache(family):
    lm = language_model(family)
    prompts = [ids[:p].tolist() for ids, p in zip(sequences(), PROMPTS)]
    uniforms = uniform_rows(0, 0, 1, list(range(12)), 10)
    eos_ids = {1, 2, 3}
    got = sample(Policy(lm), prompts, 3, uniforms, TEMPERATURE, eos_ids, PAD)
    assert got == slow_sample(lm, prompts, 3, uniforms, TEMPERATURE, eos_ids)
    lengths = {len(ids) for ids in got}
    assert 10 in lengths  # a row that runs to the end
    assert min(lengths) <= 3  # a row that is dropped early while others go on
    for ids in got:
        assert ids[-1] in eos_ids or len(ids) == 10
        assert not eos_ids & set(ids[:-1])


def test_a_response_depends_on_its_own_prompt_and_row_alone():
    """Any response can be drawn again alone: no neighbour, no padding, no group changes it."""
    policy = Policy(language_model("llama"))
    prompts = [ids[:p].tolist() for ids, p in zip(sequences(), PROMPTS)]
    uniforms = uniform_rows(0, 0, 1, list(range(8)), 10)
    whole = sample(policy, prompts, 2, uniforms, TEMPERATURE, {1, 2, 3}, PAD)
    for row in range(8):
        alone = sample(policy, [prompts[row // 2]], 1, uniforms[row : row + 1], TEMPERATURE, {1, 2, 3}, PAD)
        assert alone == [whole[row]]
    assert whole[0] != whole[1]  # a group's responses differ


def test_all_rows_may_end_at_the_first_token_and_the_width_may_be_one():
    policy = Policy(language_model("llama"))
    uniforms = uniform_rows(0, 0, 1, [0, 1], 6)
    everything = set(range(VOCABULARY))
    assert [len(ids) for ids in sample(policy, [[5, 6]], 2, uniforms, 1.0, everything, PAD)] == [1, 1]
    assert [len(ids) for ids in sample(policy, [[5, 6]], 2, uniforms[:, :1], 1.0, {1}, PAD)] == [1, 1]


def test_a_low_temperature_is_greedy_decoding():
    lm = language_model("gpt2")
    (got,) = sample(Policy(lm), [[5, 6, 7]], 1, uniform_rows(3, 0, 0, [0], 6), 1e-4, set(), PAD)
    ids = [5, 6, 7]
    for _ in range(6):
        with torch.no_grad():
            ids.append(int(lm(torch.tensor([ids])).logits[0, -1].argmax()))
    assert got == ids[3:]


def test_sampling_leaves_the_global_random_numbers_alone():
    policy = Policy(language_model("llama"))  # building the model draws, if no other test has done it before
    before = torch.get_rng_state()
    sample(policy, [[5]], 2, uniform_rows(0, 0, 0, [0, 1], 3), 1.0, {1}, PAD)
    assert torch.equal(torch.get_rng_state(), before)


# --- draws ------------------------------------------------------------------------------------------------------------


def test_inverse_cdf_by_hand():
    # probabilities 1/8, 1/2, 1/8, 1/4: thresholds at 0.125, 0.625, 0.75, 1 (sums that a float holds exactly)
    logits = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()
    below, above = 1 - 1e-4, 1 + 1e-4
    cases = {
        1e-7: 0, 0.125 * below: 0, 0.125 * above: 1, 0.625 * below: 1, 0.625 * above: 2, 0.75 * below: 2,
        0.75 * above: 3, 1.0: 3,
    }  # fmt: skip
    got = inverse_cdf(logits.expand(len(cases), 4), torch.tensor(list(cases)))
    assert got.tolist() == list(cases.values())


def test_inverse_cdf_never_draws_what_is_impossible():
    """Zero probability at either end and between; the smallest and the largest uniform that exist."""
    p = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0])
    smallest = 2.0**-24
    uniforms = torch.tensor([smallest, 0.5, 0.5 + smallest, 1.0])
    assert inverse_cdf(p.log().expand(4, 5), uniforms).tolist() == [1, 1, 3, 3]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8), st.integers(1, 400))
def test_inverse_cdf_gives_every_token_its_exact_share_of_the_uniforms(logits, cells):
    """On an even grid of N uniforms each token is drawn N p times, off by one at each of its two thresholds."""
    row = torch.tensor(logits)
    uniforms = (torch.arange(cells, dtype=torch.float64) + 0.5).div(cells).float()
    drawn = inverse_cdf(row.expand(cells, len(row)), uniforms)
    counts = torch.bincount(drawn, minlength=len(row)).double()
    assert ((counts - cells * row.double().softmax(dim=0)).abs() <= 1 + 1e-3).all()
    assert (drawn.diff() >= 0).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=6), st.integers(1, 5))
def test_uniform_rows_do_not_depend_on_how_the_indices_are_split(indices, cut):
    whole = uniform_rows(0, 1, 2, indices, 5)
    parts = [uniform_rows(0, 1, 2, part, 5) for part in (indices[:cut], indices[cut:]) if part]
    assert torch.equal(torch.cat(parts), whole)
    for row, index in zip(whole, indices):
        assert torch.equal(row, uniform_rows(0, 1, 2, [index], 5)[0])


def test_uniform_rows_lie_in_the_half_open_interval_and_a_longer_row_begins_with_the_shorter():
    rows = uniform_rows(0, 0, 0, list(range(200)), 50)
    assert rows.shape == (200, 50)
    assert rows.min() > 0
    assert rows.max() <= 1
    assert rows.mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(uniform_rows(0, 0, 0, [0, 1, 2], 20), rows[:3, :20])


def test_uniform_rows_differ_with_each_number_of_their_address():
    base = uniform_rows(0, 0, 1, [0], 8)
    others = [uniform_rows(*address, 8) for address in ((1, 0, 1, [0]), (0, 1, 1, [0]), (0, 0, 2, [0]), (0, 0, 1, [1]))]
    assert all(not torch.equal(base, other) for other in others)


def test_uniform_rows_leave_the_global_random_numbers_alone():
    before = torch.get_rng_state()
    uniform_rows(0, 0, 0, [0], 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_mix_is_the_same_in_every_process():
    """Committed numbers: a change would silently change every run. The first is splitmix64's own first output, halved."""
    assert [mix(0), mix(1), mix(0, 0), mix(0, 0, 1, 0)] == [
        8147104208329303767, 5225608189600411232, 6017775124710473527, 3554033486235516013,
    ]  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=4))
def test_mix_is_a_seed_that_depends_on_every_number_and_their_order(numbers):
    seed = mix(*numbers)
    assert 0 <= seed < 2**63
    assert seed == mix(*numbers)
    for i in range(len(numbers)):
        assert seed != mix(*numbers[:i], numbers[i] + 1, *numbers[i + 1 :])
    assert seed != mix(*numbers, 0)
    if len(set(numbers)) > 1:
        assert mix(*sorted(numbers)) != mix(*sorted(numbers, reverse=True))


def test_mix_of_near_tuples_never_collides():
    seeds = {mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 20**3
