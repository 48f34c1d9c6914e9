r"""Deletion: leave out the top proponents or opponents of a test point, train from scratch, look at its prediction.

.. math:: \mathrm{DEL}_\pm(x', k) = \mathbb{E}_\text{seed}\left[p_y(x'; \theta_{\pm k}) - p_y(x'; \theta)\right]

(Yeh et al. 2022, section 2.2): :math:`p_y` is the probability of the true class, :math:`\theta` the full-data model of
the same seed. From rankings (:mod:`clif_kit.deletion_ranks`) to a plan of distinct retrainings, from the plan to
changes. What those say about a method is for :mod:`clif_kit.deletion_metrics` and :mod:`clif_kit.deletion_lds`.

Sign of a score: positive = proponent, without it the query loss, here minus the probability of the true class, would
rise. So a good method's proponents make ``DEL+`` negative and its opponents make ``DEL-`` positive.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clif_kit.parallel import map_seeds
from clif_kit.store import Store, fingerprint

Fit = Callable[[np.ndarray, int], Mapping[str, np.ndarray]]


# ---- the plan


@dataclass(frozen=True)
class Plan:
    """Which models are trained, each once, and where each method finds its own.

    Attributes:
        n: Training examples.
        tests: Test points that a fit reports.
        sizes: Every k.
        seeds: Of the retrainings; the full data are trained with each of them too.
        points: Those of them whose sets are removed.
        sets: Distinct sets to leave out, each sorted; the first is empty: the full data.
        places: By method, places in ``sets``, ``(2, sizes, points)``.
        subsets: By name (``"drop05"``), places of the random subsets in ``sets``, ``(m,)``.
    """

    n: int
    tests: int
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    points: np.ndarray
    sets: tuple[np.ndarray, ...]
    places: Mapping[str, np.ndarray]
    subsets: Mapping[str, np.ndarray]

    @property
    def retrainings(self) -> int:
        """How many models: distinct sets, the full data among them, times seeds."""
        return len(self.sets) * len(self.seeds)

    def summary(self, seconds: float | None = None, processes: int = 1, left: int | None = None) -> str:
        """What it costs, in two lines, for printing before it starts.

        Args:
            seconds: Of one fit, measured.
            processes: At a time.
            left: Models that are not in the store yet. None: all.
        """
        asked = 1 + sum(place.size for place in (*self.places.values(), *self.subsets.values()))
        left = self.retrainings if left is None else left
        shares = " to ".join(dict.fromkeys(f"{100 * k / self.n:.2g}" for k in (min(self.sizes), max(self.sizes))))
        sets = f"{len(self.sets) - 1:,} distinct sets and the full data x {len(self.seeds)} seeds"
        cost = "time unknown: no fit was measured" if left else "nothing to train"
        if left and seconds is not None:
            cost = f"about {_duration(seconds * -(-left // processes))} at {seconds:.3g} s a fit, {processes} at a time"
        return (
            f"{self.retrainings:,} retrainings: {sets} ({asked * len(self.seeds):,} before equal sets were merged); "
            f"k = {', '.join(map(str, self.sizes))} of {self.n:,} ({shares} %)\n"
            f"{self.retrainings - left:,} are stored, {left:,} are left: {cost}"
        )


def make_plan(
    ranks: Mapping[str, np.ndarray], sizes: Sequence[int], seeds: Sequence[int], n: int, *,
    points: Sequence[int] | None = None, subsets: Mapping[str, Sequence[np.ndarray]] | None = None,
) -> Plan:  # fmt: skip
    """Collect the sets of all methods, signs, k and test points; equal ones become one, whoever asked for them.

    Args:
        ranks: By method, ``(2, tests, largest)``, from :func:`rank` and the controls. The set of k is its first k.
        sizes: Every k, rising.
        seeds: Of the retrainings, each once.
        n: Training examples.
        points: Test points whose sets are removed. None: all.
        subsets: By name, random sets to leave out, for :mod:`clif_kit.deletion_lds`.

    Raises:
        ValueError: If k's do not rise or are longer than a ranking, a seed comes twice, rankings differ in tests, or a
            set leaves nothing to train on.

    >>> from clif_kit.deletion_ranks import rank
    >>> ranks = rank(np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]]), 2)
    >>> plan = make_plan({"a": ranks, "a_negated": ranks[::-1]}, [1, 2], [0], n=3)
    >>> [chosen.tolist() for chosen in plan.sets]
    [[], [2], [1], [1, 2], [0], [0, 1], [0, 2]]
    """
    sizes, seeds, tests = tuple(map(int, sizes)), tuple(map(int, seeds)), {r.shape[1] for r in ranks.values()}
    if not sizes or sizes[0] < 1 or any(a >= b for a, b in pairwise(sizes)) or sizes[-1] >= n:
        raise ValueError(f"k's must rise from 1 or more to less than n = {n}, got {list(sizes)}")
    if not seeds or len(set(seeds)) < len(seeds) or len(tests) != 1:
        raise ValueError(f"each seed once, and rankings of the same tests, got {list(seeds)} and {sorted(tests)} tests")
    if short := [name for name, r in ranks.items() if r.shape[2] < sizes[-1]]:
        raise ValueError(f"k = {sizes[-1]} is longer than the rankings of {', '.join(short)}: rank with that largest")
    points = np.arange(*tests) if points is None else np.asarray(points, dtype=int)
    found: dict[bytes, int] = {b"": 0}

    def place(chosen: np.ndarray) -> int:
        chosen = np.sort(np.asarray(chosen, dtype=np.int64))
        if len(chosen) and not (chosen[0] >= 0 and chosen[-1] < n and (np.diff(chosen) > 0).all() and len(chosen) < n):
            raise ValueError(f"a set to leave out must be distinct indices below n = {n} and leave something")
        return found.setdefault(chosen.tobytes(), len(found))

    places = {
        name: np.array([[[place(r[i, t, :k]) for t in points] for k in sizes] for i in range(2)])
        for name, r in ranks.items()
    }
    drops = {name: np.array([place(chosen) for chosen in group]) for name, group in (subsets or {}).items()}
    sets = tuple(np.frombuffer(key, dtype=np.int64) for key in found)
    return Plan(n, *tests, sizes, seeds, points, sets, places, drops)


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


# ---- running it


def left(plan: Plan, store: Store) -> int:
    """How many models of the plan are not in the store."""
    return sum(not store.has(_key(number)) for number in _tasks(plan))


def run(
    plan: Plan, fit: Fit, *, store: Store, n_jobs: int = 2, seconds: float | None = None, progress: bool = True,
    say: Callable[[str], object] = print,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Train every model of the plan that the store does not hold; say first what that costs.

    A model is kept under what decides it, the set that left and the seed: a killed run goes on, and another plan (more
    methods, other k's or test points) finds what this one has trained.

    Args:
        plan: From :func:`make_plan`.
        fit: ``fit(keep, seed) -> {name: array}``: trains from scratch on the kept examples, ``keep`` is ``(n,)`` bool;
            one of the arrays is ``probability``, ``(tests,)``: of the true class, for all test points.
        store: Its fingerprint must cover ``fit``, its settings and all data, but neither sets nor seeds.
        n_jobs: Processes, one torch thread each.
        seconds: Of one fit. None: the first missing model is trained in this process and its time taken.
        progress: Draw a bar on the error stream.
        say: Where the summary goes.

    Returns:
        Each array of ``fit``, stacked: ``(sets, seeds, ...)``, in the order of ``plan.sets`` and ``plan.seeds``.

    Raises:
        ValueError: If a fit gives no ``probability`` of all test points, or one that is NaN or outside [0, 1].
        StoreLocked: If another process works on the same store.
    """
    tasks = _tasks(plan)
    missing = {number: task for number, task in tasks.items() if not store.has(_key(number))}

    def again(number: int) -> dict[str, np.ndarray]:
        removed, seed = missing[number]
        keep = np.ones(plan.n, dtype=bool)
        keep[removed] = False
        return _checked(fit(keep, seed), plan.tests, f"without {len(removed)} examples, seed {seed}")

    todo = list(missing)
    if todo and seconds is None:
        began = time.perf_counter()
        map_seeds(again, todo[:1], store=store, n_jobs=1, progress=False)
        seconds, todo = time.perf_counter() - began, todo[1:]
    say(plan.summary(seconds, n_jobs, len(todo)))
    if todo:
        map_seeds(again, todo, store=store, n_jobs=n_jobs, progress=progress)
    shards = [store.load(_key(number)) for number in tasks]
    shape = (len(plan.sets), len(plan.seeds))
    return {name: np.stack([s[name] for s in shards]).reshape(*shape, *shards[0][name].shape) for name in shards[0]}


def _tasks(plan: Plan) -> dict[int, tuple[np.ndarray, int]]:
    """Set and seed by a number made of nothing else."""
    pairs = [(removed, seed) for removed in plan.sets for seed in plan.seeds]
    return {int(fingerprint("deletion", removed, seed)[:15], 16): (removed, seed) for removed, seed in pairs}


def _key(number: int) -> str:
    return f"seed-{number:06d}"  # as map_seeds names it: to that function the number is a seed


def _checked(found: Mapping[str, np.ndarray], tests: int, where: str) -> dict[str, np.ndarray]:
    found = {name: np.asarray(value) for name, value in found.items()}
    p = found.get("probability")
    if p is None or p.shape != (tests,):
        raise ValueError(f"fit must return 'probability' of shape ({tests},), got {'none' if p is None else p.shape}")
    if wrong := int((~((p >= 0) & (p <= 1))).sum()):
        raise ValueError(f"{where}: {wrong} probabilities are NaN or outside [0, 1]; did the training diverge?")
    return found


# ---- what it changed


def changes(plan: Plan, probability: np.ndarray) -> dict[str, np.ndarray]:
    """p(true class) without the set minus p(true class) of the full data, same seed, at the test point it was made for.

    Args:
        plan: What was run.
        probability: ``(sets, seeds, tests)``, from :func:`run`.

    Returns:
        By method, ``(2, sizes, points, seeds)``: proponents (good = negative), opponents (good = positive).
    """
    probability = np.asarray(probability, dtype=float)
    moved = (probability - probability[0])[:, :, plan.points]  # (sets, seeds, points)
    return {name: moved[place, :, np.arange(len(plan.points))] for name, place in plan.places.items()}


def subset_changes(plan: Plan, query_loss: np.ndarray) -> dict[str, np.ndarray]:
    """Change of the query loss when each random subset leaves, same seed: what a sum of scores predicts.

    Args:
        plan: What was run.
        query_loss: ``(sets, seeds, tests)``, lower = better: minus ``probability``, or a loss that the fit returned.

    Returns:
        By name of the subsets, ``(seeds, tests, m)``, for all test points.
    """
    query_loss = np.asarray(query_loss, dtype=float)
    moved = query_loss - query_loss[0]
    return {name: np.moveaxis(moved[place], 0, -1) for name, place in plan.subsets.items()}
