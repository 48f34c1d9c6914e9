"""TracIn on the word vectors and on the last layer of a small BERT: against captum, and against a floor.

Single precision throughout, as these methods are used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.harness import BYTES, Case, Differs, Row, Side, difference, timed
from benchmarks.peer import rivals
from clif_kit.text_models import Params
from clif_kit.text_tokens import Tokens, alike
from clif_kit.text_transformers import transformer
from clif_kit.traced import Traced
from clif_kit.tracin import tracin_we
from clif_kit.tracin_layers import tracin_last
from clif_kit.train import Checkpoint

N, QUERIES, LONGEST, TABLE, WIDTH, CLASSES, LR = 512, 16, 64, 30_522, 128, 4, 0.05
SAMPLE = 128  # training texts that a slow rival gets; its time is scaled
START, END = 101, 102  # BERT's
CHUNKS = {"we": 16, "floor": 32, "last": 128}  # texts of ours in a forward pass
BATCHES = {"we": 8, "last": 128}  # of captum's, the quickest of 1 to 16 and of 32 to 512 on this input
EXACT = 1e-5  # largest difference from the gradient of each text, divided by the largest score
LESS_MEMORY = 8
SIZES = (
    f"{N} texts x {QUERIES} queries, up to {LONGEST} tokens by Zipf's law; BERT of 2 layers, d={WIDTH}, "
    f"{TABLE:,} rows; float32"
)
WORDS = "bert.embeddings.word_embeddings"


def texts(n: int, seed: int, rows: int = TABLE, longest: int = LONGEST) -> Tokens:
    """Start, words by Zipf's law, end; lengths by chance, from a quarter of the longest on."""
    make, place = torch.Generator().manual_seed(seed), torch.arange(longest)
    lengths = torch.randint(longest // 4, longest + 1, (n, 1), generator=make)
    weights = (1 / torch.arange(1.0, rows - END)).cumsum(0)
    drawn = torch.rand(n, longest, generator=make) * weights[-1]
    ids = END + 1 + torch.searchsorted(weights, drawn).clamp(max=len(weights) - 1)
    ids[place == lengths - 1], ids[:, 0] = END, START
    parts = (place < lengths).long()
    return Tokens(ids * parts, parts, (START, END), tuple(map(str, range(rows))))


def labels(n: int, seed: int) -> Tensor:
    """Classes by chance."""
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))


def bert_config(rows: int = TABLE) -> Any:
    """Two layers of 128."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=rows, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=4 * WIDTH,
        max_position_embeddings=2 * LONGEST, num_labels=CLASSES,
    )  # fmt: skip


def bert(params: Params) -> torch.nn.Module:
    """The classifier as the library makes it, with its own choice of attention, and our parameters."""
    from transformers import BertForSequenceClassification

    made = BertForSequenceClassification(bert_config(len(params[f"model.{WORDS}.weight"])))
    made.load_state_dict({name.removeprefix("model."): value for name, value in params.items()})
    return made.eval().requires_grad_(False)


def sides(n: int = N, q: int = QUERIES, rows: int = TABLE, chunk: int = CHUNKS["we"]) -> tuple[Traced, Traced]:
    """Training texts and queries at one checkpoint of random weights."""
    model, params = transformer(bert_config(rows), classes=CLASSES)
    points = [Checkpoint(params, LR, step=1)]
    train = Traced(model=model, checkpoints=points, tokens=texts(n, 1, rows), y=labels(n, 2), chunk=chunk)
    return train, train.of(texts(q, 3, rows), labels(q, 4))


def peer_inputs(train: Traced, query: Traced, method: str) -> dict[str, Tensor]:
    """What captum gets: texts, labels, parameters."""
    both = {"train": train, "query": query}
    given = {f"{name}.{part}": getattr(side.tokens, part) for name, side in both.items() for part in ("ids", "parts")}
    given |= {f"{name}.y": side.y for name, side in both.items()}
    return given | {"last": torch.tensor(method == "last"), **train.checkpoints[0].params}


def brute_force(train: Traced, query: Traced) -> tuple[Tensor, Tensor]:
    """Scores from the whole gradient in the table, text by text, in double precision: of all rows, of words alone."""
    module = bert(train.checkpoints[0].params).double()
    table = module.get_parameter(f"{WORDS}.weight").requires_grad_()
    words = torch.ones(len(table), 1, dtype=table.dtype)
    words[list(train.tokens.special)] = 0

    def grads(side: Traced) -> Iterator[Tensor]:
        for ids, parts, y in zip(side.tokens.ids, side.tokens.parts, side.y, strict=True):
            logits = module(input_ids=ids[None], attention_mask=parts[None]).logits
            yield torch.autograd.grad(functional.cross_entropy(logits, y[None]), table)[0]

    asked = torch.stack(list(grads(query))).flatten(1)  # (q, rows * d)
    found = [torch.stack([asked @ g.flatten(), asked @ (g * words).flatten()]) for g in grads(train)]
    total, rest = LR * torch.stack(found, -1)
    return total, rest


def check_against_brute_force(train: Traced, query: Traced) -> None:
    """Refuse to go on if our scores are not those of brute force, with and without special tokens.

    Raises:
        Differs: If they are not.
    """
    scores = tracin_we(train, query)
    ours = {"all tokens": scores.total, "the special ones left out": scores.words + scores.frequent}
    for (name, value), exact in zip(ours.items(), brute_force(train, query), strict=True):
        apart = difference(exact, torch.from_numpy(value), relative=True)
        if apart > EXACT:
            raise Differs(f"scores of {name} differ from brute force by {apart:.2g}, allowed is {EXACT:g}")


@contextmanager
def captum_case(method: str, n: int = N, rows: int = TABLE, sample: int = N) -> Iterator[Case]:
    """Scores of all texts by ours, of evenly drawn ones by captum; the answers are those of the drawn ones."""
    train, query = sides(n, rows=rows, chunk=CHUNKS[method])
    drawn = torch.linspace(0, n - 1, min(n, sample)).long()
    some = train.take(drawn)
    scale = (n + len(query)) / (len(some) + len(query))  # a query costs as much as a text

    def ours() -> Tensor:
        found = tracin_last(train, query) if method == "last" else tracin_we(train, query).total
        return torch.from_numpy(found)[:, drawn]

    with rivals("benchmarks.tracin_rivals", peer_inputs(some, query, method), ("captum",)) as (theirs, versions):
        yield Case(timed(ours), {"captum": partial(_scaled, theirs["captum"], scale)}, versions)


def _scaled(side: Side, scale: float) -> tuple[float, Tensor]:
    seconds, answer = side()
    return seconds * scale, answer.double()


@contextmanager
def we_case(n: int = N, rows: int = TABLE, sample: int = SAMPLE) -> Iterator[Case]:
    """Against captum, if brute force agrees; says how much memory either takes.

    Raises:
        Differs: If brute force does not agree.
    """
    from benchmarks import tracin_memory
    from benchmarks.peer import PYTHON

    train, query = sides(n, rows=rows)
    check_against_brute_force(train.take(torch.linspace(0, n - 1, min(n, sample)).long()), query)
    ours = tracin_memory.apart("ours", n, rows)[BYTES]
    theirs = tracin_memory.apart("captum", sample, rows, PYTHON)[BYTES]  # its memory does not grow with the texts
    word = "ok" if theirs >= LESS_MEMORY * ours else "below its goal"
    figures = f"{ours / 2**20:.0f} MiB against {theirs / 2**20:.0f}, {theirs / ours:.1f} times less"
    print(f"tracin_we_captum: extra memory {figures} (goal {LESS_MEMORY}): {word}", flush=True)
    with captum_case("we", n, rows, sample) as case:
        yield case


@contextmanager
def floor_case(n: int = N, rows: int = TABLE) -> Iterator[Case]:
    """All scores, and nothing but one forward and one backward pass to the word vectors, in the same batches."""
    train, query = sides(n, rows=rows, chunk=CHUNKS["floor"])
    module = bert(train.checkpoints[0].params)

    def floor() -> Tensor:
        return torch.cat([_pass(module, side) for side in (query, train)])

    yield Case(timed(lambda: torch.from_numpy(tracin_we(train, query).total)), {"passes": timed(floor)})


def _pass(module: torch.nn.Module, side: Traced) -> Tensor:
    """One number of each text's gradient."""
    out = torch.empty(len(side))
    for rows in alike(side.tokens.parts, side.chunk):
        part = side.tokens.take(rows)
        embedded = functional.embedding(part.ids, module.get_parameter(f"{WORDS}.weight")).requires_grad_()
        logits = module(inputs_embeds=embedded, attention_mask=part.parts).logits
        (found,) = torch.autograd.grad(functional.cross_entropy(logits, side.y[rows], reduction="sum"), embedded)
        out[rows] = found[:, 0, 0]
    return out


def _row(name: str, title: str, rival: str, goal: float, case: Any, bound: float | None, repeats: int) -> Row:
    return Row(
        id=name, title=title, rival=rival, n=SIZES, goal=goal, bound=bound, relative=True, case=case, repeats=repeats
    )  # fmt: skip


ROWS = (
    _row(
        "tracin_we_captum",
        "TracIn on word embeddings",
        "captum TracInCP(layers=[embedding]) at the quickest of its batch sizes, each batch padded to its longest text;"
        f" timed on {SAMPLE} evenly drawn texts and scaled. Refused unless ours also equals the whole gradient of each"
        " text, with and without special tokens",
        12,
        we_case,
        EXACT,
        3,
    ),
    _row(
        "tracin_we_floor",
        "TracIn on word embeddings against a floor: the passes",
        "a floor, not a rival: one forward and one backward pass to the word vectors, in batches of like length, with"
        " the attention that transformers chooses; 0.87 means 1.15 times the floor",
        1 / 1.15,
        floor_case,
        None,
        5,
    ),
    _row(
        "tracin_last",
        "TracIn on the last layer",
        "captum TracInCPFast at the quickest of its batch sizes, each batch padded to its longest text, texts in their"
        " order; sorted by length beforehand, as ours sorts them itself, it takes about a quarter less",
        1.6,
        partial(captum_case, "last"),
        EXACT,
        5,
    ),
)
