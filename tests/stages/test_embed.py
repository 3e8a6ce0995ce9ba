"""Embeddings of pairs: the backbone's own, and after a crash none is computed twice."""

from pathlib import Path

import pytest
import torch

from r2m_cli.fitting import embed
from r2m_cli.fitting.unfinished import Part, Unfinished

PAIRS = [([3 + i % 5] * (4 + i % 3), [4 + i % 4] * (3 + i % 4)) for i in range(10)]


class Crash(Exception):
    pass


@pytest.fixture
def backbone(make_actors):
    return make_actors(feedback=False, reference=False).reward.backbone


def test_rows_are_the_backbones_own_in_the_order_of_the_pairs(backbone, tmp_path: Path) -> None:
    found = embed.embedded(backbone, PAIRS, 0, 3, Part(None, tmp_path), "embedding")
    for pair, row in zip(PAIRS, found):
        for side, ids in enumerate(pair):
            alone = backbone(torch.tensor([ids]), torch.tensor([len(ids)]), 1)
            torch.testing.assert_close(row[side], alone[0].float(), rtol=1e-4, atol=1e-5)


def test_a_crash_costs_the_batch_that_it_hit_and_changes_no_bit(
    backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("r2m_cli.fitting.unfinished.EVERY", 0.0)
    monkeypatch.setattr("r2m_cli.fitting.unfinished.SHARE", 0)
    whole = embed.embedded(backbone, PAIRS, 0, 2, Part(None, tmp_path), "embedding")
    calls: list[int] = []

    def count(module, args, output) -> None:
        calls.append(len(args[0]) // 2)
        if len(calls) == 4:
            raise Crash

    hook = backbone.register_forward_hook(count)
    kept = Unfinished(tmp_path / "kept", tmp_path)
    with pytest.raises(Crash):
        embed.embedded(backbone, PAIRS, 0, 2, kept.part("pairs", PAIRS), "embedding")
    again = embed.embedded(backbone, PAIRS, 0, 2, kept.part("pairs", PAIRS), "embedding")
    assert torch.equal(again, whole)
    assert calls == [2, 2, 2, 2, 2, 2], "three batches, the crash, and the two that were left"
    others = [(chosen, [*rejected, 3]) for chosen, rejected in PAIRS]
    embed.embedded(backbone, others, 0, 2, kept.part("pairs", others), "embedding")
    assert len(calls) == 11, "other pairs are embedded anew"
    hook.remove()


def test_a_torn_file_is_embedded_again(backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2m_cli.fitting.unfinished.EVERY", 0.0)
    monkeypatch.setattr("r2m_cli.fitting.unfinished.SHARE", 0)
    part = Unfinished(tmp_path / "kept", tmp_path).part("pairs", PAIRS)
    whole = embed.embedded(backbone, PAIRS, 0, 2, part, "embedding")
    files = sorted((tmp_path / "kept").rglob("rows_*.safetensors"))
    torn = next(file for file in files if file.name == "rows_4.safetensors")
    torn.write_bytes(torn.read_bytes()[:40])
    assert torch.equal(embed.embedded(backbone, PAIRS, 0, 2, part, "embedding"), whole)
