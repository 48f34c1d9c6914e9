"""The published recursion on word vectors: rows brought up to date when they are met, against all rows at each step."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Row, Side, timed
from benchmarks.sgns import LOSS, SIZES, WORDS, N, matrices, sentence_loss, zipf
from clif_kit.corpus import Corpus
from clif_kit.skipgram import Params
from clif_kit.word_influence import DAMPING, SCALE, lissa_published_direction

STEPS, DEPTH, ROWS_SEEN = 30, 5000, 32  # of the comparison; of the public code; of a query with four lists of 8 words


def query(params: Params, number: int = ROWS_SEEN) -> Params:
    """The gradient of a query that sees some words, from common to rare."""
    full = torch.zeros_like(params["input"])
    rows = np.unique(np.geomspace(20, len(full) - 1, number).astype(np.int64))
    full[rows] = torch.randn(len(rows), full.shape[1], generator=torch.Generator().manual_seed(3), dtype=full.dtype)
    return {"input": full}


def dense_loop(corpus: Corpus, params: Params, v: Tensor, steps: int) -> Tensor:
    """The recursion on the whole input matrix, Hessian-vector products by a second backward pass, divided by n."""
    seen = torch.nonzero((v != 0).any(1)).flatten().tolist()
    chosen = corpus.containing(seen)
    u, context, h = params["input"].clone().requires_grad_(), params["context"], v
    for i in np.random.default_rng([0, 0]).permutation(chosen)[:steps]:
        loss = sentence_loss(corpus.sentence(int(i)), u, context)
        (grad,) = torch.autograd.grad(loss, u, create_graph=True)
        (curved,) = torch.autograd.grad((grad * h).sum(), u)
        h = v + (1 - DAMPING) * h - curved / SCALE
    return h / len(chosen)


@contextmanager
def case(n: int = N, words: int = WORDS, depth: int = DEPTH) -> Iterator[Case]:
    """Answers after 30 steps; times of 5,000, which the loop's are scaled to."""
    corpus, params = zipf(n, words), matrices(words)
    v = query(params)
    ours = partial(lissa_published_direction, params, corpus, v, LOSS, repeats=1)
    answer = ours(depth=STEPS)["input"]

    def published() -> Tensor:
        ours(depth=depth)
        return answer

    loop: Side = timed(partial(dense_loop, corpus, params, v["input"], STEPS), scale=depth / STEPS)
    yield Case(timed(published), {"loop": loop})


ROWS = (
    Row(
        id="sgns_lissa",
        title="The published recursion for words",
        rival=f"dense loop, float64, Hessian-vector products by autograd; timed on {STEPS} steps and scaled to "
        f"{DEPTH:,}; the answers after {STEPS} steps are compared",
        n=f"{SIZES}; {DEPTH:,} steps, a query that sees {ROWS_SEEN} words",
        goal=500,
        bound=1e-10,
        relative=True,
        case=case,
        repeats=5,
    ),
)
