r"""Debiasing and over-biasing of one model for one test, with every control, and for all models at once.

*Published* choice: A and M from the gradient of the test that is reported, the cell with the smallest effect on it.
*Honest* choice: all of that with one random half of the word lists, judged by the other half, which took no part.
Controls of the same sizes and numbers of steps: sentences at random with or without test words, sentences chosen by
counting words, A and M exchanged. Hard debiasing (Bolukbasi et al. 2016) alone, and with fine-tuning after it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clif_kit import corpora, debias, debias_grid, hard_debias
from clif_kit.corpus import Vocabulary
from clif_kit.debias_grid import (
    MODES,
    Measure,
    Plan,
    Sets,
    best_cell,
    chosen_sets,
    halves,
    meter,
    random_sets,
    rows_of,
    run_cell,
    run_grid,
    weat_scores,
)
from clif_kit.parallel import map_seeds
from clif_kit.skipgram import Params, SkipgramLoss
from clif_kit.store import Store, fingerprint
from clif_kit.weat import Resolved, WordTest
from clif_kit.word_guards import make_guards
from clif_kit.word_study import Study, about_tests, make_study, overlap_scores

GUARDED = ("original", "bolukbasi", "ours", "ours_post_bolukbasi")  # rows of the array `guards`
SHOWN = 10  # sentences kept to be shown
Arrays = dict[str, np.ndarray]


def make_studies(
    data: Sequence[str], tests: Mapping[str, WordTest], *, test_count: int = 4, focus: bool = False, window: int = 5,
    negatives: int = 5,
) -> dict[str, Study]:  # fmt: skip
    """A study for each corpus, by its name; a file is called as it is without folder and ending.

    As published, "neutral" has the vocabulary, the tests and the noise of "biased" if both are there; where they are
    the built-in ones they share their background.

    Args:
        data: As for :func:`clif_kit.corpora.load`.
        tests: Bias tests.
        test_count: Occurrences that a test word needs.
        focus: Keep only the sentences that hold a test word.
        window: Words on either side.
        negatives: Noise words a pair.
    """
    settings = {"test_count": test_count, "window": window, "negatives": negatives}
    own = {"biased": corpora.biased, "neutral": corpora.neutral}
    common = corpora.background() if own.keys() & set(data) else None
    found: dict[str, Study] = {}
    for name in sorted(data, key=lambda name: Path(name).stem):  # biased before neutral
        text, label = common + own[name]() if name in own else corpora.load(name), Path(name).stem
        if focus:
            text = text.select(about_tests(text, tests.values()))
        like = found.get("biased") if label == "neutral" else None
        found[label] = make_study(text, tests, **settings, like=like)
    return {Path(name).stem: found[Path(name).stem] for name in data}


def hard_debiased(params: Params, vocabulary: Vocabulary, test: str, keep: Collection[str]) -> Params:
    """Vectors after hard debiasing with the lists for race or for gender; rows of length 1 replace the input matrix.

    Args:
        params: The two matrices; the context matrix stays.
        vocabulary: Of the rows.
        test: Name of the bias test: "race" takes the race lists, any other the gender lists.
        keep: Words that are not neutralised, for gender.
    """
    lists = (hard_debias.DEFINITIONAL, hard_debias.EQUALIZE, keep)
    if test == "race":
        lists = (hard_debias.RACE_DEFINITIONAL, hard_debias.RACE_EQUALIZE, hard_debias.RACE_KEEP)
    found = dict(zip(("definitional", "equalize", "keep"), lists, strict=True))
    rows = hard_debias.hard_debias(params["input"], vocabulary.index, **found, say=lambda _: None)
    return {"input": rows, "context": params["context"]}


def published_loss(study: Study) -> SkipgramLoss:
    """What is climbed or descended: the loss of training, noise words included, as a mean over a sentence's pairs."""
    return replace(study.loss, mean=True)


# ---- one model, one test: three pieces, stored apart because two chapters share the first


def random_one(study: Study, params: Params, name: str, plan: Plan, seed: int) -> Arrays:
    """``original`` and, with random sentences that hold a test word, ``grid_random``; see :func:`debias_one`."""
    measure, _ = _measure(study, name, plan, seed)
    rows = rows_of([study.tests[name]])
    sets = random_sets(study.corpus, rows, plan.sizes[-1], seed)
    loss = published_loss(study)
    return {
        "original": measure(params),
        "grid_random": run_grid(params, study.corpus, sets, loss, plan, measure, seed),
    }


def debias_one(study: Study, params: Params, name: str, plan: Plan, seed: int) -> Arrays:
    """Fine-tune for one test, and all that is compared with it but :func:`random_one`.

    Returns:
        ``original``, ``bolukbasi``, ``exchanged`` (A and M), ``without`` (random sentences without test words): effects
        of all tests, then of the two halves of each split. ``grid``, ``grid_post`` (after hard debiasing),
        ``grid_overlap`` (sentences chosen by counting words): the same for each cell. ``correction``: after 0 and after
        each K, see :func:`correction`; ``correction_cell``: its mode and size. ``grid_split``, ``moved``: see
        :func:`held_out`. ``guards``: a row for each of ``GUARDED``. ``amplifiers``, ``mitigators``: the first ten, with
        their scores in ``scores``.
    """
    corpus, test, most = study.corpus, study.tests[name], plan.sizes[-1]
    (measure, splits), own = _measure(study, name, plan, seed), list(study.tests).index(name)
    loss, rows = published_loss(study), rows_of([test])
    scores = weat_scores(params, corpus, [test], study.loss.window)[0]
    hard = hard_debiased(params, corpus.vocabulary, name, plan.keep)
    ours, post = (chosen_sets(s, most) for s in (scores, weat_scores(hard, corpus, [test], study.loss.window)[0]))
    counted = chosen_sets(overlap_scores(study, params)["overlap_signed"][own], most)
    out = {"original": measure(params), "bolukbasi": measure(hard)}
    for which, start, sets in (("grid", params, ours), ("grid_post", hard, post), ("grid_overlap", params, counted)):
        out[which] = run_grid(start, corpus, sets, loss, plan, measure, seed)
    cell, cell_post = (best_cell(out[which][..., own]) for which in ("grid", "grid_post"))
    outside = random_sets(corpus, rows, most, seed, inside=False)
    after = {
        which: run_cell(start, corpus, sets, loss, plan, at, seed)
        for which, start, sets, at in (
            ("ours", params, ours, cell),
            ("post", hard, post, cell_post),
            ("exchanged", params, ours[::-1], cell),
            ("without", params, outside, cell),
        )
    }
    out |= {which: measure(after[which]) for which in ("exchanged", "without")}
    guard = make_guards(params, corpus.vocabulary, rows)
    out["guards"] = np.stack([guard(vectors) for vectors in (params, hard, after["ours"], after["post"])])
    out |= {"amplifiers": ours[0][:SHOWN], "mitigators": ours[1][:SHOWN]}
    out["scores"] = np.stack([scores[found[:SHOWN]] for found in ours])
    out |= correction(study, params, ours, out["grid"], own, plan, measure, seed)
    return out | held_out(study, params, splits, plan, seed, exchanged=False)


def overbias_one(study: Study, params: Params, name: str, plan: Plan, seed: int) -> Arrays:
    """The same with A and M exchanged: ``original``, ``grid``, ``grid_split`` as in :func:`debias_one`."""
    measure, splits = _measure(study, name, plan, seed)
    scores = weat_scores(params, study.corpus, [study.tests[name]], study.loss.window)[0]
    sets, loss = chosen_sets(scores, plan.sizes[-1])[::-1], published_loss(study)
    out = {"original": measure(params), "grid": run_grid(params, study.corpus, sets, loss, plan, measure, seed)}
    return out | held_out(study, params, splits, plan, seed, exchanged=True)


def correction(
    study: Study, params: Params, sets: Sets, grid: np.ndarray, own: int, plan: Plan, measure: Measure, seed: int
) -> Arrays:
    """Effects of all tests after 0 and after every K, in the mode and size with the smallest own effect (Figs 3, 4).

    Only sizes whose largest K is within ``plan.long_budget`` compete; cells that the grid left out are run.
    """
    sizes = [i for i, n in enumerate(plan.sizes) if plan.passes[-1] * n <= plan.long_budget]
    mode, i, _ = best_cell(grid[:, : len(sizes), :, own])
    values = grid[mode, i]
    if np.isnan(values).any():
        wide = replace(plan, sizes=(plan.sizes[i],), budget=plan.long_budget)
        loss = published_loss(study)
        values = run_grid(params, study.corpus, sets, loss, wide, measure, seed, modes=(MODES[mode],))[mode, 0]
    return {"correction": np.vstack([measure(params), values]), "correction_cell": np.array([mode, i])}


def held_out(
    study: Study, params: Params, splits: Sequence[tuple[Resolved, Resolved]], plan: Plan, seed: int, *, exchanged: bool
) -> Arrays:
    """Sets chosen by the first half of each split.

    Returns:
        ``grid_split``: effects of the first and the second half in each cell, ``(splits, 3, sizes, passes, 2)``.
        ``moved``: the share of the second half's words that the sentences of the chosen cell hold, ``(splits,)``; no
        other word of that half can move.
    """
    first = [half for half, _ in splits]
    scores = weat_scores(params, study.corpus, first, study.loss.window) if splits else []
    grids, moved, loss = [], [], published_loss(study)
    for (chooser, judge), row in zip(splits, scores, strict=True):
        sets = chosen_sets(row, plan.sizes[-1])[:: -1 if exchanged else 1]
        measure = meter([chooser, judge])
        grids.append(run_grid(params, study.corpus, sets, loss, plan, measure, seed))
        mode, i, _ = best_cell(grids[-1][..., 0])
        used = [found[: plan.sizes[i]] for k, found in enumerate(sets) if mode in (k, 2)]
        rows = rows_of([judge])
        moved.append(np.isin(rows, study.corpus.select(np.concatenate(used)).tokens).mean())
    shape = (0, 3, len(plan.sizes), len(plan.passes), 2)
    return {"grid_split": np.stack(grids) if grids else np.zeros(shape), "moved": np.array(moved)}


def _measure(study: Study, name: str, plan: Plan, seed: int) -> tuple[Measure, list[tuple[Resolved, Resolved]]]:
    """Effects of all tests and of the halves of each split; and the splits."""
    splits = [halves(study.tests[name], plan.seed + 1000 * seed + s) for s in range(plan.n_splits)]
    return meter([*study.tests.values(), *(half for split in splits for half in split)]), splits


# ---- all models, all tests


def run_all(
    one: Callable[[Study, Params, str, Plan, int], Arrays], study: Study, models: Sequence[Params], plan: Plan, *,
    folder: str | Path, n_jobs: int = 2, progress: bool = False,
) -> dict[str, Arrays]:  # fmt: skip
    """One piece for every test and model, in parallel processes, resumable.

    Args:
        one: :func:`random_one`, :func:`debias_one` or :func:`overbias_one`.
        study: The corpus and the tests.
        models: Vectors trained with seeds 0, 1, ...
        plan: The grid.
        folder: Where the stores of all settings lie.
        n_jobs: Processes.
        progress: Draw a bar on the error stream.

    Returns:
        By test and name, with a first axis over the models.
    """
    lean, names = replace(study, sentences=None), list(study.tests)  # the texts need not travel

    def piece(number: int) -> Arrays:
        seed, k = divmod(number, len(names))
        return one(lean, models[seed], names[k], plan, seed)

    kernel = Path(debias.__file__).with_name("debias_kernel.py").read_bytes()
    mark = fingerprint(
        one, plan, list(models), study.corpus.tokens, study.corpus.offsets, names,
        [vars(test.words) for test in study.tests.values()], [debias, debias_grid, hard_debias, kernel],
        [held_out, correction, make_guards, hard_debiased, published_loss],
    )  # fmt: skip
    store = Store(Path(folder) / f"{one.__name__}-{mark[:16]}", fingerprint=mark)
    numbers = range(len(models) * len(names))
    found = map_seeds(piece, numbers, store=store, n_jobs=n_jobs, progress=progress)
    return {
        name: {key: np.stack([arrays[key] for arrays in found[k :: len(names)]]) for key in found[k]}
        for k, name in enumerate(names)
    }
