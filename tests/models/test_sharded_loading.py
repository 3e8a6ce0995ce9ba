"""ZeRO stage 3: a model is in shards from the start, and is tried so; real DeepSpeed on gloo ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from r2m_cli.distributed.engine import DTYPES
from r2m_cli.models.loading import load_causal_lm

WORKER = Path(__file__).with_name("sharded_loading.py")
LAYERS = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 3}


def saved(folder: Path, layers: int) -> int:
    """Write a random Llama; gives the number of its parameters."""
    config = LlamaConfig(vocab_size=64, num_hidden_layers=layers, tie_word_embeddings=False, **LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


@pytest.mark.parametrize(
    ("ranks", "dtype"), [(2, "bf16"), *(pytest.param(4, d, marks=pytest.mark.slow) for d in DTYPES)]
)
def test_no_rank_holds_a_whole_model_while_it_loads_and_is_tried(tmp_path: Path, ranks: int, dtype: str) -> None:
    saved(tmp_path / "small", 1)
    size = saved(tmp_path / "model", 12)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", str(WORKER),
        str(tmp_path / "small"), str(tmp_path / "model"), dtype, str(tmp_path / "rank"),
    ]  # fmt: skip
    # The allocator gives back at once what is freed, so that the peak is what is held at one time.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = [json.loads((tmp_path / f"rank{rank}").read_text()) for rank in range(ranks)]

    whole = size * DTYPES[dtype].itemsize
    for rank in said:
        assert size / ranks <= rank["held"] < 1.01 * size / ranks
        assert rank["peak"] < whole * (1 / ranks + 0.35)  # its shards, and a layer or two
        assert (rank["unshared"], rank["decoder"]) == ("", "SharedPrefill")
        assert not rank["finite"]
    model = load_causal_lm(str(tmp_path / "model"), "policy.path", DTYPES[dtype])
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[3, 1, 4, 1, 5]])).logits.float()
    for rank in said:
        assert torch.equal(torch.tensor(rank["logits"]), expected)
