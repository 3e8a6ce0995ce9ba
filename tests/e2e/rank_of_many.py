"""One rank that runs several finished configurations in one process group: starting ranks costs seconds each time.

`python -m torch.distributed.run --nproc-per-node=2 rank_of_many.py RUN_DIR ...`; each RUN_DIR holds a config.yaml.
"""

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from r2m_cli.config.check import typed
from r2m_cli.launch.worker import run_task

if __name__ == "__main__":
    from r2m_cli.distributed.zero import start_process_group

    run_dirs = [Path(argument) for argument in sys.argv[1:]]
    configs = [typed(OmegaConf.load(run_dir / "config.yaml")) for run_dir in run_dirs]
    start_process_group(configs[0].engine, torch.device("cpu"))
    for config, run_dir in zip(configs, run_dirs):
        run_task(config, run_dir)
