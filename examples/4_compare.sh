#!/usr/bin/env bash
# Compare methods over seeds in the gold world: a sweep, its table with mean and standard deviation, and a page.
#
#   examples/4_compare.sh [key=value ...]          SEEDS=0,1 examples/4_compare.sh for fewer seeds
#
# Each seed has a world of its own (data.seed), so that a method is not judged by one reward model. The same command line started
# again goes on where the sweep was stopped.
set -euo pipefail
sweep=outputs/compare
r2m train -m +method=rloo,frozen,rloo_r2m "seed=${SEEDS:-0,1,2}" 'data.seed=${seed}' "hydra.sweep.dir=$sweep" "$@"

# The sweep has written its report already; this is how to write one again, of this and other runs together.
r2m report "$sweep" "out=$sweep/page.html"
