"""Tiny texts with a label and a confound, and a transformer with dropout, in float64."""

import functools

import numpy as np
import torch
from text_cases import F64, bert_config, model, tokens

from clif_kit.confounds import Confounded
from clif_kit.text_transformers import transformer

# label 0: four texts with confound 0, three with 1, three with 2; label 1: four with 1, three with 0
LABELS = torch.tensor([0] * 10 + [1] * 7)
CONFOUNDS = torch.tensor([0] * 4 + [1] * 3 + [2] * 3 + [1] * 4 + [0] * 3)


def confounded(known=None):
    """Seventeen texts of unlike length, shuffled."""
    order = torch.from_numpy(np.random.default_rng(4).permutation(len(LABELS)))
    return Confounded(tokens(len(LABELS), pairs=False), LABELS[order], CONFOUNDS[order], known)


@functools.cache
def noisy_model():
    """``(model, params)`` of two classes with dropout, biases away from zero."""
    made, params = transformer(bert_config(), classes=2, seed=3, dropout=0.3, dtype=F64)
    draw = torch.Generator().manual_seed(5)
    return made, {k: v + 0.1 * torch.randn(v.shape, generator=draw, dtype=F64) for k, v in params.items()}


def tuple_of(kind, k=3):
    """``(model, params, (ids, parts, y))``: a probe, k and k + 1 texts of unlike length, all with the label 1."""
    made, params = model(kind)
    part = tokens(2 * k + 2)
    return made, params, (part.ids, part.parts, torch.ones(len(part), dtype=torch.long))


def slopes(losses, params, batch, names=None):
    """The oracle: every example alone, whole table, plain autograd; ``(n, p)`` with a graph."""
    rows = []
    for i in range(len(batch[0])):
        loss = losses(params, *(value[i : i + 1] for value in batch)).sum()
        found = torch.autograd.grad(loss, [params[name] for name in names or params], create_graph=True)
        rows.append(torch.cat([value.reshape(-1) for value in found]))
    return torch.stack(rows)
