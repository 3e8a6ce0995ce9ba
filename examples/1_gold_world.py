"""The embedded gold world, a minute on a CPU: a frozen reward model is gamed, one that reads the policy's states less so.

    python examples/1_gold_world.py [key=value ...]

The gold world knows the true reward ("gold"), which no run is trained on. Watch it fall while the reward model's own score, the
proxy, goes on rising.
"""

import sys

import r2m_cli

more = sys.argv[1:]  # further overrides, as on the command line

frozen = r2m_cli.train(["feedback=none", *more])
r2m = r2m_cli.train(["feedback=r2m_safe", *more])

for name, run in (("frozen reward model", frozen), ("R2M with labelled pairs", r2m)):
    end = run.metrics.iloc[-1]
    print(f"{name}: gold {end['eval/gold']:.2f}, proxy {end['eval/reward_frozen']:.2f}, KL {end['eval/kl']:.2f} nats")

r2m_cli.report([frozen, r2m], out="outputs/gold_world.html")
