r"""WEAT: do two lists of target words differ in how near they stand to two lists of attribute words?

With rows at length 1 (a hat) the association of a word is the paper's eq 11 (Silva, Chopra and Gombolay 2022)

.. math:: s(w, A, B) = \operatorname{mean}_A \hat w \cdot \hat a - \operatorname{mean}_B \hat w \cdot \hat b

and the effect is :math:`(\operatorname{mean}_X s - \operatorname{mean}_Y s) / \operatorname{sd}_{X \cup Y}\, s` of
Caliskan, Bryson and Narayanan 2017; eq 12 prints a variance below the line, the paper's code takes the root.
Positive = X leans towards A; no unit. As a query its absolute value is the loss: positive score = mitigating sentence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

MIN_WORDS = 4  # a side with fewer says more about its words than about the two groups
SIDES = ("x", "y", "a", "b")


@dataclass(frozen=True)
class WordTest:
    """Two target lists and two attribute lists; any sequences of words, kept as tuples.

    Attributes:
        x: Target words; a positive effect says that they are the ones nearer to ``a``.
        y: Target words to compare with.
        a: Attribute words.
        b: Attribute words at the other end; none in a one-sided test.
        name: What errors and summaries call the test.

    Raises:
        ValueError: If a list is a single string or empty (``b`` may be), or a word stands in two lists or twice in one.

    >>> WordTest(["he"], ["she"], ["maths"], ["art", "he"], name="toy")
    Traceback (most recent call last):
    ValueError: toy: 'he' stands in x and in b; every word must have one place
    """

    x: tuple[str, ...]
    y: tuple[str, ...]
    a: tuple[str, ...]
    b: tuple[str, ...] = ()
    name: str = "word test"

    def __post_init__(self) -> None:
        place: dict[str, str] = {}
        for side in SIDES:
            words = getattr(self, side)
            if isinstance(words, str) or (side != "b" and not words):
                raise ValueError(f"{self.name}: {side} must be a list of words, got {words!r}")
            object.__setattr__(self, side, tuple(words))
            for word in words:
                if word in place:
                    raise ValueError(
                        f"{self.name}: {word!r} stands in {place[word]} and in {side}; every word must have one place"
                    )
                place[word] = side


def _test(name: str, *sides: str) -> WordTest:
    return WordTest(*(words.split() for words in sides), name=name)


_SCIENCE = _test(
    "science",
    "brother father uncle grandfather son he his him",
    "sister mother aunt grandmother daughter she her hers",
    "science technology physics chemistry einstein nasa experiment astronomy",
    "poetry art shakespeare dance literature novel symphony drama",
)
# All lists of the paper's code (github.com/CORE-Robotics-Lab/Cross_Loss_Influence_Functions): those of Caliskan et al.
# cut to its vocabulary. It calls "science" what the paper prints as "art", with the sign turned.
TESTS = {
    "career": _test(
        "career",
        "john paul mike kevin steve greg jeff bill",
        "amy joan lisa sarah diana kate ann donna",
        "executive management professional corporation salary office business career",
        "home parents children family cousins marriage wedding relatives",
    ),
    "math": _test(
        "math",
        "male man boy brother he him his son",
        "female woman girl sister she her hers daughter",
        "math algebra geometry calculus equations computation numbers addition",
        "poetry art dance literature novel symphony drama sculpture",
    ),
    "art": replace(_SCIENCE, name="art", a=_SCIENCE.b, b=_SCIENCE.a),
    "race": _test(
        "race",
        "josh alan ryan andrew jack greg amanda katie nancy ellen",
        "theo jerome leroy lamar lionel malik tyrone ebony jasmine tia",
        "freedom health love peace cheer friend heaven loyal pleasure diamond gentle honest lucky diploma gift honor "
        "miracle sunrise family happy laughter vacation",
        "crash murder sickness accident death grief poison stink assault disaster hatred tragedy bomb divorce jail "
        "poverty ugly cancer evil kill rotten vomit",
    ),
    "science": _SCIENCE,
}
_RELIGIOUS = ("jew", "jewish", "islam", "religion", "islamic", "muslim")
RELIGION = replace(TESTS["race"], name="religion", a=_RELIGIOUS, b=())  # one-sided, section 4.3.1


@dataclass(frozen=True, eq=False)
class Resolved:
    """The part of a test that a vocabulary can answer, as row numbers.

    Attributes:
        words: The words that are used, in the order of the test.
        x: Their rows, int64, shape ``(|X|,)``; a row may stand there twice, and then counts twice.
        y: ``(|Y|,)``, as many as ``x``.
        a: ``(|A|,)``.
        b: ``(|B|,)``, as many as ``a``, or none.
        missing: Words without a vector or too rare, with how often they occur.
        dropped: Words left out only to keep two sides equal, likewise.

    Raises:
        ValueError: If X, Y or A has no row.
    """

    words: WordTest
    x: Tensor
    y: Tensor
    a: Tensor
    b: Tensor
    missing: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (len(self.x) and len(self.y) and len(self.a)):
            raise ValueError(f"{self.words.name}: X, Y and A need a word each")

    def summary(self) -> str:
        """One line: how many words each side has, and which are not there."""
        sizes = ", ".join(f"{len(getattr(self, side))} {side.upper()}" for side in SIDES)
        notes = (("missing or rare", self.missing), ("dropped for balance", self.dropped))
        return f"{self.words.name}: {sizes}" + "".join(f"; {what}: {_listed(words)}" for what, words in notes if words)


def resolve(test: WordTest, counts: Mapping[str, int], index: Mapping[str, int], min_count: int = 5) -> Resolved:
    """The words of a test that occur often enough, with X as long as Y and A as long as B.

    The longer of two sides loses its rarest words; of equally rare ones the later.

    Args:
        test: What to look for.
        counts: How often each word occurs; a word that is not in it occurs 0 times.
        index: Word to row of the vectors.
        min_count: Occurrences that a word needs.

    Raises:
        ValueError: If a side is left with fewer than four words; names them all with their counts.

    >>> test = WordTest("he him his son uncle".split(), "she her hers aunt".split(), "a b c d".split(), name="toy")
    >>> index = {word: row for row, word in enumerate((*test.x, *test.y, *test.a))}
    >>> resolve(test, dict.fromkeys(index, 9) | {"his": 7}, index).summary()
    'toy: 4 X, 4 Y, 4 A, 0 B; dropped for balance: his (7)'
    """
    sides = {side: getattr(test, side) for side in SIDES}
    count = {word: int(counts.get(word, 0)) for words in sides.values() for word in words}
    there = {side: [w for w in words if w in index and count[w] >= min_count] for side, words in sides.items()}
    for side, words in sides.items():
        if words and len(there[side]) < MIN_WORDS:
            raise ValueError(
                f"{test.name}: {len(there[side])} of the {len(words)} words of {side.upper()} have a vector and occur "
                f"{min_count} times or more, need {MIN_WORDS}: {_listed({word: count[word] for word in words})}"
            )
    kept = dict(there)
    for pair in ("xy", "ab" if test.b else ""):
        size = min((len(there[side]) for side in pair), default=0)
        for side in pair:
            often = sorted(there[side], key=lambda word: -count[word])[:size]
            kept[side] = [word for word in there[side] if word in often]
    found = [word for words in there.values() for word in words]
    used = [word for words in kept.values() for word in words]
    return Resolved(
        words=WordTest(**kept, name=test.name),
        **{side: torch.tensor([index[word] for word in kept[side]], dtype=torch.int64) for side in SIDES},
        missing={word: count[word] for word in count if word not in found},
        dropped={word: count[word] for word in found if word not in used},
    )


def _listed(words: Mapping[str, int]) -> str:
    return ", ".join(f"{word} ({count})" for word, count in words.items())


def association(vectors: Tensor, words: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``s(w, A, B)`` of eq 11: mean cosine with A less mean cosine with B, differentiable.

    Args:
        vectors: ``(V, d)``, any length of rows.
        words: Rows of the words, int64, shape ``(n,)``.
        a: Rows of A.
        b: Rows of B; if there are none, the mean cosine with A.

    Returns:
        ``(n,)``, from -2 to 2; positive = nearer to A.

    Raises:
        ValueError: If ``vectors`` is not a real matrix, does not have the rows, or has a row among them that is zero or
            holds NaN or infinity; or if there are no words, or none in A.

    >>> rows = torch.tensor([[2.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    >>> association(rows, words=torch.tensor([1]), a=torch.tensor([0]), b=torch.tensor([2]))
    tensor([-0.2000])
    """
    return _units(vectors, words)[0] @ _pole(vectors, a, b)


def effect(vectors: Tensor, test: Resolved, *, ddof: int = 0, absolute: bool = False) -> Tensor:
    """WEAT effect size, ``(mean_X s - mean_Y s) / sd`` with the sd of ``s`` over X and Y: a scalar, differentiable.

    Args:
        vectors: ``(V, d)``.
        test: Rows of X, Y, A, B; without B the association is one-sided.
        ddof: The sd divides by ``n - ddof``. 0: the paper's numbers and WEFE's, never beyond 2 if X and Y are as many.
            1: the objective in the paper's code, smaller by ``sqrt((n - 1) / n)``.
        absolute: Return the absolute value, the paper's query loss.

    Raises:
        ValueError: If all words have the same association, if ``ddof`` is neither 0 nor 1, or as :func:`association`.

    >>> axes = torch.eye(4)  # the targets of X are the attributes of A, those of Y the attributes of B
    >>> effect(axes, Resolved(RELIGION, *(torch.tensor([i]) for i in (0, 1, 0, 1))))
    tensor(2.)
    """
    s, c, spread = _standardised(vectors, test, ddof)
    value = (c @ s) / spread
    return value.abs() if absolute else value


def one_sided_effect(vectors: Tensor, test: Resolved, *, ddof: int = 0) -> Tensor:
    """:func:`effect` with A alone: positive = X is nearer to A than Y is. Section 4.3.1 reports -1.11 for religion."""
    return effect(vectors, replace(test, b=test.b[:0]), ddof=ddof)


def effect_gradient(vectors: Tensor, test: Resolved, *, ddof: int = 0, absolute: bool = False) -> tuple[Tensor, Tensor]:
    """Gradient of :func:`effect` in closed form, for the rows of the test words: it is zero on all others.

    Let ``t_w`` be the derivative of the effect by ``s(w)``, ``m`` the mean â over A less that over B, ``q = Σ t_w ŵ``.
    Eq 14 summed over a list gives ``t_w (m - (m·ŵ) ŵ) / |w|`` for a target and ``(q - (q·â) â) / (|A| |a|)`` for a word
    of A; a word of B has the other sign.

    Returns:
        rows: Each row once, ascending, int64, shape ``(k,)``.
        gradient: Per unit of a vector, shape ``(k, d)``; a row that stands in several places gets their sum.

    Raises:
        ValueError: As :func:`effect`.

    >>> test = Resolved(RELIGION, *(torch.tensor([i]) for i in (7, 2, 7, 4)))
    >>> effect_gradient(torch.eye(8), test)[0]
    tensor([2, 4, 7])
    """
    vectors = vectors.detach()
    s, c, spread = _standardised(vectors, test, ddof)
    value = (c @ s) / spread
    t = (c - value * (s - s.mean()) / ((len(s) - ddof) * spread)) / spread  # (n,)
    t = t * value.sign() if absolute else t
    targets = torch.cat([test.x, test.y])
    unit, length = _units(vectors, targets)
    parts = [t[:, None] * _across(_pole(vectors, test.a, test.b), unit) / length]
    q = t @ unit  # (d,)
    for side, sign in ((test.a, 1), (test.b, -1)):
        if len(side):
            unit, length = _units(vectors, side)
            parts.append(sign * _across(q, unit) / (len(side) * length))
    rows, place = torch.cat([targets, test.a, test.b]).unique(return_inverse=True)
    return rows, vectors.new_zeros(len(rows), vectors.shape[1]).index_add(0, place, torch.cat(parts))


def permutation_test(
    vectors: Tensor, test: Resolved, *, runs: int = 10_000, seed: int = 0, two_sided: bool = False
) -> float:
    """p-value of the effect: how often X and Y, shuffled into two lists of the same lengths, show as large a one.

    ``(count + 1) / (runs + 1)`` with ties counted, so that p is valid and never 0 (Phipson and Smyth 2010). The sd is
    over X and Y together, so the difference of means ranks the shuffles as the effect does.

    Args:
        vectors: ``(V, d)``.
        test: As for :func:`effect`.
        runs: Random shuffles.
        seed: Of the shuffles.
        two_sided: Compare sizes without their sign; otherwise large means that X leans to A.

    Raises:
        ValueError: If ``runs`` is below 1, or as :func:`association`.

    >>> x, y, pole = torch.tensor([[1.0, 0.2]]), torch.tensor([[0.2, 1.0]]), torch.eye(2)
    >>> rows, side = torch.cat([x.repeat(9, 1), y.repeat(9, 1), pole]), torch.arange(9)
    >>> permutation_test(rows, Resolved(RELIGION, side, side + 9, side[:1] + 18, side[:1] + 19), runs=999)
    0.001
    """
    if runs < 1:
        raise ValueError(f"a permutation test needs runs >= 1, got {runs}")
    s = association(vectors.detach(), torch.cat([test.x, test.y]), test.a, test.b).double().cpu().numpy()
    n, total = len(test.x), s.sum()

    def difference(first: np.ndarray) -> np.ndarray:  # of the means, from the sum over the first list
        apart = first / n - (total - first) / (len(s) - n)
        return np.abs(apart) if two_sided else apart

    least = difference(s[:n].sum()) - 1e-12 * np.abs(s).sum()  # the same list summed in another order is a tie
    count = sum(int((difference(sums) >= least).sum()) for sums in _sums(s, n, runs, seed))
    return (count + 1) / (runs + 1)


def _sums(s: np.ndarray, n: int, runs: int, seed: int, block: int = 10_000) -> Iterator[np.ndarray]:
    """Sums over ``n`` of the values, drawn without replacement ``runs`` times; in blocks, so that memory is bounded."""
    rng = np.random.default_rng(seed)
    for start in range(0, runs, block):
        values = np.tile(s, (min(block, runs - start), 1))
        yield rng.permuted(values, axis=1, out=values)[:, :n].sum(axis=1)


def _standardised(vectors: Tensor, test: Resolved, ddof: int) -> tuple[Tensor, Tensor, Tensor]:
    """``s`` over X then Y, the weights ``c`` with ``c @ s`` the difference of their means, and the sd of ``s``."""
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    s = association(vectors, torch.cat([test.x, test.y]), test.a, test.b)  # (n,)
    c = torch.cat([s.new_full((len(side),), sign / len(side)) for side, sign in ((test.x, 1), (test.y, -1))])
    spread = s.std(correction=ddof)
    if not spread.detach() > 4 * torch.finfo(s.dtype).eps:
        raise ValueError(f"{test.words.name}: all target words have the same association, so the effect is not defined")
    return s, c, spread


def _pole(vectors: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Mean unit row of A less that of B, ``(d,)``: the association of a word is its unit row times this."""
    pole = _units(vectors, a)[0].mean(0)
    return pole - _units(vectors, b)[0].mean(0) if len(b) else pole


def _across(v: Tensor, unit: Tensor) -> Tensor:
    """``v`` without its part along each unit row, ``(n, d)``."""
    return v - (unit @ v)[:, None] * unit


def _units(vectors: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows at length 1, ``(n, d)``, and their lengths, ``(n, 1)``."""
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(f"vectors must be real numbers, shape (V, d), got {vectors.dtype} {tuple(vectors.shape)}")
    low, high = (int(rows.min()), int(rows.max())) if len(rows) else (-1, -1)
    if not 0 <= low <= high < len(vectors):
        raise ValueError(
            f"need rows from 0 to {len(vectors) - 1} of the vectors, got {low} to {high}: other vocabulary?"
        )
    found = vectors[rows]
    length = found.norm(dim=1, keepdim=True)
    for what, wrong in (("hold NaN or infinity", ~length.isfinite()), ("are zero", length == 0)):
        if wrong.any():
            raise ValueError(f"vectors of test words {what}: rows {rows[wrong[:, 0]].tolist()}")
    return found / length, length
