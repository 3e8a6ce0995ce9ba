#!/usr/bin/env bash
# Your own preference pairs with SmolLM2-135M on a CPU: fit a reward model, train against it, evaluate. About half an hour.
#
#   examples/3_own_pairs.sh PAIRS.jsonl [key=value ...]
#
# A line of the file is a pair: {"prompt": "...", "chosen": "...", "rejected": "..."}; docs/data.md lists the other forms.
set -euo pipefail
pairs=${1:?usage: 3_own_pairs.sh PAIRS.jsonl [key=value ...]}
shift
setting=(+experiment=hh_rlhf_cpu "data.path=$pairs" "$@")
run="outputs/own_pairs_$(date +%Y-%m-%d_%H-%M-%S)"

# Its accuracy on held-out pairs is printed. Below about 60 %, more pairs help more than anything that follows.
r2m reward "${setting[@]}" "output=$run/reward_model"
r2m train "${setting[@]}" "reward.path=$run/reward_model" "hydra.run.dir=$run/train"
r2m evaluate "run=$run/train" "hydra.run.dir=$run/evaluation"
