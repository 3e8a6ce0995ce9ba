"""Packed rows against padded ones: the same numbers forward and backward, for every architecture and any lengths."""

import copy
import functools

import pytest
import torch
from families import DROPOUT, FAMILIES, SMALL, small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import rows_of
from tokenizers import Tokenizer, models
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)

from r2m_cli.data.template import ChatFormat
from r2m_cli.models import policy as policy_module
from r2m_cli.models.critic import Critic
from r2m_cli.models.policy import Policy
from r2m_cli.models.reward_backbone import RewardBackbone, common_prefix, find_head, frozen_head
from r2m_cli.models.reward_model import RewardModel
from r2m_cli.models.sequences import Sequences, SharedPrefix
from r2m_cli.models.shared_attention import NAMES

VOCABULARY = 29


@functools.cache
def built(name: str, scorer: bool = False):
    return small_model(name, VOCABULARY, scorer)


def groups(prompts: list[int], responses: list[list[int]], seed: int = 1) -> Sequences:
    """Random sequences, each group behind a prompt of its own."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n: int) -> torch.Tensor:
        return torch.randint(3, VOCABULARY, (n,), generator=generator)

    rows = []
    for p, group in zip(prompts, responses):
        prompt = tokens(p)
        rows += [torch.cat([prompt, tokens(r)]) for r in group]
    k = len(responses[0])
    prompt_lengths = torch.tensor(prompts).repeat_interleave(k)
    lengths = torch.tensor([r for group in responses for r in group])
    return Sequences(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), prompt_lengths, lengths, k)


PROMPTS, RESPONSES = [7, 3, 12], [[5, 1, 8], [2, 9, 3], [1, 1, 1]]


def both(module: nn.Module, run, seed: int = 3):
    """What `run` gives, and the gradient of a weighted sum of it, with shared prompts and with padded rows."""
    found = []
    assert not module.unshared
    for reason in ("", "asked"):
        module.unshared = reason
        output = run(module)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn(output.shape, generator=generator)
        module.zero_grad()
        (output * weights).sum().backward()
        found.append([output, *(p.grad for p in module.parameters() if p.grad is not None)])
    module.unshared = ""
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_states_and_gradients_equal_those_of_padded_rows(family):
    sequences, policy = groups(PROMPTS, RESPONSES), Policy(copy.deepcopy(built(family)))
    states = []

    def run(module):
        output = module(sequences, 0.7, with_entropy=True)
        states.append(rows_of(output.states))
        return output.logp + 0.1 * output.entropy

    shared, padded = both(policy, run)
    assert len(shared) > 10
    for mine, oracle in zip(shared, padded, strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)
    assert all(g.abs().max() > 1e-4 for g in shared[1:3])
    for mine, oracle, length in zip(*states, sequences.lengths.tolist(), strict=True):
        assert len(mine) == length
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
@torch.no_grad()
def test_flex_attention_gives_the_same_numbers(family):
    """It can also cap scores, as Gemma 2 wants it."""
    sequences = groups(PROMPTS, RESPONSES)
    policy = Policy(copy.deepcopy(built(family)).requires_grad_(False), attention="flex")
    assert not policy.unshared
    assert policy.lm.config._attn_implementation.endswith("flex")
    shared = policy(sequences, 0.7)
    policy.lm.set_attn_implementation("eager")
    policy.unshared = "asked"
    padded = policy(sequences, 0.7)
    torch.testing.assert_close(shared.logp, padded.logp, atol=1e-4, rtol=1e-4)
    for mine, oracle in zip(rows_of(shared.states), rows_of(padded.states), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


def test_where_flex_has_no_backward_a_model_that_trains_uses_sdpa_and_says_why(capsys):
    policy = Policy(copy.deepcopy(built("llama")), attention="flex")
    assert not policy.unshared
    assert policy.lm.config._attn_implementation == NAMES["sdpa"]
    said = capsys.readouterr().out
    assert "engine.attention=flex cannot be used" in said
    assert "does not support backward on CPU" in said
    assert said.rstrip().endswith("sdpa instead")
    policy(groups(PROMPTS, RESPONSES), 0.7).logp.sum().backward()


@pytest.mark.parametrize("attention", ["sdpa", "padded"])
def test_a_reference_takes_over_what_its_policy_found_out(attention):
    policy = Policy(copy.deepcopy(built("llama")), attention=attention)
    reference = Policy(copy.deepcopy(built("llama")), attention=attention, like=policy)
    assert reference.unshared == policy.unshared
    assert reference.lm.config._attn_implementation == policy.lm.config._attn_implementation
    sequences = groups(PROMPTS, RESPONSES)
    assert torch.equal(reference(sequences, 0.7).logp, policy(sequences, 0.7).logp)


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_equal_those_of_padded_rows(family):
    """Rows of a group share what they have in common; the last ones are equal, or one begins the other."""
    sequences = groups(PROMPTS, RESPONSES)
    tokens, lengths = sequences.tokens.clone(), sequences.prompt_lengths + sequences.response_lengths
    tokens[4] = tokens[3]  # of other lengths: one begins the other
    tokens[7] = tokens[6]
    backbone = RewardBackbone(copy.deepcopy(built(family, scorer=True)))
    shared, padded = both(backbone, lambda module: module(tokens, lengths, 3))
    for mine, oracle in zip(shared, padded, strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_values_equal_those_of_padded_rows(family):
    critic = Critic(copy.deepcopy(built(family)))
    torch.nn.init.normal_(critic.value_head.weight)
    shared, padded = both(critic, lambda module: module(groups(PROMPTS, RESPONSES)))
    for mine, oracle in zip(shared, padded, strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


lengths = st.integers(1, 4).flatmap(
    lambda k: st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 7), min_size=k, max_size=k)), min_size=1, max_size=4
    )
)


SOME = st.sampled_from(["llama", "gpt_neox", "gpt2", "gemma3_text", "mistral, window"])


@settings(max_examples=40, deadline=None)
@given(lengths, SOME)
def test_any_groups_of_any_lengths_empty_responses_included(drawn, family):
    prompts, responses = [p for p, _ in drawn], [r for _, r in drawn]
    if not any(map(sum, responses)):
        responses[0][0] = 1
    sequences, states = groups(prompts, responses), []

    def run(module):
        output = module(sequences, 0.7, with_entropy=True)
        states.append(rows_of(output.states))
        return output.logp + 0.1 * output.entropy

    for mine, oracle in zip(*both(Policy(built(family)), run), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)
    for mine, oracle in zip(*states, strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(lengths, SOME)
def test_rewards_of_any_groups_empty_responses_included(drawn, family):
    sequences = groups([p for p, _ in drawn], [r for _, r in drawn])
    read = sequences.prompt_lengths + sequences.response_lengths
    backbone = RewardBackbone(built(family, scorer=True))
    for mine, oracle in zip(*both(backbone, lambda m: m(sequences.tokens, read, sequences.group_size)), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(lengths)
def test_a_packed_row_holds_each_prompt_once_and_no_padding(drawn):
    sequences = groups([p for p, _ in drawn], [r for _, r in drawn])
    layout = SharedPrefix(sequences.tokens, sequences.prompt_lengths, sequences.lengths, sequences.group_size)
    read = (sequences.lengths - sequences.prompt_lengths).clamp_min(0)
    prompts = sequences.prompt_lengths if sequences.group_size > 1 else sequences.lengths
    if sequences.group_size == 1:
        read = read * 0
    assert len(layout.tokens) == int(prompts[:: sequences.group_size].sum() + read.sum())
    for b, length in enumerate(sequences.lengths.tolist()):
        at = layout.at(torch.full((length,), b), torch.arange(length))
        assert torch.equal(layout.tokens[at], sequences.tokens[b, :length])
        assert torch.equal(layout.positions[at], torch.arange(length))
        assert torch.equal(layout.visible(sequences.lengths)[b].nonzero().squeeze(1).sort().values, at.sort().values)


def test_a_table_of_positions_need_not_hold_the_row_of_all_groups():
    """GPT-2's holds the longest sequence and not one position more: every sequence's positions are its own."""
    sequences = groups(PROMPTS, RESPONSES)
    longest = int(sequences.lengths.max())
    policy = Policy(small_model("gpt2", VOCABULARY, max_position_embeddings=longest))
    assert policy.lm.transformer.wpe.num_embeddings == longest < len(sequences.layout(shared=True).tokens) / 3
    for mine, oracle in zip(*both(policy, lambda module: module(sequences, 0.7).logp), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("family", DROPOUT)
def test_dropout_that_a_model_comes_with_stays_asleep(family, checkpointed):
    """Awake it would change the numbers from call to call, and attention that drops cannot share."""
    model = small_model(family, VOCABULARY, **DROPOUT[family])
    policy, sequences = Policy(model, gradient_checkpointing=checkpointed), groups(PROMPTS, RESPONSES)
    for mine, oracle in zip(*both(policy, lambda module: module(sequences, 0.7).logp), strict=True):
        torch.testing.assert_close(mine, oracle, atol=1e-4, rtol=1e-4)
    model.train()
    assert Policy(model, gradient_checkpointing=checkpointed).unshared == "", "put to sleep when it is taken"


def test_a_reward_models_tokenizer_may_merge_the_prompts_end_with_the_replys_beginning():
    """Character by character, but "b c" is one token: one reply leaves the prompt as it was, another eats its end."""
    pieces = ["<pad>", "<unk>", "<eos>", " ", "a", "b", "c", "d", " c", "b c"]
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [(" ", "c"), ("b", " c")]))
    chat = ChatFormat(
        PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token="<eos>")
    )
    asked = [({"role": "user", "content": text},) for text in ("a b", "d d a b") for _ in range(4)]
    replies = ["c d", "d c", "", "d", "c", "c", "c d d", "c a"]
    ids = [chat.conversation_ids(*row) for row in zip(asked, replies)]
    prompt = chat.prompt_ids(asked[0])
    assert [row[: len(prompt)] == prompt for row in ids[:4]] == [False, True, True, True]

    backbone = RewardBackbone(small_model("llama", VOCABULARY, scorer=True))
    head = find_head(backbone.classifier)
    model = RewardModel(backbone, frozen_head(head), None, chat, max_tokens=64)
    rewards = []
    for backbone.unshared in ("", "asked"):
        rewards.append(model.score(asked, replies, torch.device("cpu")))
    alone = [backbone.classifier(torch.tensor([row])).logits.squeeze() for row in ids]
    torch.testing.assert_close(rewards[0], rewards[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rewards[0], torch.stack(alone).detach(), atol=1e-5, rtol=1e-5)
    assert rewards[0].std() > 0.01


def test_the_common_prefix_is_told_by_the_tokens():
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 8], [4, 4, 4, 4], [4, 4, 4, 4], [1, 2, 3, 0], [2, 2, 3, 0]])
    got = common_prefix(tokens, torch.tensor([4, 4, 4, 4, 3, 3]), 2)
    assert got.tolist() == [2, 2, 3, 3, 0, 0]  # equal rows keep one token of their own each


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_the_lm_head_in_chunks_gives_the_same_numbers(monkeypatch, size):
    """Also through gradient checkpoints, which compute a chunk's logits once more in the backward."""
    sequences, results = groups(PROMPTS, RESPONSES), []
    rows = []
    for limit in (policy_module.LOGITS, size * VOCABULARY):
        monkeypatch.setattr(policy_module, "LOGITS", limit)
        policy = Policy(copy.deepcopy(built("llama")))
        policy.lm.lm_head.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        output = policy(sequences, 0.7, with_entropy=True)
        (output.logp.sum() + output.entropy.sum()).backward()
        results.append([output.logp, output.entropy, *(p.grad for p in policy.parameters())])
    for mine, whole in zip(*results, strict=True):
        torch.testing.assert_close(mine, whole, atol=1e-5, rtol=1e-5)
    assert max(rows[1:]) == min(size, rows[0])


def test_log_probabilities_and_entropies_of_a_bf16_model_are_fp32():
    """From the same logits in double precision they differ as fp32 does, not as bf16 does, whose steps are a thousand times as wide."""
    sequences, policy = groups(PROMPTS, RESPONSES), Policy(copy.deepcopy(built("llama")).to(torch.bfloat16))
    seen = []
    policy.lm.lm_head.register_forward_hook(lambda module, args, logits: seen.append(logits))
    output = policy(sequences, 0.7, with_entropy=True)
    (logits,) = seen
    assert logits.dtype == torch.bfloat16
    assert output.logp.dtype == output.entropy.dtype == torch.float32
    exact = (logits.double() / 0.7).log_softmax(dim=1)
    logp = exact.gather(1, sequences.response_tokens[2][:, None]).squeeze(1)
    mask = sequences.response_mask
    torch.testing.assert_close(output.logp[mask].double(), logp, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.entropy[mask].double(), -(exact.exp() * exact).sum(dim=1), atol=1e-5, rtol=1e-5)
    whole = Policy(copy.deepcopy(built("llama")))(sequences, 0.7)
    assert (output.logp - whole.logp).abs().max() < 0.1  # what bf16 weights and states cost


# --- models that cannot ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gemma2", "bloom"])
def test_an_architecture_that_cannot_share_goes_on_as_it_was(family):
    """Gemma 2 caps its attention's logits, which the kernel cannot; BLOOM's attention has an interface of its own."""
    torch.manual_seed(0)
    accepted = AutoConfig.for_model(family)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(family, vocab_size=VOCABULARY, **{k: v for k, v in SMALL.items() if hasattr(accepted, k)})
    ).eval()
    before, policy = model.config._attn_implementation, Policy(model)
    assert policy.unshared
    assert model.config._attn_implementation == before
    sequences = groups(PROMPTS, RESPONSES)
    with torch.no_grad():
        got = policy(sequences, 1.0).logp
        for b in range(len(got)):
            p, r = int(sequences.prompt_lengths[b]), int(sequences.response_lengths[b])
            ids = sequences.tokens[b, : p + r]
            log_p = model(ids[None]).logits[0].log_softmax(dim=1)
            expected = log_p[torch.arange(p - 1, p + r - 1), ids[p:]]
            torch.testing.assert_close(got[b, :r], expected, atol=1e-5, rtol=1e-5)


def test_a_model_whose_states_come_out_otherwise_is_found_out():
    """Nothing raises here, only the numbers differ: positions that do not restart behind the prompt."""
    model = copy.deepcopy(built("llama"))
    body, inner = model.model, model.model.forward

    def forward(*args, position_ids=None, **kwargs):
        return inner(*args, **kwargs)

    body.forward = forward
    assert Policy(model).unshared == "its states differ"


def test_an_encoder_reads_padded_rows():
    small = {k: v for k, v in SMALL.items() if k != "head_dim"}
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **small, num_labels=1)
    torch.manual_seed(0)
    assert RewardBackbone(AutoModelForSequenceClassification.from_config(config).eval()).unshared


def test_padded_rows_may_be_asked_for():
    model = small_model("llama", VOCABULARY)
    before = model.config._attn_implementation
    for module in (
        Policy(model, attention="padded"), Critic(model, attention="padded"),
        RewardBackbone(small_model("llama", VOCABULARY, scorer=True), attention="padded"),
    ):  # fmt: skip
        assert module.unshared == "engine.attention=padded"
    assert model.config._attn_implementation == before
