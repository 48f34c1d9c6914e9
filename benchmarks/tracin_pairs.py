"""Scores of all pairs from stored token gradients, against the dot product of whole gradients."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import Case, Row, timed
from benchmarks.tracin import EXACT, LONGEST, TABLE, WIDTH, texts
from clif_kit.text_tokens import Tokens
from clif_kit.token_gradients import TokenGradients, row_map
from clif_kit.tracin import pair_scores

N, QUERIES, SAMPLE = 10_000, 40, 8  # the rival gets all queries and so many texts


def gradients(tokens: Tokens, seed: int) -> TokenGradients:
    """Normal numbers at each token of each text."""
    real = tokens.parts > 0
    values = np.random.default_rng(seed).standard_normal((int(real.sum()), WIDTH), dtype=np.float32)
    offsets = np.concatenate([[0], real.sum(1).cumsum(0).numpy()])
    return TokenGradients(tokens.ids[real].numpy(), torch.nonzero(real)[:, 1].numpy(), offsets, values)


def dense(found: TokenGradients, i: int, rows: int) -> Tensor:
    """The whole gradient of one text, ``(rows * d,)``."""
    some = slice(found.offsets[i], found.offsets[i + 1])
    table = torch.zeros(rows, found.values.shape[1])
    return table.index_add_(0, torch.from_numpy(found.tokens[some]), torch.from_numpy(found.values[some])).flatten()


@contextmanager
def case(n: int = N, q: int = QUERIES, rows: int = TABLE, sample: int = SAMPLE) -> Iterator[Case]:
    """Sorting and scores of all pairs, and a dot product a pair of evenly drawn texts, made dense beforehand."""
    train, query = gradients(texts(n, 1, rows), 1), gradients(texts(q, 2, rows), 2)
    drawn = np.linspace(0, n - 1, min(n, sample)).astype(np.int64)
    some, asked = ([dense(side, int(i), rows) for i in which] for side, which in ((train, drawn), (query, range(q))))

    def ours() -> Tensor:
        return torch.from_numpy(pair_scores(row_map(train), row_map(query), n, q)[0][:, drawn])

    def dots() -> Tensor:
        return torch.stack([torch.stack([one @ other for one in some]) for other in asked]).double()

    yield Case(timed(ours), {"dots": timed(dots, scale=n / len(drawn))})


ROWS = (
    Row(
        id="tracin_pairs",
        title="TracIn scores of all pairs from token gradients",
        rival=f"a dot product of two whole gradients for each pair, made beforehand; timed on {SAMPLE} evenly drawn "
        "texts and scaled; float32. Matrix products of many whole gradients at once would be quicker than that, where "
        "they fit into memory",
        n=f"{N:,} texts x {QUERIES} queries, up to {LONGEST} tokens by Zipf's law, {TABLE:,} rows, d={WIDTH}",
        goal=100,
        bound=EXACT,
        relative=True,
        case=case,
        repeats=5,
    ),
)
