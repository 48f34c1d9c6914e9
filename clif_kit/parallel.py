"""Any training run, once a removal, in parallel processes: resumable, on this machine or on a cluster.

joblib runs the tasks, :mod:`clif_kit.store` keeps what they return. The training is the caller's; nothing
here knows a model.
"""

import os
import platform
import warnings
from collections.abc import Callable, Sequence

import joblib
import numpy as np
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from torch import Tensor
from tqdm import tqdm

from clif_kit.store import Store, fingerprint
from clif_kit.watchdog import watch_parent

Removals = Sequence[Sequence[int]]  # indices to leave out, one sequence a model


def keep_weights(n: int, removals: Removals) -> Tensor:
    """Return ``(m, n)`` float64: 0 where the example is removed, else 1.

    Raises:
        IndexError: If an index is not in 0, ..., n - 1.
        TypeError: If a removal is a mask.
        ValueError: If a removal leaves nothing, or there is no removal.

    >>> keep_weights(3, [[0], [1, 2], []])
    tensor([[0., 1., 1.],
            [1., 0., 0.],
            [1., 1., 1.]], dtype=torch.float64)
    """
    if not len(removals):
        raise ValueError("no removals; leave-one-out is [[i] for i in range(n)]")
    weights = torch.ones(len(removals), n, dtype=torch.float64)
    for row, removal in zip(weights, removals, strict=True):
        for index in removal:
            if isinstance(index, bool | np.bool_):
                raise TypeError("a removal is a sequence of indices, not a mask: numpy.flatnonzero(mask)")
            if not 0 <= index < n:
                raise IndexError(f"cannot remove example {index} of {n}")
            row[index] = 0
        if not row.any():
            raise ValueError("a removal must leave at least one example")
    return weights


def retrain_parallel(
    fit: Callable[[np.ndarray], dict[str, np.ndarray]],
    n: int,
    removals: Removals,
    *,
    store: Store,
    shard: int = 16,
    n_jobs: int | None = 2,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Run ``fit`` once a removal in parallel processes; what is finished is on disk and is never done again.

    Run it again after a kill and it goes on: shards in the store are read, not computed. A worker that is killed costs
    the shards that were under way. Under ``joblib.parallel_config(backend="dask")`` the same call runs on a cluster.

    Args:
        fit: ``fit(keep) -> {name: array}``, where ``keep`` is ``(n,)``, bool, and alone decides (seed inside).
        n: Number of training examples.
        removals: Indices to leave out, one sequence a model.
        store: Where shards go. Its fingerprint must cover ``fit`` and the data; the removals are looked after here.
        shard: Models a file, and a task.
        n_jobs: Processes, one torch thread each. None leaves it to ``joblib.parallel_config``.
        progress: Draw a bar on the error stream.

    Returns:
        The arrays of ``fit``, stacked in the order of ``removals``: ``{name: (m, ...)}``.

    Raises:
        RuntimeError: If workers keep dying.
        StoreLocked: If another process works on the same store.
    """
    keep = keep_weights(n, removals).bool().numpy()
    parts = [keep[start : start + shard] for start in range(0, len(keep), shard)]
    keys = [f"{i * shard:06d}-{fingerprint(part)[:16]}" for i, part in enumerate(parts)]
    with store.lock(), tqdm(total=len(keep), disable=not progress, unit="model") as bar:
        todo = {key: part for key, part in zip(keys, parts, strict=True) if not store.has(key)}
        bar.update(len(keep) - sum(map(len, todo.values())))
        for attempt in range(3):
            try:
                _compute(fit, todo, store, n_jobs, bar)
                break
            except TerminatedWorkerError as error:
                if attempt == 2:
                    left = f"{len(todo)} of {len(keys)} shards are left"
                    raise RuntimeError(f"workers keep dying (too little memory?); {left}") from error
                warnings.warn("a worker died; going on with the shards that are left", RuntimeWarning, stacklevel=2)
        shards = [store.load(key) for key in keys]
    return {name: np.concatenate([arrays[name] for arrays in shards]) for name in shards[0]}


def map_seeds(
    study: Callable[[int], dict[str, np.ndarray]],
    seeds: Sequence[int],
    *,
    store: Store,
    n_jobs: int | None = 2,
    progress: bool = True,
    wait: float = 3600,
) -> list[dict[str, np.ndarray]]:
    """Run ``study(seed)`` for every seed in parallel processes; a finished seed is on disk and is never done again.

    Args:
        study: ``study(seed) -> {name: array}``; the seed alone decides.
        seeds: Each once.
        store: Where results go. Its fingerprint must cover ``study`` and its settings.
        n_jobs: Processes, one torch thread each. 1 stays in this process.
        progress: Draw a bar on the error stream.
        wait: Seconds to wait for another process that works on the same store, such as a chapter that shares it; what
            it made is then read.

    Returns:
        One dictionary a seed, in the order of ``seeds``.

    Raises:
        ValueError: If a seed comes twice.
        StoreLocked: If another process works on the same store for longer than that.

    >>> import tempfile
    >>> store = Store(tempfile.mkdtemp(), fingerprint=fingerprint("squares"))
    >>> map_seeds(lambda seed: {"square": np.array(seed**2)}, [3, 1], store=store, n_jobs=1, progress=False)
    [{'square': array(9)}, {'square': array(1)}]
    """
    home, keys = (platform.node(), os.getpid()), {seed: f"seed-{seed:06d}" for seed in seeds}
    if len(keys) < len(seeds):
        raise ValueError(f"each seed once, got {list(seeds)}")
    with store.lock(wait), tqdm(total=len(keys), disable=not progress, unit="seed") as bar:
        todo = [seed for seed, key in keys.items() if not store.has(key)]
        bar.update(len(keys) - len(todo))
        tasks = [joblib.delayed(_run_seed)(study, seed, home) for seed in todo]
        for seed, arrays in joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks):
            store.save(keys[seed], arrays)
            bar.update()
        return [store.load(key) for key in keys.values()]


def _compute(fit: Callable, todo: dict[str, np.ndarray], store: Store, n_jobs: int | None, bar: tqdm) -> None:
    """Compute shards in any order, save each as it comes, and strike it from ``todo``."""
    home = (platform.node(), os.getpid())
    tasks = [joblib.delayed(_run_shard)(fit, key, part, home) for key, part in todo.items()]
    for key, arrays in joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")(tasks):
        store.save(key, arrays)
        bar.update(len(todo.pop(key)))


def _run_shard(fit: Callable, key: str, keep: np.ndarray, home: tuple[str, int]) -> tuple[str, dict[str, np.ndarray]]:
    """Run ``fit`` for each row of ``keep``."""
    _settle_in(home)
    results = [fit(row) for row in keep]
    return key, {name: np.stack([np.asarray(result[name]) for result in results]) for name in results[0]}


def _run_seed(study: Callable, seed: int, home: tuple[str, int]) -> tuple[int, dict[str, np.ndarray]]:
    _settle_in(home)
    return seed, study(seed)


def _settle_in(home: tuple[str, int]) -> None:
    """In a worker: one thread, and die with the process that started it."""
    if home != (platform.node(), os.getpid()):
        torch.set_num_threads(1)
        watch_parent()  # not ``home``: a dask worker may rightly outlive its client
