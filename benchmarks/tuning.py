"""The gradient of J that influence tuning descends: one double backward against the paper's four products a pair.

``python -m benchmarks.tuning WAY WIDTH`` is one gradient in a process of its own, since the peak of a process never
falls. ``WAY`` is "whole" (one double backward) or "grouped" (one graph at a time).
"""

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch
from torch import Tensor

from benchmarks.harness import BYTES, Case, Differs, Row, difference, timed
from benchmarks.own_process import own_process
from benchmarks.sgns_memory import peak_bytes
from benchmarks.tracin_memory import RESET
from clif_kit.example_vectors import Batch
from clif_kit.gradients import flatten, unflatten
from clif_kit.text_models import Params, TextModel, text_losses
from clif_kit.text_transformers import transformer
from clif_kit.text_vectors import text_gradients
from clif_kit.tuning import confound_gradient, confound_gradient_grouped, four_terms, influence
from clif_kit.watchdog import PARENT_PID, watch_parent

LAYERS = {128: 2, 256: 4}  # by width
K, LENGTH, TABLE = 5, 32, 8000  # texts of A, and of B; tokens of a text; rows of the table of word vectors
START, END, WORDS = 1, 2, 3  # rows of the special tokens, and of the first word
SPREAD = 0.14  # of the weights. At BERT's .02 all texts look alike: cosines of 1 to a millionth, and J is rounding
CLOSE, PLAIN = 1e-4, 13  # allowed difference; plain gradients that one of J may cost
WAYS = {"whole": confound_gradient, "grouped": confound_gradient_grouped}
Setting = tuple[TextModel, Params, Batch]


def setting(width: int, layers: int, rows: int = TABLE, dtype: torch.dtype = torch.float32) -> Setting:
    """A BERT with random weights and a tuple: a probe, A with its label, B with the other one.

    Tuning has one label in a tuple. But random weights tell A from B by their labels only: with one label J is next to
    nothing, and single precision loses it. The work is the same.
    """
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=rows, hidden_size=width, num_hidden_layers=layers, num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width, max_position_embeddings=LENGTH, initializer_range=SPREAD,
    )  # fmt: skip
    model, params = transformer(config, classes=2, dtype=dtype)
    ids = torch.randint(WORDS, rows, (1 + 2 * K, LENGTH), generator=torch.Generator().manual_seed(1))
    ids[:, 0], ids[:, -1] = START, END
    return model, params, (ids, torch.ones_like(ids), torch.tensor([1] * (K + 1) + [0] * K))


def ours(given: Setting, way: str = "whole") -> Tensor:
    """The gradient of J as one vector."""
    model, params, batch = given
    return flatten(WAYS[way](text_gradients(model), params, batch, K).gradient)


def four_products(given: Setting) -> Tensor:
    """The same as the paper has it: p, q, r and s of one pair after the other, and the gradient from their means."""
    model, params, batch = given
    losses, total = text_losses(model), {name: torch.zeros_like(value) for name, value in params.items()}
    probe, *others = [tuple(value[i : i + 1] for value in batch) for i in range(len(batch[0]))]
    for i, other in enumerate(others):
        p, q, r, s = four_terms(losses, params, other, probe).values()
        for name, value in total.items():
            value.add_(p[name] + q[name] - r[name] - s[name], alpha=1 / K if i < K else -1 / (len(others) - K))
    scores = influence(text_gradients(model), params, tuple(value[1:] for value in batch), probe)[0]
    return flatten(total) * 2 * (scores[:K].mean() - scores[K:].mean())


def four_products_of_used_rows(given: Setting) -> Tensor:
    """The same, with the table of word vectors cut to the words of the tuple beforehand, as ours cuts it."""
    model, params, (ids, parts, y) = given
    rows, small = ids.unique(return_inverse=True)
    table = params[model.embedding]
    cut = {**params, model.embedding: table[rows]}
    found = unflatten(four_products((model, cut, (small, parts, y))), cut)
    return flatten({**found, model.embedding: torch.zeros_like(table).index_copy_(0, rows, found[model.embedding])})


def plain(given: Setting) -> Tensor:
    """The gradient of the mean loss of the same texts: a forward and a backward pass."""
    model, params, batch = given
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    found = torch.autograd.grad(text_losses(model)(leaves, *batch).mean(), list(leaves.values()))
    return flatten(dict(zip(leaves, found, strict=True)))


# --- the rows


@contextmanager
def gradient_case(given: Setting) -> Iterator[Case]:
    """The double backward, and the four products a pair."""
    theirs = {"four products": four_products, "four products, used rows": four_products_of_used_rows}
    yield Case(timed(partial(ours, given)), {name: timed(partial(side, given)) for name, side in theirs.items()})


@contextmanager
def case(width: int) -> Iterator[Case]:
    """That, after a word on the low-memory path."""
    given = setting(width, LAYERS[width])
    print(f"tuning_gradj_{width}: {beside(given, partial(apart, width=width))}", flush=True)
    with gradient_case(given) as both:
        yield both


@contextmanager
def round_case(width: int, layers: int, rows: int = TABLE) -> Iterator[Case]:
    """One gradient of J, and as many plain ones as it may cost; the answer is the mean of the gradients in J."""
    given = setting(width, layers, rows)
    model, params, batch = given
    vectors = text_gradients(model)(params, *batch)
    total = vectors.zeros(1, params)
    vectors.add_to(total, torch.full((1, len(vectors)), 1 / len(vectors)))
    mean = flatten({name: total[name][0] for name in params})

    def one() -> Tensor:
        ours(given)
        return mean

    yield Case(timed(one), {f"{PLAIN} plain gradients": timed(lambda: [plain(given) for _ in range(PLAIN)][-1])})


def beside(given: Setting, memory: Callable[[str], float], repeats: int = 3) -> str:
    """What one graph at a time takes, and what one gradient of J costs, in words.

    Raises:
        Differs: If one graph at a time gives another gradient.
    """
    apart_by = difference(ours(given), ours(given, "grouped"), relative=True)
    if apart_by > CLOSE:
        raise Differs(f"one graph at a time differs by {apart_by:.2g}, allowed is {CLOSE:g}")
    sides = {**{way: timed(partial(ours, given, way)) for way in WAYS}, "plain": timed(partial(plain, given))}
    taken = {name: median(side()[0] for _ in range(repeats)) for name, side in sides.items()}
    figures = [f"{taken[way]:.2f} s and {memory(way) / 2**20:.0f} MiB" for way in ("grouped", "whole")]
    return (
        f"one graph at a time takes {figures[0]}, the double backward {figures[1]} (they differ by {apart_by:.1g}); "
        f"one gradient of J costs {taken['whole'] / taken['plain']:.1f} plain ones"
    )


# --- memory


def extra(way: str, width: int) -> float:
    """Bytes that one gradient takes beside the model and the program, which one of three texts has loaded before."""
    given = setting(width, LAYERS[width])
    model, params, batch = given
    WAYS[way](text_gradients(model), params, tuple(value[[0, 1, -1]] for value in batch), 1)
    ctypes.CDLL(None).malloc_trim(0)
    RESET.write_text("5")
    before = peak_bytes()
    ours(given, way)
    return float(peak_bytes() - before)


def apart(way: str, width: int) -> float:
    """The same in a process of its own.

    Raises:
        Unavailable: If it ended with an error.
    """
    return own_process("benchmarks.tuning", way, width)[BYTES]


def _size(width: int) -> str:
    return (
        f"{K} + {K} texts and one probe, {LENGTH} tokens; BERT of {LAYERS[width]} layers, d={width}, {TABLE:,} rows; "
        f"random weights of size {SPREAD}; float32"
    )


def _gradient_row(width: int) -> Row:
    return Row(
        id=f"tuning_gradj_{width}",
        title=f"Gradient of J, width {width}",
        rival="four Hessian-vector products for each pair of probe and text, each with a forward pass of its own, and "
        "the two gradients that they need, put together as in the paper; on the whole table of word vectors, and on "
        "the rows that the texts use",
        n=_size(width),
        goal=2.3,
        bound=CLOSE,
        relative=True,
        case=partial(case, width),
        repeats=5,
    )


ROWS = (
    *map(_gradient_row, LAYERS),
    Row(
        id="tuning_round",
        title="One gradient of J in plain gradients",
        rival=f"a limit, not a rival: {PLAIN} plain gradients, each a forward and a backward pass of the same texts "
        f"together; {PLAIN} divided by the ratio is what one gradient of J costs in plain ones, and a round takes one "
        "for each tuple. What must agree is their mean gradient and that of the gradients in J",
        n=_size(128),
        goal=1,
        bound=CLOSE,
        relative=True,
        case=partial(round_case, 128, LAYERS[128]),
        repeats=5,
    ),
)


if __name__ == "__main__":
    if PARENT_PID in os.environ:
        watch_parent()
    torch.set_num_threads(1)
    print(json.dumps({BYTES: extra(sys.argv[1], int(sys.argv[2]))}))
