"""Figure 1, by layer: are the hidden states of two chosen or two rejected replies more similar than those of one of each?"""

from typing import Any

import torch
from torch import Tensor

from r2m_cli.analysis import figures
from r2m_cli.analysis.results import Results, estimate
from r2m_cli.analysis.sequences import CHOSEN, Selection
from r2m_cli.maths.similarity import pair_means, pairs_by_label, similarity, swapped_gaps
from r2m_cli.maths.statistics import Estimate, resample_weights

KINDS = ("same", "different", "gap", "chosen", "rejected")
PAPER = {6: "0.081", 30: "0.231"}  # layer -> gap


def figure1(states: Tensor, selection: Selection, results: Results) -> None:
    """Mean similarity of same-label and of different-label pairs by layer, with intervals over prompts.

    Writes `layers.csv` and `figure1.png`; the columns `*_with_own_prompt` are the means over all pairs, including those of one prompt.

    Args:
        states: [n, layers + 1, D], of all the selection's sequences.
    """
    count = selection.compared
    labels = torch.tensor([s.label == CHOSEN for s in selection.sequences[:count]])
    layers = by_layer(states[:count], labels, selection.units[:count], results.resamples, results.seed)
    results.table("layers.csv", [_row(layer, found) for layer, found in enumerate(layers)])
    results.figures["figure1"] = {
        "chosen": int(labels.sum()), "rejected": int((~labels).sum()),
        "prompts": len(set(selection.units[:count].tolist())),
        "layers": [{"layer": layer} | found for layer, found in enumerate(layers)],
    }  # fmt: skip
    figures.layers(results.figures["figure1"]["layers"], results.folder / "figure1.png")
    last = len(layers) - 1
    shallow, deep = (6, 30) if last >= 30 else (1, last)
    for layer, there in ((shallow, 6), (deep, 30)):
        paper = PAPER[there] + ("" if there == layer else f" (layer {there})")
        results.line("1", f"gap, layer {layer} of {last}", layers[layer]["gap"], paper)
    results.line("1", f"p of no gap, layer {last}", layers[last]["swap_p"])


def by_layer(states: Tensor, labels: Tensor, units: Tensor, resamples: int, seed: int) -> list[dict[str, Any]]:
    """For every layer: KIND -> Estimate; `swap_p`, the share of label swaps with a gap at least as large; and the plain means
    including the pairs of one prompt.

    states [n, layers, D], labels [n] bool, units [n].
    """
    masks = _masks(labels, units)
    every = _masks(labels, torch.arange(len(labels)))
    ones = torch.ones(1, len(labels), dtype=torch.float64)
    weights = resample_weights(units, resamples, seed)
    layers = []
    for layer in range(states.shape[1]):
        alike = similarity(states[:, layer])
        plain, drawn = _with_gap(pair_means(alike, masks, ones)), _with_gap(pair_means(alike, masks, weights))
        found: dict[str, Any] = {kind: estimate(plain[0, i], drawn[:, i]) for i, kind in enumerate(KINDS)}
        swapped = swapped_gaps(alike, labels, units, resamples, seed)
        found["swap_p"] = (1 + int((swapped >= plain[0, 2] - 1e-12).sum())) / (1 + resamples)
        whole = _with_gap(pair_means(alike, every, ones))[0]
        layers.append(found | {f"{kind}_with_own_prompt": whole[i].item() for i, kind in enumerate(KINDS[:3])})
    return layers


def _masks(labels: Tensor, units: Tensor) -> Tensor:
    """Masks of the pairs with the same label, with different labels, both chosen, both rejected. [4, n, n]."""
    chosen, rejected, different = pairs_by_label(labels, units)
    return torch.stack([chosen | rejected, different, chosen, rejected])


def _with_gap(means: Tensor) -> Tensor:
    """Append the gap: [b, 4] -> [b, 5], in the order of KINDS."""
    return torch.cat([means[:, :2], means[:, :1] - means[:, 1:2], means[:, 2:]], dim=1)


def _row(layer: int, found: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": layer}
    for name, value in found.items():
        if isinstance(value, Estimate):
            row |= {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}
        else:
            row[name] = value
    return row
