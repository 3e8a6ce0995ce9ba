"""Which groups go through a forward together: whole groups, each once, by tokens."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packs import flat

from r2m_cli.config.schema import RolloutConfig
from r2m_cli.distributed import comm
from r2m_cli.stages.annotate import annotate
from r2m_cli.stages.packing import balance, columns, group_tokens, pack, packs_needed, rows_per_forward, spread
from r2m_cli.stages.rollout import rollout

K = 3
ROLLOUT = RolloutConfig(temperature=0.8, max_new_tokens=8)


@pytest.fixture(scope="module")
def batch(make_actors, prompts):
    return rollout(make_actors(), prompts, range(4), K, ROLLOUT, 5, 0, 1)


loads = st.lists(st.integers(1, 60), min_size=1, max_size=20)


@settings(max_examples=80, deadline=None)
@given(loads, st.integers(1, 100))
def test_packs_hold_everything_once_and_no_more_than_the_budget(tokens, budget):
    count = packs_needed(tokens, budget)
    bins = spread(tokens, count)
    assert sorted(i for bin_ in bins for i in bin_) == list(range(len(tokens)))
    assert all(bins)
    assert max(sum(tokens[i] for i in bin_) for bin_ in bins) <= max(budget, *tokens)
    assert count >= -(-sum(tokens) // max(budget, *tokens))


@settings(max_examples=80, deadline=None)
@given(loads, st.integers(1, 4))
def test_lists_of_a_size_are_filled_and_about_equal(tokens, bins):
    tokens = tokens * bins
    size = len(tokens) // bins
    found = spread(tokens, bins, size)
    assert [len(bin_) for bin_ in found] == [size] * bins
    sums = [sum(tokens[i] for i in bin_) for bin_ in found]
    assert max(sums) - min(sums) <= max(tokens)


def test_by_hand():
    assert spread([5, 4, 3, 3, 3], 2) == [[0, 3], [1, 2, 4]]  # 5, then 4, 3 to the 4, 3 to the 5, 3 to the 7
    assert packs_needed([5, 4, 3, 3, 3], 9) == 3  # 8 + 10 is over
    assert packs_needed([5, 4, 3, 3, 3], 10) == 2
    assert packs_needed([50], 9) == 1
    assert rows_per_forward(100, [7, 30, 12]) == 3
    assert rows_per_forward(10, [30]) == 1


@pytest.mark.parametrize("budget", [1, 40, 10**6])
@pytest.mark.parametrize("mini_batches", [1, 2])
def test_the_packs_of_a_rollout(batch, budget, mini_batches):
    packs = pack(batch, budget, mini_batches)
    assert len(packs) == mini_batches
    tokens = group_tokens(batch)
    for number, parts in enumerate(packs):
        members = [group for part in parts for group in part.groups.tolist()]
        half = 4 // mini_batches
        assert sorted(members) == list(range(number * half, (number + 1) * half))
        for part in parts:
            assert len(part.groups) == 1 or sum(tokens[group] for group in part.groups.tolist()) <= budget
            for group, rows in zip(part.groups.tolist(), part.rows.view(-1, K).tolist(), strict=True):
                assert rows == [group * K + j for j in range(K)]
            assert torch.equal(part.sequences.tokens, batch.tokens[part.rows])


def test_a_groups_tokens_count_its_prompt_once(batch):
    for group, tokens in enumerate(group_tokens(batch)):
        rows = slice(group * K, (group + 1) * K)
        assert tokens == int(batch.prompt_lengths[group * K] + batch.response_lengths[rows].sum())


def test_columns_come_back_in_the_rollouts_order(batch):
    packs = flat(batch, 1)[::-1]
    assert columns(packs, [part.rows for part in packs]).tolist() == list(range(12))
    tables = [part.rows[:, None].expand(-1, 1 + i) for i, part in enumerate(packs)]
    got = columns(packs, tables, width=5)
    assert got.shape == (12, 5)
    assert got[:, 0].tolist() == list(range(12))
    assert (got[:, 4] == 0).all()


def as_ranks(monkeypatch, parts, rank):
    """This process as one of several, each of which holds one of the parts."""
    monkeypatch.setattr(comm, "rank", lambda: rank)
    monkeypatch.setattr(comm, "world_size", lambda: len(parts))
    monkeypatch.setattr(comm, "gather", lambda value: parts)


def test_ranks_exchange_groups_until_their_tokens_are_about_equal(make_actors, prompts, batch, monkeypatch):
    """Long prompts on one rank, short ones on the other; every group goes with all that belongs to it."""
    actors = make_actors()
    order = sorted(range(4), key=lambda i: group_tokens(batch)[i])
    parts = [rollout(actors, [prompts[i] for i in half], half, K, ROLLOUT, 5, 0, 1) for half in (order[:2], order[2:])]
    balanced = []
    for rank in (0, 1):
        as_ranks(monkeypatch, parts, rank)
        balanced.append(balance(parts[rank]))
    monkeypatch.undo()
    assert sorted(number for part in balanced for number in part.group_ids) == [0, 1, 2, 3]

    def gap(halves):
        first, second = (sum(group_tokens(half)) for half in halves)
        return abs(first - second)

    assert gap(balanced) < gap(parts)
    for part in balanced:
        assert len(part.prompts) == 2
        for i, number in enumerate(part.group_ids):
            assert part.prompts[i] == prompts[number]
            for j in range(K):
                here, there = i * K + j, number * K + j
                assert part.responses[here] == batch.responses[there]
                assert part.finished[here] == batch.finished[there]
                assert part.seeds[here] == batch.seeds[there]
                length = int(batch.prompt_lengths[there] + batch.response_lengths[there])
                assert int(part.prompt_lengths[here] + part.response_lengths[here]) == length
                assert torch.equal(part.tokens[here, :length], batch.tokens[there, :length])
    mine = annotate(actors, balanced[0], flat(balanced[0]), 0.6, 0.8).rewards
    whole = annotate(actors, batch, flat(batch), 0.6, 0.8).rewards
    torch.testing.assert_close(mine, whole[balanced[0].group_ids], atol=1e-5, rtol=1e-5)


def test_neighbours_that_must_not_part_move_together(make_actors, prompts, monkeypatch):
    actors = make_actors()
    parts = [rollout(actors, prompts, range(4 * r, 4 * r + 4), K, ROLLOUT, 5, 0, 1) for r in (0, 1)]
    for rank in (0, 1):
        as_ranks(monkeypatch, parts, rank)
        numbers = balance(parts[rank], together=2).group_ids
        assert [b - a for a, b in zip(numbers[::2], numbers[1::2])] == [1, 1]
        assert all(number % 2 == 0 for number in numbers[::2])
        assert balance(parts[rank], together=3) is parts[rank]


def test_one_process_has_nothing_to_exchange(batch):
    assert balance(batch) is batch
    assert replace(batch).number_of == [i for i in range(4) for _ in range(K)]
