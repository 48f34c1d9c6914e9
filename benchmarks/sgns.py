"""Scores of all sentences of a corpus in one stream, against autograd, against single passes, against a floor."""

import importlib.metadata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import CPU, WALL, Case, Row, Unavailable, timed
from clif_kit.corpus import Corpus, Vocabulary
from clif_kit.sentence_stream import stream_scores
from clif_kit.skipgram import Params, SkipgramLoss

N, LENGTH, WORDS, WIDTH, WINDOW = 100_000, 25, 25_000, 100, 10
SAMPLE = 200  # sentences that a slow rival gets; its time is scaled
LOSS = SkipgramLoss.published(WINDOW)
SIZES = f"{N:,} sentences of {LENGTH} words, window {WINDOW}, {WORDS:,} words by Zipf's law, d={WIDTH}"


def zipf(n: int, words: int = WORDS, seed: int = 0) -> Corpus:
    """Sentences of words drawn by Zipf's law."""
    weights = np.cumsum(1 / np.arange(1, words + 1))
    tokens = np.searchsorted(weights, np.random.default_rng(seed).random(n * LENGTH) * weights[-1]).astype(np.int32)
    vocabulary = Vocabulary(tuple(map(str, range(words))), np.ones(words, dtype=np.int64))
    return Corpus(tokens, np.arange(n + 1) * LENGTH, vocabulary)


def matrices(words: int = WORDS, width: int = WIDTH) -> Params:
    """Random vectors of the length that trained ones have: most pairs lie where the sigmoid bends."""
    make = torch.Generator().manual_seed(1)
    return {k: 0.3 * torch.randn(words, width, generator=make, dtype=torch.float64) for k in ("input", "context")}


def dense_queries(number: int, params: Params) -> list[Params]:
    """Directions without a zero, over the input matrix."""
    make, like = torch.Generator().manual_seed(2), params["input"]
    return [{"input": torch.randn(like.shape, generator=make, dtype=like.dtype)} for _ in range(number)]


def evenly(n: int, number: int) -> np.ndarray:
    """Numbers of so many sentences, from the first to the last."""
    return np.linspace(0, n - 1, min(n, number)).astype(np.int64)


def autograd_loop(corpus: Corpus, sentences: Sequence[int], params: Params, direction: Params) -> Tensor:
    """The same scores as the public code takes them: a dense gradient of both matrices a sentence, with its graph."""
    leaves = [params[name].clone().requires_grad_() for name in ("input", "context")]
    scores = []
    for i in sentences:
        grad, _ = torch.autograd.grad(sentence_loss(corpus.sentence(int(i)), *leaves), leaves, create_graph=True)
        scores.append((grad * direction["input"]).sum().detach())
    return torch.stack(scores)


def sentence_loss(sentence: np.ndarray, u: Tensor, v: Tensor) -> Tensor:
    """Mean over the pairs, positives only."""
    rows, length = sentence.tolist(), len(sentence)
    near = [(i, j) for i in range(length) for j in range(max(0, i - WINDOW), min(length, i + WINDOW + 1)) if i != j]
    centres, contexts = (torch.tensor([rows[pair[side]] for pair in near]) for side in (0, 1))
    return -torch.nn.functional.logsigmoid((u[centres] * v[contexts]).sum(1)).mean()


def two_threads() -> dict[str, str]:
    """Let numba have two threads; its version."""
    try:
        import numba
    except ModuleNotFoundError:
        raise Unavailable("numba is not installed") from None
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    return {"numba": importlib.metadata.version("numba")}


@contextmanager
def scores_case(engine: str, unit: str, n: int = N, words: int = WORDS, sample: int = SAMPLE) -> Iterator[Case]:
    """All sentences by ours, evenly drawn ones by the loop; the answers are those of the drawn ones."""
    versions = two_threads() if engine == "numba" else {}
    corpus, params, drawn = zipf(n, words), matrices(words), evenly(n, sample)
    (direction,) = dense_queries(1, params)

    def ours() -> Tensor:
        return torch.from_numpy(stream_scores(corpus, params, [direction], LOSS, engine=engine)[0, drawn])

    loop = timed(partial(autograd_loop, corpus, drawn, params, direction), unit, scale=n / len(drawn))
    yield Case(timed(ours, unit), {"loop": loop}, versions)


@contextmanager
def queries_case(n: int = N, words: int = WORDS, number: int = 8) -> Iterator[Case]:
    """Many directions in one pass, and in a pass each."""
    versions = two_threads()
    corpus, params = zipf(n, words), matrices(words)
    directions = dense_queries(number, params)

    def passes(groups: Sequence[Sequence[Params]]) -> Tensor:
        found = [stream_scores(corpus, params, group, LOSS, engine="numba") for group in groups]
        return torch.from_numpy(np.concatenate(found))

    singles = partial(passes, [[direction] for direction in directions])
    yield Case(timed(partial(passes, [directions])), {"single passes": timed(singles)}, versions)


@contextmanager
def floor_case(n: int = N, words: int = WORDS) -> Iterator[Case]:
    """The scores, and nothing but gathering the rows that they need."""
    versions = two_threads()
    from benchmarks.sgns_floor import gather

    corpus, params = zipf(n, words), matrices(words)
    (direction,) = dense_queries(1, params)
    blocks = [block.numpy() for block in (params["input"], params["context"], direction["input"])]

    def ours() -> Tensor:
        return torch.from_numpy(stream_scores(corpus, params, [direction], LOSS, engine="numba")[0])

    def floor() -> Tensor:
        return torch.from_numpy(gather(corpus.tokens, corpus.offsets, *blocks))

    yield Case(timed(ours), {"gathering": timed(floor)}, versions)


LOOP = (
    "loop over sentences as in the public code, float64, by autograd: dense gradients of both matrices with their "
    f"graph, one thread; timed on {SAMPLE} evenly drawn sentences and scaled to all"
)


def _scores_row(engine: str, title: str, goal: float, unit: str, **options: int) -> Row:
    return Row(
        id=f"sgns_scores_{engine}", title=title, rival=LOOP, n=f"{SIZES}, dense query", goal=goal, bound=1e-12,
        relative=True, unit=unit, case=partial(scores_case, engine, unit), **options,
    )  # fmt: skip


ROWS = (
    _scores_row("numba", "Scores of all sentences, numba on two threads", 1000, WALL),
    _scores_row("torch", "Scores of all sentences, torch alone", 300, CPU, repeats=5),
    Row(
        id="sgns_floor",
        title="Scores of all sentences against a floor: reading memory",
        rival="a floor, not a rival: numba gathers the same rows of the three matrices, copies them to the cache and "
        "computes nothing (summing them without the copy takes about a fifth less); 0.33 means three times the floor",
        n=f"{SIZES}, dense query",
        goal=0.334,
        bound=None,
        case=floor_case,
    ),
    Row(
        id="sgns_queries8",
        title="Eight queries in one pass",
        rival="the same by eight single passes; the goal is the cost of three",
        n=f"{SIZES}, dense queries, numba",
        goal=2.67,
        bound=1e-12,
        relative=True,
        case=queries_case,
        repeats=5,
    ),
)
