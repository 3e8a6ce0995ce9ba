"""The cross-attention in its streamed form against the textbook's keys and values (arXiv 2601.22664, eq. 3)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import of_rows
from torch import Tensor

from r2m_cli.maths.masking import length_mask
from r2m_cli.models.cross_attention import CrossAttention, blocks, pool
from r2m_cli.models.states import States

B, S, RM, POLICY, INNER = 4, 7, 6, 10, 5


def textbook(module: CrossAttention, rte: Tensor, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v W_o with a query, keys and values for every sequence and head."""
    rows, weights = [], []
    size = module.w_k.shape[1] // module.heads
    for b in range(len(rte)):
        q = module.w_q[0] if module.learned else rte[b] @ module.w_q
        k, v = hidden[b] @ module.w_k, hidden[b] @ module.w_v
        heads = []
        for head in range(module.heads):
            own = slice(head * size, (head + 1) * size)
            scores = (k[:, own] @ q[own] / math.sqrt(size)).masked_fill(~mask[b], -math.inf)
            a = scores.exp() / scores.exp().sum()
            heads.append(a @ v[:, own])
            weights.append(a)
        rows.append(torch.cat(heads) @ module.w_o)
    return torch.stack(rows), torch.stack(weights).view(len(rte), module.heads, -1)


def inputs(seed: int, lengths: tuple[int, ...] = (7, 1, 4, 3)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rte = torch.randn(B, RM, generator=generator, dtype=torch.float64) * 2
    hidden = torch.randn(B, S, POLICY, generator=generator, dtype=torch.float64) * 2
    return rte, hidden, length_mask(torch.tensor(lengths), S)


def adapter(seed: int = 0, **options) -> CrossAttention:
    return CrossAttention(RM, POLICY, INNER, seed, **options).double()


def streamed(module: CrossAttention, rte: Tensor, hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The module on a table of states; attention weights as a table too."""
    out, attention = module(rte, of_rows(hidden, mask))
    return out, own(attention, mask)


def own(attention: Tensor, mask: Tensor) -> Tensor:
    """Each sequence's weights of its own states, head by head. [B, heads, B * S] -> [B, heads, S]; the others' must be 0."""
    table = attention.view(len(mask), -1, *mask.shape)
    mine = torch.stack([rows[:, b] for b, rows in enumerate(table)])
    assert (table.sum(dim=(2, 3)) - mine.sum(dim=2)).abs().max() < 1e-6
    return mine


def random_mask(seed: int) -> Tensor:
    """Any positions, not just the first ones, and at least one in every row."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(B, S, generator=generator) < 0.5
    mask[torch.arange(B), torch.randint(S, (B,), generator=generator)] = True
    return mask


def test_by_hand():
    """Widths of one: q = 2, keys 1 and 0, so a = softmax(2 log 2, 0) = (4/5, 1/5) and A = 3 * 4/5 * log 2."""
    module = CrossAttention(1, 1, 1)
    with torch.no_grad():
        for weight, value in ((module.w_q, 2.0), (module.w_k, 1.0), (module.w_v, 3.0), (module.w_o, 1.0)):
            weight.fill_(value)
    hidden = torch.tensor([[[math.log(2)], [0.0], [99.0]]])
    out, attention = streamed(module, torch.ones(1, 1), hidden, torch.tensor([[True, True, False]]))
    assert attention[0, 0].tolist() == pytest.approx([0.8, 0.2, 0.0])
    assert out.item() == pytest.approx(3 * 0.8 * math.log(2))


@pytest.mark.parametrize(
    ("seed", "options"),
    [(0, {}), (1, {}), (2, {"heads": 5}), (3, {"learned": True}), (4, {"heads": 5, "learned": True})],
)
def test_forward_and_every_gradient_equal_the_textbook(seed, options):
    module, (rte, hidden, mask) = adapter(seed, **options), inputs(seed)
    upstream = torch.randn(B, RM, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    results = []
    for function in (lambda *args: streamed(module, *args), lambda *args: textbook(module, *args)):
        leaf = rte.clone().requires_grad_(True)
        out, attention = function(leaf, hidden, mask)
        inputs_of = list(module.parameters()) if module.learned else [*module.parameters(), leaf]
        results.append([out, attention, *torch.autograd.grad((out * upstream).sum(), inputs_of)])
    assert len(results[0]) == 7 - module.learned  # A, a, four weights, and the reward token if it asks
    for mine, oracle in zip(*results):
        torch.testing.assert_close(mine, oracle, atol=1e-10, rtol=1e-10)
    assert all(g.abs().max() > 1e-4 for g in results[0][2:])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_any_mask_equals_the_textbook(seed):
    module, (rte, hidden, _) = adapter(seed), inputs(seed)
    mask = random_mask(seed)
    for mine, oracle in zip(streamed(module, rte, hidden, mask), textbook(module, rte, hidden, mask)):
        torch.testing.assert_close(mine, oracle, atol=1e-10, rtol=1e-10)


def test_attention_is_a_distribution_over_the_valid_positions():
    module, (rte, hidden, mask) = adapter(), inputs(0)
    _, attention = streamed(module, rte, hidden, mask)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(B, 1).double())
    assert (attention[:, 0][~mask] == 0).all()
    assert (attention[:, 0][mask] > 0).all()


def test_a_learnt_query_does_not_look_at_the_reward_token():
    module, (rte, hidden, mask) = adapter(heads=5, learned=True), inputs(0)
    assert torch.equal(streamed(module, rte, hidden, mask)[0], streamed(module, -rte, hidden, mask)[0])


@pytest.mark.parametrize("junk", [0.0, 1e6])
def test_padding_is_inert(junk):
    """Neither what stands on masked positions nor how many there are changes value or gradient."""
    module, (rte, hidden, mask) = adapter(), inputs(1, (4, 1, 4, 3))

    def run(states, valid):
        out, _ = streamed(module, rte, states, valid)
        return [out, *torch.autograd.grad(out.square().sum(), list(module.parameters()))]

    expected = run(hidden[:, :4], mask[:, :4])
    for mine, oracle in zip(run(torch.where(mask[:, :, None], hidden, junk), mask), expected):
        torch.testing.assert_close(mine, oracle, atol=1e-10, rtol=1e-10)


def test_one_sequence_alone_gives_the_same_as_in_its_batch():
    module, (rte, hidden, mask) = adapter(), inputs(2)
    whole, _ = streamed(module, rte, hidden, mask)
    for b in range(B):
        length = int(mask[b].sum())
        alone, _ = streamed(module, rte[b : b + 1], hidden[b : b + 1, :length], mask[b : b + 1, :length])
        torch.testing.assert_close(alone[0], whole[b], atol=1e-12, rtol=0)


def test_pool_has_the_gradient_of_the_method_page():
    """du = sum_s a_s (h_s . g - m . g) h_s for an upstream gradient g on m."""
    _, hidden, mask = inputs(3)
    generator = torch.Generator().manual_seed(5)
    u = torch.randn(B, POLICY, generator=generator, dtype=torch.float64).requires_grad_(True)
    g = torch.randn(B, POLICY, generator=generator, dtype=torch.float64)
    m, a = pool(u, of_rows(hidden, mask))
    a = own(a, mask)[:, 0]
    (du,) = torch.autograd.grad((m * g).sum(), u)
    with torch.no_grad():
        for b in range(B):
            expected = torch.zeros(POLICY, dtype=torch.float64)
            for s in range(S):
                h = hidden[b, s]
                expected += a[b, s] * (h @ g[b] - m[b] @ g[b]) * h
            torch.testing.assert_close(du[b], expected, atol=1e-10, rtol=1e-10)


def test_pool_survives_huge_scores():
    _, hidden, mask = inputs(3)
    u = torch.full((B, POLICY), 1e6, dtype=torch.float64, requires_grad=True)
    m, a = pool(u, of_rows(hidden, mask))
    a = own(a, mask)
    m.sum().backward()
    assert m.isfinite().all()
    assert a.isfinite().all()
    assert u.grad.isfinite().all()


def test_the_seed_decides_the_weights_and_nothing_else_does():
    torch.manual_seed(1)
    first = CrossAttention(RM, POLICY, INNER, seed=3)
    torch.manual_seed(2)
    same, other = CrossAttention(RM, POLICY, INNER, seed=3), CrossAttention(RM, POLICY, INNER, seed=4)
    for a, b, c in zip(first.parameters(), same.parameters(), other.parameters()):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_the_global_random_numbers_are_left_alone():
    before = torch.get_rng_state()
    CrossAttention(RM, POLICY, INNER, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_shapes_and_size_of_the_initial_weights():
    module = CrossAttention(RM, POLICY, INNER)
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    assert shapes == {"w_q": (RM, INNER), "w_k": (POLICY, INNER), "w_v": (POLICY, INNER), "w_o": (INNER, RM)}
    assert CrossAttention(RM, POLICY, INNER, learned=True).w_q.shape == (1, INNER)
    for weight in module.parameters():
        assert weight.abs().max() <= 1 / math.sqrt(weight.shape[0])
        assert weight.std() > 0.1 / math.sqrt(weight.shape[0])


def test_blocks_are_cut_where_no_sequence_reads_across():
    # Two groups of two that share a prompt of 2 states each, the second group's rows swapped; then a row of its own.
    visible = torch.tensor(
        [
            [1, 1, 1, 0, 0, 0, 0, 0, 0],
            [1, 1, 0, 1, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 1, 1, 0, 1, 0],
            [0, 0, 0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 1],
        ]
    ).bool()
    expected = [(slice(0, 2), slice(0, 4)), (slice(2, 4), slice(4, 8)), (slice(4, 5), slice(8, 9))]
    assert blocks(visible) == expected
    # Two single sequences that read each other's states (feedback=shuffled) belong together.
    assert blocks(visible[[0, 4, 2]]) == [(slice(0, 1), slice(0, 3)), (slice(1, 3), slice(4, 9))]


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=3), min_size=1, max_size=4), st.randoms())
def test_pooling_in_blocks_is_pooling_over_everything(groups, random):
    """Groups of responses behind a prompt of two states, in any order: mixed rows are merely larger blocks."""
    rows, start = [], 0
    total = sum(2 + sum(group) for group in groups)
    for group in groups:
        at = start + 2
        for length in group:
            row = torch.zeros(total, dtype=torch.bool)
            row[start : start + 2] = row[at : at + length] = True
            rows.append(row)
            at += length
        start = at
    order = random.sample(range(len(rows)), len(rows))
    rows = [rows[i] for i in order]
    visible = torch.stack(rows)
    generator = torch.Generator().manual_seed(total)
    hidden = torch.randn(total, POLICY, generator=generator, dtype=torch.float64)
    u = torch.randn(len(rows), POLICY, generator=generator, dtype=torch.float64).requires_grad_(True)
    m, a = pool(u, States(hidden, visible))
    expected = (u @ hidden.T).masked_fill(~visible, -torch.inf).softmax(dim=1)
    torch.testing.assert_close(a, expected)
    torch.testing.assert_close(m, expected @ hidden)
    ours, theirs = (torch.autograd.grad(x.sin().sum(), u)[0] for x in (m, expected @ hidden))
    torch.testing.assert_close(ours, theirs)
