#!/usr/bin/env bash
# HH-RLHF with the paper's models and settings on eight GPUs: Qwen2.5-3B-Instruct, the Skywork 8B reward model, DeepSpeed ZeRO.
#
#   examples/5_eight_gpus.sh [key=value ...]       with --cfg job it prints the configuration and runs nothing
#
# Models and data come from the hub. Ctrl-C ends the step and saves a checkpoint; go on with `r2m train resume=RUN`.
# Too little memory: engine.stage=3, engine.offload_optimizer=true, or a lower rollout.tokens_per_batch.
# Two machines: on each engine.num_nodes=2 engine.rendezvous=HOST:29500, with engine.node_rank=0 and 1.
set -euo pipefail
r2m train +experiment=hh_rlhf checkpoint.every=10 checkpoint.keep=2 "$@"
