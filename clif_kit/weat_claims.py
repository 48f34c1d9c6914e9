"""What the chapter on bias tests says of one model: effects, p-values, the published scores and what carries them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clif_kit.corpus import Corpus, pair_numbers
from clif_kit.evaluate import Interval, interval, spearman
from clif_kit.sentence_stream import stream_scores
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.weat import RELIGION, SIDES, Resolved, association, effect, effect_gradient, permutation_test, resolve
from clif_kit.word_influence import dot_direction, lissa_published_direction
from clif_kit.word_queries import query_gradient, weat_query
from clif_kit.word_study import Study, side_counts

TOP = 100  # sentences that "the most influential" means where the paper gives no number


def in_float64(params: Params) -> Params:
    """The same matrices in double precision."""
    return {name: matrix.double() for name, matrix in params.items()}


def effect_numbers(study: Study, params: Params, *, runs: int = 10_000) -> dict[str, dict[str, float]]:
    """For each test the effect and its two-sided permutation p: ``{"effect": {...}, "p": {...}}``."""
    vectors = params["input"]
    return {
        "effect": {name: float(effect(vectors, test)) for name, test in study.tests.items()},
        "p": {name: permutation_test(vectors, test, runs=runs, two_sided=True) for name, test in study.tests.items()},
    }


def published_scores(
    study: Study, params: Params, *, repeats: int = 10, engine: str = "auto"
) -> tuple[list[Params], np.ndarray]:
    """The published estimator on the absolute effect of each test: its directions, and scores ``(tests, n)``."""
    loss = SkipgramLoss.published(study.loss.window)
    grads = [query_gradient(weat_query(test), params) for test in study.tests.values()]
    found = [lissa_published_direction(params, study.corpus, grad, loss, repeats=repeats) for grad in grads]
    return found, stream_scores(study.corpus, params, found, loss, engine=engine)


def religion(study: Study, params: Params, min_count: int) -> dict[str, float]:
    """Section 4.3.1: mean cosine of either list of names with words of religion, and the one-sided effect.

    Raises:
        ValueError: If names or words of religion are too rare.
    """
    vocabulary = study.corpus.vocabulary
    counts = dict(zip(vocabulary.words, vocabulary.counts.tolist(), strict=True))
    test = resolve(RELIGION, counts, vocabulary.index, min_count)
    ea, aa = (float(association(params["input"], rows, test.a, test.b).mean()) for rows in (test.x, test.y))
    return {"ea": ea, "aa": aa, "effect": float(effect(params["input"], test))}


def literal_effect(vectors: Tensor, test: Resolved) -> Tensor:
    """Equation 12 as printed: the denominator is the mean squared deviation and not its root."""
    s = torch.cat([association(vectors, rows, test.a, test.b) for rows in (test.x, test.y)])
    x, y = s.split([len(test.x), len(test.y)])
    return (x.mean() - y.mean()) / (s - s.mean()).square().mean()


def rank_agreement(study: Study, params: Params, name: str, *, engine: str = "auto") -> dict[str, float]:
    """How sentences rank under other readings of the bias score: Spearman with the absolute effect, where they score.

    ``literal``: equation 12 as printed, absolute. ``signed``: the effect with its sign, as in the public code.
    """
    test, loss = study.tests[name], SkipgramLoss.published(study.loss.window)
    queries = (
        weat_query(test),
        lambda p: literal_effect(p["input"], test).abs(),
        weat_query(test, absolute=False),
    )
    found = [dot_direction(query_gradient(query, params), study.corpus, loss) for query in queries]
    ours, literal, signed = stream_scores(study.corpus, params, found, loss, engine=engine)
    some = ours != 0
    return {"literal": spearman(ours[some], literal[some]), "signed": spearman(ours[some], signed[some])}


def closed_form_cosine(study: Study, params: Params, name: str) -> float:
    """Cosine of the gradient of the effect in closed form (equation 14) with autograd's; 1 = the same direction."""
    test = study.tests[name]
    rows, closed = effect_gradient(params["input"], test)
    by_autograd = query_gradient(weat_query(test, absolute=False), params)["input"]
    ours = torch.zeros_like(by_autograd)
    ours[rows] = closed
    return float(torch.cosine_similarity(ours.flatten(), by_autograd.flatten(), dim=0))


def pair_parts(corpus: Corpus, i: int, params: Params, direction: Params, window: int) -> np.ndarray:
    """The published score of sentence ``i`` by pairs of places, ``(L, L)``: row = the centre whose vector moves."""
    rows = torch.from_numpy(corpus.sentence(i).astype(np.int64))
    place = torch.arange(len(rows))
    near = ((place[:, None] - place).abs() <= window) & (place[:, None] != place)
    u, v, h = params["input"][rows], params["context"][rows], direction["input"][rows]
    parts = -torch.sigmoid(-(u @ v.T)) * (h @ v.T) * near
    return (parts / max(1, int(pair_numbers(np.array([len(rows)]), window)[0]))).numpy()


def counter_share(
    study: Study, name: str, params: Params, direction: Params, sentences: np.ndarray, sign: float
) -> float:
    """Which share of these sentences' score is carried by pairs that contradict the bias.

    With an effect above zero X goes with A and Y with B; a pair of a target and an attribute, either way round, that
    joins X with B or Y with A contradicts it. The share is the sum of their parts over the sum of all parts.
    """
    test = study.tests[name]
    x, y, a, b = ({*getattr(test, side).tolist()} for side in SIDES)
    against = ((x, b), (y, a)) if sign > 0 else ((x, a), (y, b))
    counter = total = 0.0
    for i in sentences:
        parts, words = pair_parts(study.corpus, int(i), params, direction, study.loss.window), study.corpus.sentence(i)
        total += parts.sum()
        for targets, attributes in against:
            is_target, is_attribute = np.isin(words, list(targets)), np.isin(words, list(attributes))
            met = np.outer(is_target, is_attribute) | np.outer(is_attribute, is_target)
            counter += parts[met].sum()
    return float(counter / total)


def third_concept(study: Study, scores: np.ndarray, top: int = TOP) -> dict[str, float]:
    """What the race test's most influential sentences hold instead of names: shares among top and scoring sentences.

    ``no_names``: share of the ``top`` largest absolute scores without a word of X or Y. ``religion``: share of them
    without a name and with a word of religion. ``*_random``: the same among all sentences that score.
    """
    test, index = study.tests["race"], study.corpus.vocabulary.index
    rows = torch.tensor([index[word] for word in RELIGION.a if word in index], dtype=torch.int64)
    without = side_counts(study.corpus, torch.cat([test.x, test.y])) == 0
    pious = without & (side_counts(study.corpus, rows) > 0)
    chosen, scoring = np.argsort(-np.abs(scores), kind="stable")[:top], scores != 0
    return {
        "no_names": float(without[chosen].mean()),
        "no_names_random": float(without[scoring].mean()),
        "religion": float(pious[chosen].mean()),
        "religion_random": float(pious[scoring].mean()),
    }


def shared_top(first: np.ndarray, second: np.ndarray, common: int, top: int = 10) -> tuple[float, float]:
    """Overlap of the ``top`` sentences of two corpora whose first ``common`` sentences are the same; and by chance.

    Scores of the same test on either corpus. A top sentence that only one corpus has counts as not shared. Chance: the
    expected overlap when each corpus draws its ``top`` among the sentences that score.
    """
    tops = [set(np.argsort(-np.abs(s), kind="stable")[:top].tolist()) for s in (first, second)]
    met = len({i for i in tops[0] & tops[1] if i < common}) / top
    scoring = [np.flatnonzero(s) for s in (first, second)]
    both = len(np.intersect1d(*(rows[rows < common] for rows in scoring)))
    return met, both * (top / len(scoring[0])) * (top / len(scoring[1])) / top


def top_size(scores: np.ndarray, top: int = 10) -> float:
    """Mean absolute score of the ``top`` largest."""
    return float(np.sort(np.abs(scores))[-top:].mean())


def model_numbers(
    study: Study, trained: Params, *, min_count: int, repeats: int = 10, engine: str = "auto"
) -> dict[str, np.ndarray]:
    """Everything above for one model, as named numbers; ``scores`` is ``(tests, n)``."""
    params = in_float64(trained)
    found = effect_numbers(study, params)
    ways, scores = published_scores(study, params, repeats=repeats, engine=engine)
    numbers: dict[str, float] = {}
    for k, (name, way) in enumerate(zip(study.tests, ways, strict=True)):
        sign = np.sign(found["effect"][name])
        best = np.argsort(-scores[k], kind="stable")[:TOP]
        numbers[f"counter/{name}"] = counter_share(study, name, params, way, best[scores[k][best] > 0], sign)
        numbers[f"top10/{name}"] = top_size(scores[k])
        numbers |= {f"{what}/{name}": found[what][name] for what in found}
    readings: Mapping[str, str] = {"career": "literal", "art": "signed"}
    for name, what in readings.items():
        if name in study.tests:
            numbers[f"rank_{what}/{name}"] = rank_agreement(study, params, name, engine=engine)[what]
    if "career" in study.tests:
        numbers["closed/career"] = closed_form_cosine(study, params, "career")
    if "race" in study.tests:
        numbers |= {f"religion/{key}": value for key, value in religion(study, params, min_count).items()}
        third = third_concept(study, scores[list(study.tests).index("race")])
        numbers |= {f"third/{key}": value for key, value in third.items()}
    return {"scores": scores} | {name: np.array(value) for name, value in numbers.items()}


def trained_loss_scores(study: Study, models: Sequence[Params], *, engine: str = "auto") -> np.ndarray:
    """Gradient dot with the loss as trained (sum over pairs, expected noise), mean over models, ``(tests, n)``."""
    total = np.zeros((len(study.tests), len(study.corpus)))
    for params in models:
        grads = [query_gradient(weat_query(test), params) for test in study.tests.values()]
        found = [dot_direction(grad, study.corpus, study.loss) for grad in grads]
        total += stream_scores(study.corpus, params, found, study.loss, engine=engine)
    return total / len(models)


def summary(found: Mapping[str, Sequence[Mapping[str, np.ndarray]]], *, common: int) -> dict[str, Interval | float]:
    """The chapter's metrics from :func:`model_numbers` of every seed of every corpus, with intervals over seeds.

    Args:
        found: By corpus, one result a seed; seeds of two corpora are paired (same start).
        common: Sentences at the beginning that both corpora have.
    """
    metrics: dict[str, Interval | float] = {}

    def over_seeds(key: str, values: Sequence[float]) -> None:
        metrics[key] = interval(np.mean, np.asarray(values, dtype=float), over="seeds", keep_values=True)

    def column(corpus: str, name: str) -> np.ndarray:
        return np.array([float(one[name]) for one in found[corpus]])

    for corpus, seeds in found.items():
        tests = [name.removeprefix("effect/") for name in seeds[0] if name.startswith("effect/")]
        for test in tests:
            over_seeds(f"weat/original/{test}/{corpus}", column(corpus, f"effect/{test}"))
            metrics[f"p/original/{test}/{corpus}"] = float(np.median(column(corpus, f"p/{test}")))
        over_seeds(
            f"share_counter/mitigators/mean/{corpus}", np.mean([column(corpus, f"counter/{t}") for t in tests], 0)
        )
        for key, name in (
            (f"spearman/eq12_literal_caliskan/career/{corpus}", "rank_literal/career"),
            (f"spearman/absolute_signed/art/{corpus}", "rank_signed/art"),
            (f"cosine/closed_form_autograd/career{'' if corpus == 'biased' else '/' + corpus}", "closed/career"),
            (f"cosine/aa_names_religion/{corpus}", "religion/aa"),
            (f"cosine/ea_names_religion/{corpus}", "religion/ea"),
            (f"weat_one_sided/original/religion/{corpus}", "religion/effect"),
            (f"share_without_targets/top100/race/{corpus}", "third/no_names"),
        ):
            if name in seeds[0]:
                over_seeds(key, column(corpus, name))
        if "religion/aa" in seeds[0]:
            aa, ea = column(corpus, "religion/aa"), column(corpus, "religion/ea")
            over_seeds(f"cosine_gap/aa_minus_ea_names/religion/{corpus}", aa - ea)
            over_seeds(f"cosine_ratio/aa_by_ea_names/religion/{corpus}", aa / ea)
            gain = column(corpus, "third/religion") - column(corpus, "third/religion_random")
            over_seeds(f"share_gain/religion_top_minus_random/race/{corpus}", gain)
        if {"math", "career"} <= set(tests):
            gap = column(corpus, "top10/math") - column(corpus, "top10/career")
            over_seeds(f"score_gap/math_minus_career_top10/{corpus}", gap)
    if {"biased", "neutral"} <= set(found):
        gaps = [abs(column("neutral", f"effect/{t}")) - abs(column("biased", f"effect/{t}")) for t in tests]
        for test, gap in zip(tests, gaps, strict=True):
            over_seeds(f"weat_abs_gap/neutral_minus_biased/{test}", gap)
        over_seeds("weat_abs_gap/neutral_minus_biased/mean", np.mean(gaps, 0))
        k = tests.index("math")
        shared = [
            shared_top(one["scores"][k], other["scores"][k], common)
            for one, other in zip(found["biased"], found["neutral"], strict=True)
        ]
        over_seeds("overlap_top10_gain/math_minus_random/biased_neutral", [met - chance for met, chance in shared])
    return metrics
