"""Table 5 of a gold-world run with topics held fixed: are hacking and normal responses apart within one topic?

    python topics.py RUN ANALYSIS     the folders of `r2m train` and of `r2m analyze run=RUN`

Plain transformers, one response at a time. Prints mean similarities of the last layer's states over pairs of responses to
different prompts, of any topics and of one topic, with 95 % intervals (bootstrap over prompts, 1000 resamples).
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from r2m_cli.analysis.results import estimate
from r2m_cli.files.jsonl import lines_of
from r2m_cli.maths.similarity import pair_means, pairs_by_label, resample_weights, similarity

run, analysis = map(Path, sys.argv[1:])
tokenizer, model = (kind.from_pretrained(run / "policy") for kind in (AutoTokenizer, AutoModelForCausalLM))
rows = [json.loads(line) for line in lines_of(analysis / "responses.jsonl")]
vectors = []
for row in rows:
    asked = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    end = f" {tokenizer.eos_token}" if row["finished"] else ""
    start = len(tokenizer(asked, add_special_tokens=False)["input_ids"])
    ids = tokenizer(f"{asked} {row['response']}{end}", add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        vectors.append(model(ids, output_hidden_states=True).hidden_states[-1][0, start:].mean(dim=0))

texts = [row["prompt"][-1]["content"] for row in rows]
topics = [text.split()[0] for text in texts]
hacking = torch.tensor([row["hacking"] for row in rows])
units = torch.tensor([texts.index(text) for text in texts])
alike, weights = similarity(torch.stack(vectors)), resample_weights(units, 1000, 0)
ones = torch.ones(1, len(rows), dtype=torch.float64)
for topic in dict.fromkeys(topics):
    mine = torch.tensor([t == topic for t in topics])
    print(f"{topic:8} hacking {int((mine & hacking).sum()):3} of {int(mine.sum()):3}")
one_topic = torch.tensor([[a == b for b in topics] for a in topics])
for name, allowed in (("any topics", one_topic | True), ("one topic", one_topic), ("two topics", ~one_topic)):
    masks = pairs_by_label(hacking, units) & allowed
    plain, drawn = pair_means(alike, masks, ones)[0], pair_means(alike, masks, weights)
    for i, kind in enumerate(("within hacking", "within normal", "across")):
        print(f"{name:10} {kind:15} %.3f [%.3f, %.3f]" % estimate(plain[i], drawn[:, i]))
    apart = estimate((plain[0] + plain[1]) / 2 - plain[2], (drawn[:, 0] + drawn[:, 1]) / 2 - drawn[:, 2])
    print(f"{name:10} within - across %.3f [%.3f, %.3f]" % apart)
