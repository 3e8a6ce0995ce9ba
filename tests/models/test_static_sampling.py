"""The sampler of fixed shapes draws what the plain loop draws, also where its steps are repeated without their Python."""

import copy
import functools

import pytest
import torch
from families import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded import Recorded, Recorder
from torch import nn

from r2m_cli.models.decoding import agrees
from r2m_cli.models.generate import sample, uniform_rows
from r2m_cli.models.graphs import CannotCapture
from r2m_cli.models.policy import Policy
from r2m_cli.models.shared_attention import attend
from r2m_cli.models.static_decoding import BLOCK, StaticDecoder
from r2m_cli.models.static_sampling import CHECK, LOGITS, StaticSampler, bucket

VOCABULARY, PAD, WIDTH = 29, 0, 20
ENDS = {2, 3}
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [8], [4, 5, 9]]  # longer and shorter than the windows
GEMMA2 = {"sliding_window": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
FAMILIES = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "mistral, window": {}, "qwen2, window": {}, "gemma": {}, "gemma2": GEMMA2,
    "gemma3_text": {}, "gpt_neox": {}, "gpt2": {}, "smollm3": {"sliding_window": 4},
    "llama4_text": {"attention_chunk_size": 6, "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0], "moe_layers": [], "intermediate_size_mlp": 24, "num_local_experts": 2},
}  # fmt: skip


@functools.cache
def policy(family: str, attention: str = "sdpa") -> Policy:
    return Policy(small_model(family, VOCABULARY, **FAMILIES[family]), attention=attention)


class Graphs:
    """A sampler whose captures are kept to look at."""

    def __init__(self, memory: float = float("inf")):
        self.made: list[Recorded] = []
        self.sampler = StaticSampler(self._make, memory)

    def _make(self) -> Recorded:
        self.made.append(Recorded())
        return self.made[-1]

    def count(self, what: str) -> int:
        return sum(getattr(made, what) for made in self.made)


def draws(rows: int, step: int = 1, width: int = WIDTH) -> torch.Tensor:
    return uniform_rows(0, 0, step, list(range(rows)), width)


# padded: the attention is transformers' own
@pytest.mark.parametrize(
    ("family", "attention"), [*((family, "sdpa") for family in FAMILIES), ("llama", "padded"), ("gemma2", "padded")]
)
def test_the_samples_are_those_of_the_plain_loop(family, attention):
    """Uneven prompts, K of 1 and 4, rows that end early and buffers that shrink, greedy too; a rollout after a rollout."""
    model, graphs = policy(family, attention), Graphs()
    lengths = set()
    for group_size, temperature, step in [(4, 0.7, 1), (1, 1.0, 3), (4, 0.0, 4), (4, 0.7, 5)]:
        uniforms = draws(len(PROMPTS) * group_size, step)
        expected = sample(model, PROMPTS, group_size, uniforms, temperature, ENDS, PAD)
        assert graphs.sampler.sample(model, PROMPTS, group_size, uniforms, temperature, ENDS, PAD) == expected
        lengths |= {len(ids) for ids in expected}
    assert min(lengths) < CHECK < max(lengths)
    assert graphs.count("replays") > graphs.count("records") > len(graphs.made) == 3  # several numbers of rows each


@pytest.mark.parametrize("family", FAMILIES)
def test_its_states_are_those_of_whole_texts(family):
    assert agrees(StaticDecoder, policy(family).lm)


@pytest.mark.parametrize("family", ["mamba", "lfm2"])
def test_a_model_with_a_memory_of_its_own_kind_is_found_out(family):
    more = {"state_size": 4} if family == "mamba" else {"layer_types": ["conv", "full_attention"]}
    assert not agrees(StaticDecoder, small_model(family, VOCABULARY, **more))


def test_graphs_are_recorded_once_and_hold_the_weights_of_the_moment():
    """An optimiser step changes the weights in place: the same graphs then draw from the new ones."""
    model, graphs = Policy(copy.deepcopy(policy("llama").lm)), Graphs()
    uniforms = draws(12)
    first = graphs.sampler.sample(model, PROMPTS, 4, uniforms, 1.0, set(), PAD)
    assert (graphs.count("warm_ups"), graphs.count("records")) == (1, 1)
    optimiser = torch.optim.SGD(model.parameters(), lr=10.0)
    nn.functional.cross_entropy(model.lm(torch.tensor([[4, 5]])).logits[0], torch.tensor([6, 7])).backward()
    optimiser.step()
    second = graphs.sampler.sample(model, PROMPTS, 4, uniforms, 1.0, set(), PAD)
    assert second == sample(model, PROMPTS, 4, uniforms, 1.0, set(), PAD)
    assert second != first
    assert (graphs.count("warm_ups"), graphs.count("records")) == (1, 1)
    assert graphs.count("replays") == (WIDTH - 2) + (WIDTH - 1)


def test_weights_that_lie_elsewhere_are_captured_anew():
    """What ZeRO-3 gathers lies elsewhere each time; a graph would read the memory of before."""
    model, graphs = Policy(copy.deepcopy(policy("llama").lm)), Graphs()
    graphs.sampler.sample(model, PROMPTS, 4, draws(12), 1.0, set(), PAD)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.1
    drawn = graphs.sampler.sample(model, PROMPTS, 4, draws(12), 1.0, set(), PAD)
    assert drawn == sample(model, PROMPTS, 4, draws(12), 1.0, set(), PAD)
    assert len(graphs.made) == 2


def test_a_rollout_finds_nothing_of_the_one_before():
    """Longer prompts, then shorter ones in the same buffers; a rollout that ended early, then one that does not."""
    model, graphs = policy("llama"), Graphs()
    for prompts in ([[5] * 20, [6] * 9], [[7], [8, 9]], [[10] * 12, [11]]):
        for ends in (ENDS, ENDS):
            got = graphs.sampler.sample(model, prompts, 4, draws(8), 1.0, ends, PAD)
            assert got == sample(model, prompts, 4, draws(8), 1.0, ends, PAD)
    assert len(graphs.made) == 1
    assert graphs.sampler.sample(model, [[5], [6]], 4, draws(8), 1.0, set(), PAD) == sample(
        model, [[5], [6]], 4, draws(8), 1.0, set(), PAD
    )


def test_the_rows_shrink_to_the_next_power_of_two():
    """Which tokens are read, from the outside: the input of every forward."""
    model, read = policy("llama"), []
    hook = model.lm.model.register_forward_pre_hook(lambda m, a, k: read.append(len(k["input_ids"])), with_kwargs=True)
    eager = StaticSampler(lambda: Plain(), 0.0)
    drawn = eager.sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD)
    hook.remove()
    lengths = [len(ids) for ids in drawn]
    expected, rows = [3], 12
    for done in range(1, WIDTH):
        if done % CHECK == 0:
            running = sum(
                length > done or (length == done and ids[-1] not in ENDS) for length, ids in zip(lengths, drawn)
            )
            if not running:
                break
            rows = min(rows, bucket(running))
        expected.append(rows)
    assert read == expected
    assert len(set(expected)) > 2


class Plain:
    """A capture that calls the step again."""

    def warm_up(self, step):
        step()

    def record(self, step):
        return step


def test_buffers_that_are_too_large_to_stay_are_freed():
    model = policy("llama")
    buffers = 2 * 2 * 4 * 2 * BLOCK * 4 * 4  # layers, keys and values, rows, heads, columns, head size, bytes
    one = buffers + LOGITS * 4 * VOCABULARY * 4
    for memory, kept in [(0, 1), (one - 1, 1), (one, 1), (2 * one, 2)]:
        graphs = Graphs(memory)
        for temperature in (1.0, 0.5, 1.0, 0.5):
            graphs.sampler.sample(model, [[5], [6]], 2, draws(4, width=4), temperature, set(), PAD)
        assert len(graphs.made) == (2 if kept == 2 else 4)


def test_what_cannot_be_captured_falls_back_to_the_plain_loop_with_a_note(capsys):
    """A model that looks at its numbers on the host: no graph can do that."""
    model, graphs = Policy(copy.deepcopy(policy("llama").lm)), Graphs()
    model.lm.model.norm.register_forward_hook(lambda m, a, out: out * (2.0 if out.sum().item() > 1e9 else 1.0))
    with pytest.raises(CannotCapture):
        graphs.sampler.sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD)
    plain = sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD)
    capsys.readouterr()
    model.static_sampler = graphs.sampler
    assert sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD) == plain
    assert "note: decoding with the policy cannot be captured as a CUDA graph (" in capsys.readouterr().out
    assert model.static_sampler is None
    assert sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD) == plain
    assert not capsys.readouterr().out


def test_sample_uses_it_where_there_is_one():
    model, graphs = Policy(policy("llama").lm), Graphs()
    assert model.static_sampler is None  # on a CPU
    plain = sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD)
    model.static_sampler = graphs.sampler
    assert sample(model, PROMPTS, 4, draws(12), 1.0, ENDS, PAD) == plain
    assert graphs.count("replays")


@pytest.mark.parametrize("width", [1, 2, 3, CHECK, CHECK + 1])
def test_short_responses(width):
    model = policy("llama")
    for ends in (set(), ENDS, set(range(VOCABULARY))):
        got = Graphs().sampler.sample(model, [[5, 6]], 2, draws(2, width=width), 1.0, ends, PAD)
        assert got == sample(model, [[5, 6]], 2, draws(2, width=width), 1.0, ends, PAD)


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.lists(st.integers(4, VOCABULARY - 1), min_size=1, max_size=9), min_size=1, max_size=5),
    st.integers(1, 5), st.integers(1, 20), st.integers(0, 1000), st.sampled_from([0.0, 0.5, 1.5]),
    st.sets(st.integers(0, VOCABULARY - 1), max_size=6),
)  # fmt: skip
def test_any_prompts_any_ends(prompts, group_size, width, step, temperature, ends):
    model, uniforms = policy("llama"), draws(len(prompts) * group_size, step, width)
    got = StaticSampler(Plain, 0.0).sample(model, prompts, group_size, uniforms, temperature, ends, PAD)
    assert got == sample(model, prompts, group_size, uniforms, temperature, ends, PAD)


def test_no_step_makes_keys_or_values_once_per_query_head():
    """4 query heads share 2 key heads: a copy of the keys for every query head would be as large as this."""
    model = policy("qwen3")
    assert not model.unshared
    decoder = StaticDecoder(model.lm.model, PROMPTS, 4, PAD)
    rows, heads = 12, model.lm.config.num_attention_heads
    with torch.no_grad(), Recorder() as recorder:
        decoder.forward()
    made = [result for *_, result in recorder.calls if isinstance(result, torch.Tensor)]
    assert max(tensor.numel() for tensor in made) < rows * heads * decoder.columns * model.lm.config.head_dim


def test_one_token_attends_as_transformers_own_attention_does():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 11, 8), torch.randn(3, 2, 11, 6)
    mask = torch.rand(3, 1, 1, 11) < 0.5
    mask[..., 0] = True
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1), mask, scale=0.3
    ).transpose(1, 2)
    for bias in (mask, torch.zeros(3, 1, 1, 11).masked_fill(~mask, -1e9)):
        torch.testing.assert_close(attend(module, q, k, v, bias, scaling=0.3)[0], expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", FAMILIES)
def test_cuda_graphs_draw_the_plain_loops_tokens(family, capsys):
    model = Policy(copy.deepcopy(policy(family).lm)).to("cuda")
    assert model.static_sampler is not None
    for step in (1, 2):
        drawn = sample(model, PROMPTS, 4, draws(12, step), 1.0, ENDS, PAD)
        sampler, model.static_sampler = model.static_sampler, None
        assert sampler is not None, capsys.readouterr().out  # it fell back
        assert drawn == sample(model, PROMPTS, 4, draws(12, step), 1.0, ENDS, PAD)
        model.static_sampler = sampler


def test_bucket():
    assert [bucket(rows) for rows in (1, 2, 3, 4, 5, 8, 9, 64, 65)] == [1, 2, 4, 4, 8, 8, 16, 64, 128]
