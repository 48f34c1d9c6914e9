"""From the grids of :mod:`clif_kit.debias_study` to metrics: per seed first, then the mean and its interval over seeds.

Effects are signed; ``weat_abs`` is their size, ``weat_aligned`` the effect times the sign that it had. ``mean/all`` is
over tests and corpora. What ``held_out`` means: A, M and the cell chosen by one half of the word lists, judged by the
other; also a mean over splits.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from clif_kit.debias_grid import MODES, Plan, best_cell
from clif_kit.debias_study import GUARDED
from clif_kit.evaluate import Interval, interval, spearman
from clif_kit.word_guards import GUARDS

Arrays = Mapping[str, np.ndarray]
Found = Mapping[str, Mapping[str, Arrays]]  # by corpus, by test; each array with a first axis over seeds
Cells = dict[tuple[str, str], np.ndarray]  # by test and corpus, one number a seed
GENDER = ("career", "math", "art")
POLARISED = 1.5  # of at most 2


def at(grid: np.ndarray, chooser: np.ndarray, mode: int | None = None, *, extreme: bool = False) -> np.ndarray:
    """For each seed the value in the cell where ``chooser`` is smallest (``extreme``: largest) in size.

    Args:
        grid: ``(seeds, 3, sizes, passes)``.
        chooser: Likewise.
        mode: Only cells of this mode.
        extreme: See above.
    """
    ranked = 1 / np.maximum(np.abs(chooser), 1e-12) if extreme else chooser
    return np.array([values[best_cell(rank, mode)] for values, rank in zip(grid, ranked, strict=True)])


def methods(arrays: Arrays, own: int) -> dict[str, np.ndarray]:
    """Signed effects of one test, one number a seed, by method. ``own``: the test's place among the tests."""
    grid, post, random, overlap = (
        arrays[name][..., own] for name in ("grid", "grid_post", "grid_random", "grid_overlap")
    )
    found = {name: arrays[name][:, own] for name in ("original", "bolukbasi", "exchanged", "without")}
    found |= {"ours": at(grid, grid), "ours_post_bolukbasi": at(post, post)}
    found |= {mode: at(grid, grid, k) for k, mode in enumerate(MODES)}
    found |= {"random_test_words": at(random, grid), "random_best": at(random, random)}
    return found | {"overlap_best": at(overlap, overlap)}


def held_out(arrays: Arrays, tests: int) -> dict[str, np.ndarray]:
    """Signed effects of the half that took no part, ``(seeds, splits)``, by method; ``tests``: how many there are.

    ``ours_selection`` is the half that chose; ``ours_cell`` takes A and M from all words and the cell from that half.
    """
    splits = arrays["grid_split"].shape[1]
    split = [arrays["grid_split"][:, s] for s in range(splits)]
    whole, random = (
        [(arrays[name][..., tests + 2 * s], arrays[name][..., tests + 2 * s + 1]) for s in range(splits)]
        for name in ("grid", "grid_random")
    )
    found = {"original": [arrays["original"][:, tests + 2 * s + 1] for s in range(splits)]}
    found["ours"] = [at(g[..., 1], g[..., 0]) for g in split]
    found["ours_selection"] = [at(g[..., 0], g[..., 0]) for g in split]
    found |= {mode: [at(g[..., 1], g[..., 0], k) for g in split] for k, mode in enumerate(MODES)}
    found["ours_cell"] = [at(second, first) for first, second in whole]
    found["random"] = [at(second, first) for first, second in random]
    return {name: np.stack(values, axis=1) for name, values in found.items()}


def set_sizes(arrays: Arrays, plan: Plan) -> tuple[int, int]:
    """Sizes of A and M in the cells that the halves chose: the (lower) median over seeds and splits, as in Table 8."""
    cells = [best_cell(grid[..., 0]) for seed in arrays["grid_split"] for grid in seed]
    sizes = [[plan.sizes[i] * (mode in (k, 2)) for mode, i, _ in cells] for k in (0, 1)]
    return tuple(int(np.percentile(side, 50, method="lower")) for side in sizes)


def together(correction: np.ndarray, tests: Sequence[int]) -> np.ndarray:
    """Mean rank correlation of these tests' effects over iterations, each times the sign of its start, ``(seeds,)``.

    A test that does not move at all counts as 0. ``correction``: ``(seeds, 1 + passes, tests)``.
    """
    aligned = correction * np.sign(correction[:, :1])
    still = np.ptp(correction, axis=1) == 0
    return np.array(
        [
            np.mean(
                [
                    0.0 if still[s, i] or still[s, j] else spearman(seed[:, i], seed[:, j])
                    for i, j in combinations(tests, 2)
                ]
            )
            for s, seed in enumerate(aligned)
        ]
    )


def debias_metrics(found: Found, names: Sequence[str], plan: Plan) -> dict[str, Interval | int]:
    """All metrics of the debiasing chapter.

    Args:
        found: What :func:`clif_kit.debias_study.random_one` and ``debias_one`` gave, merged.
        names: The tests, in the order of the study.
        plan: The grid.
    """
    by_method: dict[str, Cells] = {}
    unseen: dict[str, Cells] = {}
    out: dict[str, Interval | int] = {}
    for corpus, tests in found.items():
        for own, name in enumerate(names):
            place = (name, corpus)
            for method, values in methods(tests[name], own).items():
                by_method.setdefault(method, {})[place] = values
            for method, values in held_out(tests[name], len(names)).items():
                unseen.setdefault(method, {})[place] = values
            out |= _correction_metrics(tests[name], name, names, corpus, plan)
            sizes = set_sizes(tests[name], plan)
            out |= {f"n/{what}/{name}/{corpus}": n for what, n in zip(("amplifiers", "mitigators"), sizes, strict=True)}
        gender = [k for k, name in enumerate(names) if name in GENDER]
        moved = [together(tests[names[k]]["correction"], gender) for k in gender]
        out[f"spearman/gender_tests_together/{corpus}"] = _over_seeds(np.mean(moved, axis=0), "rank correlation")
    out |= _level_metrics(by_method, unseen) | _guard_metrics(found)
    return out


PER_CELL = (
    ("original", "ours"), ("original", "bolukbasi"), ("bolukbasi", "original"), ("bolukbasi", "ours"),
    ("bolukbasi", "ours_post_bolukbasi"),
)  # fmt: skip
IN_THE_MEAN = (
    *PER_CELL[:2], *(("original", mode) for mode in MODES), ("random_test_words", "ours"), ("random_best", "ours"),
    ("overlap_best", "ours"), ("exchanged", "original"), ("original_held_out", "ours_held_out"),
    ("random_held_out", "ours_held_out"), ("ours_cell_held_out", "ours_held_out"),
    *(("original_held_out", f"{mode}_held_out") for mode in MODES),
)  # fmt: skip


def _level_metrics(by_method: dict[str, Cells], unseen: dict[str, Cells]) -> dict[str, Interval]:
    sized = {method: {place: np.abs(v) for place, v in cells.items()} for method, cells in by_method.items()}
    sized |= {f"{m}_held_out": {place: np.abs(v).mean(1) for place, v in cells.items()} for m, cells in unseen.items()}
    out = {f"weat/{m}/{t}/{c}": _over_seeds(v) for m, cells in by_method.items() for (t, c), v in cells.items()}
    for method in ("original", "ours"):
        for (name, corpus), values in unseen[method].items():
            out[f"weat/{method}_held_out/{name}/{corpus}"] = _over_seeds(values.mean(1))
            out[f"weat_abs/{method}_held_out/{name}/{corpus}"] = _over_seeds(np.abs(values).mean(1))
    out |= {f"weat_abs/{method}/mean/all": _over_seeds(mean(cells)) for method, cells in sized.items()}
    for one, other in PER_CELL:
        for (name, corpus), values in sized[one].items():
            drop = values - sized[other][name, corpus]
            out[f"weat_abs_drop/{one}_minus_{other}/{name}/{corpus}"] = _over_seeds(drop)
    for one, other in IN_THE_MEAN:
        out[f"weat_abs_drop/{one}_minus_{other}/mean/all"] = _over_seeds(mean(sized[one]) - mean(sized[other]))
    rows = [sized[method] for method in ("original", "bolukbasi", "ours", "ours_post_bolukbasi")]
    best = {place: np.argmin([cells[place] for cells in rows], axis=0) == 3 for place in rows[0]}
    return out | {"share_best/ours_post_bolukbasi/all": _over_seeds(mean(best), "share")}


def _correction_metrics(arrays: Arrays, name: str, names: Sequence[str], corpus: str, plan: Plan) -> dict:
    """How each effect moves under the correction for one test, after each K and at the K that is best for that test."""
    values, own = arrays["correction"], names.index(name)  # (seeds, 1 + passes, tests, ...)
    best = 1 + np.abs(values[:, 1:, own]).argmin(1)
    out = {}
    for k, other in enumerate(names):
        start, end = values[:, 0, k], values[np.arange(len(values)), best, k]
        out[f"weat_abs_drop/original_minus_{name}_correction/{other}/{corpus}"] = _over_seeds(abs(start) - abs(end))
    start = values[:, 0, own]
    for j, passes in enumerate(plan.passes, start=1):
        what, end = f"{name}_correction_{passes}", values[:, j, own]
        out[f"weat_abs_drop/original_minus_{what}/{name}/{corpus}"] = _over_seeds(abs(start) - abs(end))
        out[f"weat_aligned/{what}/{name}/{corpus}"] = _over_seeds(np.sign(start) * end)
        out[f"weat_abs_shift/{what}/{name}/{corpus}"] = _over_seeds(abs(end - start))
    return out


def _guard_metrics(found: Found) -> dict[str, Interval]:
    every = [arrays for tests in found.values() for arrays in tests.values()]
    values = np.mean([arrays["guards"] for arrays in every], axis=0)  # (seeds, methods, measures)
    out = {
        f"guard/{method}/{measure}": _over_seeds(values[:, i, j], measure)
        for i, method in enumerate(GUARDED)
        for j, measure in enumerate(GUARDS)
    }
    moved = np.mean([arrays["moved"].mean(1) for arrays in every], axis=0)
    return out | {"share_moved/held_out_words/all": _over_seeds(moved, "share")}


def overbias_metrics(found: Found, names: Sequence[str]) -> dict[str, Interval]:
    """All metrics of the over-biasing chapter; the reported cell is the one with the largest effect in size.

    Args:
        found: What :func:`clif_kit.debias_study.random_one` and ``overbias_one`` gave, merged.
        names: The tests, in the order of the study.
    """
    cells: dict[str, Cells] = {}
    for corpus, tests in found.items():
        for own, name in enumerate(names):
            arrays, place = tests[name], (name, corpus)
            grid, random = arrays["grid"][..., own], arrays["grid_random"][..., own]
            start = arrays["original"][:, own]
            unseen = held_out_extremes(arrays, len(names))
            for method, values in {
                "original": start,
                "overbiased": at(grid, grid, extreme=True),
                "random_test_words": at(random, grid, extreme=True),
                "random_extreme": at(random, random, extreme=True),
                **unseen,
            }.items():
                cells.setdefault(method, {})[place] = values
    sized = {m: {place: np.abs(v).reshape(len(v), -1).mean(1) for place, v in c.items()} for m, c in cells.items()}
    sign = {place: np.sign(values) for place, values in cells["original"].items()}
    out = {}
    for method in ("original", "overbiased", "random_test_words", "random_extreme"):
        for (name, corpus), values in cells[method].items():
            out[f"weat/{method}/{name}/{corpus}"] = _over_seeds(values)
            out[f"weat_aligned/{method}/{name}/{corpus}"] = _over_seeds(sign[name, corpus] * values)
    for (name, corpus), values in sized["overbiased"].items():
        drop = values - sized["original"][name, corpus]
        out[f"weat_abs_drop/overbiased_minus_original/{name}/{corpus}"] = _over_seeds(drop)
    out |= {f"weat_abs/{method}/mean/all": _over_seeds(mean(c)) for method, c in sized.items()}
    pairs = [("overbiased", other) for other in ("original", "random_test_words", "random_extreme")]
    for one, other in (*pairs, ("overbiased_held_out", "original_held_out")):
        out[f"weat_abs_drop/{one}_minus_{other}/mean/all"] = _over_seeds(mean(sized[one]) - mean(sized[other]))
    shares = {
        "share_polarised/overbiased/all": {place: v > POLARISED for place, v in sized["overbiased"].items()},
        "share_polarised/random_extreme/all": {place: v > POLARISED for place, v in sized["random_extreme"].items()},
        "share_flipped/overbiased/all": {place: sign[place] * v < 0 for place, v in cells["overbiased"].items()},
    }
    return out | {key: _over_seeds(mean(values), "share") for key, values in shares.items()}


def held_out_extremes(arrays: Arrays, tests: int) -> dict[str, np.ndarray]:
    """Effects of the second halves, ``(seeds, splits)``, before and in the most extreme cell of the first half."""
    splits = range(arrays["grid_split"].shape[1])
    found = {"original_held_out": [arrays["original"][:, tests + 2 * s + 1] for s in splits]}
    grids = [arrays["grid_split"][:, s] for s in splits]
    found["overbiased_held_out"] = [at(grid[..., 1], grid[..., 0], extreme=True) for grid in grids]
    return {name: np.stack(values, axis=1) for name, values in found.items()}


def mean(cells: Cells) -> np.ndarray:
    """Mean over tests and corpora, one number a seed."""
    return np.mean(list(cells.values()), axis=0)


def _over_seeds(values: np.ndarray, unit: str = "sd") -> Interval:
    return interval(np.mean, np.asarray(values, dtype=float), over="seeds", unit=unit, keep_values=True)
