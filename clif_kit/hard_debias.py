r"""Hard debiasing: take one direction out of word vectors (Bolukbasi, Chang, Zou, Saligrama and Kalai 2016).

Rows are brought to length 1. The direction g is the first principal component of the definitional pairs, each less its
centre. A *neutral* word w becomes :math:`w - (w \cdot g) g`, at length 1 again. A pair that is to be *equalised* gets
:math:`y \pm z g` with :math:`y` its mean without its part along g and :math:`z = \sqrt{1 - |y|^2}`: two unit rows that
differ in g alone, so every neutral word is as far from one as from the other.

The pairs are data from github.com/tolga-b/debiaswe (MIT); the race lists are from
github.com/CORE-Robotics-Lab/Cross_Loss_Influence_Functions (MIT), whose definitional pairs for race
(``d_race.json``) are missing there, so the race row of the published Bolukbasi results cannot be repeated exactly.
:data:`RACE_DEFINITIONAL` is our stand-in. Some of the lists are stereotypes themselves; they are here to be examined.
"""

from collections.abc import Callable, Collection, Iterable, Mapping

import torch
from torch import Tensor

MIN_PAIRS = 3  # fewer say nothing about what pairs have in common
Pairs = tuple[tuple[str, str], ...]


def _pairs(text: str) -> Pairs:
    return tuple((first, second) for first, second in (pair.split("/") for pair in text.split()))


DEFINITIONAL = _pairs(  # the file has "Mary"/"John"
    "woman/man girl/boy she/he mother/father daughter/son gal/guy female/male her/his herself/himself mary/john"
)
# 43 of the file's 52 pairs, in lower case. Five are the same pair in capitals (Dad/Mom, Men/Women, Father/Mother,
# Grandpa/Grandma, He/She), and four are phrases, which a vocabulary of words lacks (Catholic_priest/nun,
# prostate_cancer/ovarian_cancer, ex_girlfriend/ex_boyfriend, twin_brother/twin_sister).
EQUALIZE = _pairs(
    "monastery/convent spokesman/spokeswoman councilman/councilwoman grandpa/grandma grandsons/granddaughters "
    "testosterone/estrogen uncle/aunt wives/husbands boy/girl boys/girls brother/sister brothers/sisters "
    "businessman/businesswoman chairman/chairwoman colt/filly congressman/congresswoman dad/mom dads/moms dudes/gals "
    "father/mother fatherhood/motherhood fathers/mothers fella/granny fraternity/sorority gelding/mare gentleman/lady "
    "gentlemen/ladies grandfather/grandmother grandson/granddaughter he/she himself/herself his/her king/queen "
    "kings/queens male/female males/females man/woman men/women nephew/niece prince/princess schoolboy/schoolgirl "
    "son/daughter sons/daughters"
)
GENDER_WORDS = frozenset(word for pair in DEFINITIONAL + EQUALIZE for word in pair)  # to keep where no longer list is
RACE_KEEP = frozenset(("black", "white", "african-american", "caucasian"))  # r_race.json
RACE_EQUALIZE = _pairs(  # e_race.json
    "slave/manager musician/executive runner/redneck criminal/hillbilly homeless/leader"
)
# Ours: the target words of the race test of clif_kit.weat, in the order of its lists. Who is paired with whom is
# arbitrary, and the direction is fitted on the very words that the test is made of, which flatters it.
RACE_DEFINITIONAL = _pairs(
    "josh/theo alan/jerome ryan/leroy andrew/lamar jack/lionel greg/malik amanda/tyrone katie/ebony nancy/jasmine "
    "ellen/tia"
)


def find_pairs(pairs: Iterable[tuple[str, str]], index: Mapping[str, int]) -> tuple[Tensor, Pairs]:
    """Rows of the pairs that the vocabulary has both words of, ``(k, 2)`` int64, and the pairs that it has not.

    >>> find_pairs([("she", "he"), ("gal", "guy")], {"he": 0, "she": 1, "guy": 2})
    (tensor([[1, 0]]), (('gal', 'guy'),))
    """
    pairs = tuple(pairs)
    rows = [[index[word] for word in pair] for pair in pairs if all(word in index for word in pair)]
    skipped = tuple(pair for pair in pairs if not all(word in index for word in pair))
    return torch.tensor(rows, dtype=torch.int64).reshape(-1, 2), skipped


def bias_direction(vectors: Tensor, pairs: Tensor) -> Tensor:
    """First principal component of the pairs, each less its centre, on rows of length 1.

    Args:
        vectors: ``(V, d)``, any length of rows.
        pairs: Rows of the definitional pairs, ``(k, 2)``; see :func:`find_pairs`.

    Returns:
        ``(d,)``, length 1, dtype of ``vectors``; on average it points from the second words to the first.

    Raises:
        ValueError: If there are fewer than three pairs, if in each pair both words are the same vector, or if
            ``vectors`` is not a real matrix or has a row that is zero or holds NaN or infinity.

    >>> rows = torch.tensor([[1.0, 1.0], [1.0, -1.0], [3.0, 3.0], [2.0, -2.0], [4.0, 3.0], [4.0, -3.0]])
    >>> bias_direction(rows, torch.tensor([[0, 1], [2, 3], [4, 5]])).round(decimals=6)
    tensor([0., 1.])
    """
    return _direction(_unit_rows(vectors), pairs).to(vectors.dtype)


def hard_debias(
    vectors: Tensor,
    index: Mapping[str, int],
    *,
    definitional: Iterable[tuple[str, str]],
    equalize: Iterable[tuple[str, str]],
    keep: Collection[str],
    say: Callable[[str], None] = print,
) -> Tensor:
    """Vectors without the direction that the definitional pairs have in common.

    As the authors' code does it: neutralise every word that is not in ``keep``, bring rows to length 1, equalise. Which
    word of a pair gets ``+z`` follows from the vectors as they were; where a pair was neutralised (it is not in
    ``keep``) the authors' code takes it from what is left along g, which is rounding error.

    Args:
        vectors: Input vectors, ``(V, d)``. Context vectors are not touched by this method.
        index: Word to row.
        definitional: Pairs that define the direction: :data:`DEFINITIONAL`, :data:`RACE_DEFINITIONAL`.
        equalize: Pairs to equalise, without a word in common: :data:`EQUALIZE`, :data:`RACE_EQUALIZE`.
        keep: Words that are not neutralised, :data:`GENDER_WORDS` say; equalising still changes them.
        say: Gets a line for each list that has pairs with a word that is not in ``index``; they are skipped.

    Returns:
        ``(V, d)``, rows of length 1, dtype of ``vectors``.

    Raises:
        ValueError: If fewer than three definitional pairs are there, if two pairs to equalise share a word, if nothing
            is left of a neutral word, or as :func:`bias_direction`.

    >>> index = {word: row for row, word in enumerate("she he woman man girl boy nurse".split())}
    >>> rows = torch.tensor([[1.0, 1], [1, -1], [3, 3], [2, -2], [4, 3], [4, -3], [3, 4]])
    >>> hard_debias(rows, index, definitional=DEFINITIONAL[:3], equalize=[], keep=GENDER_WORDS)[6]
    tensor([1., 0.])
    """
    unit = _unit_rows(vectors)
    if max(index.values(), default=0) >= len(unit):
        raise ValueError(f"index has row {max(index.values())}, the vectors have {len(unit)} rows: another vocabulary?")
    definitional, equalize = tuple(definitional), tuple(dict.fromkeys(map(tuple, equalize)))
    pairs = _found("definitional", definitional, index, say)
    if len(pairs) < MIN_PAIRS:
        raise ValueError(
            f"{len(pairs)} of {len(definitional)} definitional pairs are in the vocabulary, need {MIN_PAIRS}: "
            + _listed(definitional)
        )
    g = _direction(unit, pairs)
    neutral = torch.ones(len(unit), dtype=torch.bool, device=unit.device)
    neutral[[index[word] for word in keep if word in index]] = False
    result = torch.where(neutral[:, None], unit - torch.outer(unit @ g, g), unit)
    length = result.norm(dim=1, keepdim=True)
    if (length < 1e-6).any():  # of 1: what is left is rounding error of float32 vectors
        rows = (length[:, 0] < 1e-6).nonzero()[:, 0].tolist()
        raise ValueError(f"vectors of neutral words lie along the bias direction, nothing is left of them: rows {rows}")
    result = result / length
    pairs = _found("equalize", equalize, index, say)
    if len(pairs.unique()) < pairs.numel():
        raise ValueError(f"two pairs to equalise share a word, the later would undo the earlier: {_listed(equalize)}")
    return _equalised(result, pairs, g, unit).to(vectors.dtype)


def _equalised(vectors: Tensor, pairs: Tensor, g: Tensor, before: Tensor) -> Tensor:
    first, second = pairs.T
    y = (vectors[first] + vectors[second]) / 2
    y = y - torch.outer(y @ g, g)
    z = (1 - y.square().sum(1)).clamp(min=0).sqrt()
    z = torch.where((before[first] - before[second]) @ g < 0, -z, z)
    result = vectors.clone()
    result[first], result[second] = y + torch.outer(z, g), y - torch.outer(z, g)
    return result


def _direction(unit: Tensor, pairs: Tensor) -> Tensor:
    if pairs.ndim != 2 or pairs.shape[1] != 2 or len(pairs) < MIN_PAIRS:
        raise ValueError(f"a bias direction needs at least {MIN_PAIRS} pairs, shape (k, 2), got {tuple(pairs.shape)}")
    apart = unit[pairs[:, 0]] - unit[pairs[:, 1]]  # (k, d)  twice the distance of the first from the pair's centre
    if not apart.norm() > 1e-6:
        raise ValueError("both words of every definitional pair have the same vector, so there is no direction")
    g = torch.linalg.svd(apart, full_matrices=False).Vh[0]
    return -g if apart.sum(0) @ g < 0 else g


def _found(what: str, pairs: Pairs, index: Mapping[str, int], say: Callable[[str], None]) -> Tensor:
    rows, skipped = find_pairs(pairs, index)
    if skipped:
        say(f"{len(skipped)} of {len(pairs)} {what} pairs have a word without a vector, skipped: {_listed(skipped)}")
    return rows


def _listed(pairs: Pairs) -> str:
    return ", ".join("/".join(pair) for pair in pairs)


def _unit_rows(vectors: Tensor) -> Tensor:
    """All rows at length 1, in float64."""
    if vectors.ndim != 2 or not vectors.is_floating_point():
        raise ValueError(f"vectors must be real numbers, shape (V, d), got {vectors.dtype} {tuple(vectors.shape)}")
    rows = vectors.detach().double()
    length = rows.norm(dim=1, keepdim=True)
    for what, wrong in (("hold NaN or infinity", ~length.isfinite()), ("are zero", length == 0)):
        if wrong.any():
            raise ValueError(
                f"{int(wrong.sum())} of {len(vectors)} vectors {what}, first row {int(wrong.nonzero()[0, 0])}"
            )
    return rows / length
