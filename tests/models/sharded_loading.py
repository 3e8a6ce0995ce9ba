"""A rank that loads a model under ZeRO stage 3 and says what that took; for test_sharded_loading.py.

Arguments: folder of a small model, folder of the model, dtype, file to write (a number is added).
"""

import json
import sys
import time
from pathlib import Path
from threading import Thread

import torch

from r2m_cli.config.schema import EngineConfig
from r2m_cli.distributed import comm
from r2m_cli.distributed.engine import DTYPES
from r2m_cli.distributed.shards import all_finite, layer_by_layer
from r2m_cli.distributed.zero import start_process_group
from r2m_cli.models.loading import load_causal_lm
from r2m_cli.models.policy import Policy


def resident() -> int:
    """Bytes of memory that are this process's own: pages of a file that is mapped can be dropped, and are shared."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])


def watch(peak: list[int]) -> None:
    while True:
        peak[0] = max(peak[0], resident())
        time.sleep(0.001)


def main(small: str, folder: str, dtype: str, target: str) -> None:
    torch.set_num_threads(1)
    cpu, config = torch.device("cpu"), EngineConfig(kind="zero", stage=3, dtype=dtype)
    start_process_group(config, cpu)

    def load(name: str) -> Policy:
        policy = Policy(load_causal_lm(name, "policy.path", DTYPES[dtype], cpu, config))
        assert policy.agrees_with_its_model()
        assert all_finite(policy)
        _ = policy.decoder
        return policy

    load(small)  # what is imported on the way is no part of the peak
    before = resident()
    peak = [before]
    Thread(target=watch, args=(peak,), daemon=True).start()
    policy = load(folder)
    said = {"peak": peak[0] - before, "unshared": policy.unshared, "decoder": policy.decoder.__name__}
    said["held"] = sum(p.ds_tensor.numel() for p in policy.parameters())
    with torch.no_grad(), layer_by_layer(policy):
        said["logits"] = policy.lm(input_ids=torch.tensor([[3, 1, 4, 1, 5]])).logits.float().tolist()
    assert all(p.numel() == 0 for p in policy.parameters())
    with torch.no_grad():  # one bad number in the shard of the last rank alone
        shard = list(policy.parameters())[-2].ds_tensor
        if comm.rank() == comm.world_size() - 1:
            shard[0] = torch.nan
    said["finite"] = all_finite(policy)
    Path(f"{target}{comm.rank()}").write_text(json.dumps(said))
    comm.barrier()


main(*sys.argv[1:])
