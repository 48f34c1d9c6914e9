"""Parallel retraining: engine against engine, and processes that are killed. Each call of ``fit`` leaves a line."""

import collections
import os
import signal
import subprocess
import sys
import time
import warnings

import joblib
import numpy as np
import pytest

from clif_kit.parallel import map_seeds, retrain_parallel
from clif_kit.store import Store, StoreLocked

N = 24
X = np.random.default_rng(0).normal(size=(N, 3))
Y = X.sum(1) + np.random.default_rng(1).normal(size=N)
REMOVALS = [[i] for i in range(N)]


def recorder(log, pause=0.0):
    """A fit that appends ``pid removed`` to ``log``. Nested, so that workers get it by value."""
    x, y = X, Y

    def fit(keep):
        import os
        import time

        import numpy
        import torch

        time.sleep(pause)
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {int(numpy.argmin(keep))} {torch.get_num_threads()}\n")
        theta = numpy.linalg.solve(x[keep].T @ x[keep] + 0.1 * numpy.eye(3), x[keep].T @ y[keep])
        return {"theta": theta, "n": keep.sum()}

    return fit


def calls(log):
    """How often each example was removed, and by whom."""
    rows = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return collections.Counter(int(removed) for _, removed, _ in rows), {int(pid) for pid, _, _ in rows}


@pytest.fixture(name="store")
def _store(tmp_path):
    return Store(tmp_path / "store", fingerprint="f" * 64)


@pytest.fixture(name="log")
def _log(tmp_path):
    return tmp_path / "calls"


def run(fit, store, removals=REMOVALS, **settings):
    return retrain_parallel(fit, N, removals, store=store, progress=False, **{"shard": 5, **settings})


def expected():
    keeps = [np.arange(N) != i for i in range(N)]
    return np.array([np.linalg.solve(X[k].T @ X[k] + 0.1 * np.eye(3), X[k].T @ Y[k]) for k in keeps])


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_serial_loky_and_dask_give_the_same_bits_on_one_thread_each(tmp_path):
    distributed = pytest.importorskip("distributed")
    results, workers = {}, {}

    def go(name, n_jobs):
        log = tmp_path / name
        results[name] = run(recorder(str(log)), Store(tmp_path / f"s{name}", fingerprint="f" * 64), n_jobs=n_jobs)
        assert calls(log)[0] == dict.fromkeys(range(N), 1)
        workers[name] = calls(log)[1]
        if name != "serial":
            assert {line.split()[2] for line in log.read_text().splitlines()} == {"1"}

    go("serial", 1)
    go("loky", 2)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        go("dask", None)
    np.testing.assert_allclose(results["serial"]["theta"], expected(), rtol=1e-12)
    np.testing.assert_array_equal(results["serial"]["n"], N - 1)
    for name in ("loky", "dask"):
        assert os.getpid() not in workers[name]
        for key in ("theta", "n"):
            assert results[name][key].tobytes() == results["serial"][key].tobytes()
    assert workers["serial"] == {os.getpid()}


def test_a_second_run_computes_nothing_and_a_damaged_shard_is_made_again(store, log):
    first = run(recorder(str(log)), store, n_jobs=1)
    again = run(recorder(str(log)), store, n_jobs=1)
    assert calls(log)[0] == dict.fromkeys(range(N), 1)
    path = store.folder / f"{store.keys()[1]}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="damaged"):
        third = run(recorder(str(log)), store, n_jobs=1)
    assert calls(log)[0] == {i: 1 + (5 <= i < 10) for i in range(N)}
    for other in (again, third):
        np.testing.assert_array_equal(first["theta"], other["theta"])


def test_other_removals_never_get_the_shards_of_these(store, log):
    run(recorder(str(log)), store, n_jobs=1)
    backwards = run(recorder(str(log)), store, REMOVALS[::-1], n_jobs=1)
    np.testing.assert_allclose(backwards["theta"], expected()[::-1], rtol=1e-12)
    assert calls(log)[0] == dict.fromkeys(range(N), 2)
    longer = run(recorder(str(log)), store, [*REMOVALS[:5], [0, 1]], n_jobs=1)
    assert calls(log)[0][0] == 3  # the first shard was there; only [0, 1] is new, and its smallest kept-out index is 0
    assert longer["n"].tolist() == [N - 1] * 5 + [N - 2]


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[3])
from test_parallel import recorder, run
from clif_kit.store import Store
run(recorder(sys.argv[2], pause=0.3), Store(sys.argv[1], fingerprint="f" * 64), n_jobs=2, shard=2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_a_killed_run_goes_on_where_it_was_and_its_workers_are_gone(store, log):
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, store.folder, log, os.path.dirname(__file__)])
    end = time.monotonic() + 200  # importing torch three times can take long on a busy machine
    while len(store.keys()) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    done = store.keys()
    before, workers = calls(log)
    assert 3 <= len(done) < 12
    end = time.monotonic() + 5
    while any(map(alive, workers)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, workers)), "the workers of a killed run live on"

    before, _ = calls(log)
    got = run(recorder(str(log)), store, n_jobs=1, shard=2)
    after, _ = calls(log)
    recomputed = {i for i in range(N) if after[i] - before[i]}
    assert recomputed == {i for i in range(N) if not any(key.startswith(f"{i // 2 * 2:06d}-") for key in done)}
    assert max(after.values()) <= 2
    assert sum(1 for i in recomputed if before[i]) <= 4 * 2  # what was under way, or done and not yet fetched
    np.testing.assert_allclose(got["theta"], expected(), rtol=1e-12)


def suicidal(fit, marker, times):
    """Kill the worker that is to remove example 11, the first ``times`` times."""

    def deadly(keep):
        import os
        import pathlib
        import signal

        if not keep[11]:
            with open(marker, "a") as file:
                file.write("x")
            if len(pathlib.Path(marker).read_text()) <= times:
                os.kill(os.getpid(), signal.SIGKILL)
        return fit(keep)

    return deadly


def test_a_killed_worker_costs_the_shards_under_way_and_the_run_goes_on(store, log, tmp_path):
    fit = suicidal(recorder(str(log), pause=0.05), str(tmp_path / "marker"), times=1)  # real fits are slow
    with pytest.warns(RuntimeWarning, match="a worker died"):
        got = run(fit, store, n_jobs=2, shard=2)
    np.testing.assert_allclose(got["theta"], expected(), rtol=1e-12)
    counted, _ = calls(log)
    assert sum(counted.values()) - N <= 4 * 2


def test_workers_that_keep_dying_end_the_run_with_what_is_done_kept(store, log, tmp_path):
    fit = suicidal(recorder(str(log)), str(tmp_path / "marker"), times=99)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(RuntimeError, match=r"workers keep dying.*of 12 shards are left"):
            run(fit, store, n_jobs=2, shard=2)
    assert 1 <= len(store.keys()) < 12
    run(recorder(str(log)), store, n_jobs=1, shard=2)  # the lock is free


def test_an_error_in_fit_reaches_the_caller_and_frees_the_store(store, log):
    good = recorder(str(log))

    def bad(keep):
        if not keep[20]:
            raise ArithmeticError("no luck without example 20")
        return good(keep)

    with pytest.raises(ArithmeticError, match="example 20"):
        run(bad, store, n_jobs=1)
    assert len(store.keys()) == 4
    run(good, store, n_jobs=1)
    assert calls(log)[0] == {i: 1 for i in range(N)}


def test_a_store_that_another_process_holds_is_refused(store, log):
    code = """
import sys, time
from clif_kit.store import Store
with Store(sys.argv[1], fingerprint="f" * 64).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, store.folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match="being written by another process"):
            run(recorder(str(log)), store, n_jobs=1)
        assert not calls(log)[0]
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()


def test_seeds_that_another_process_is_making_are_waited_for_and_read(store, log):
    code = """
import sys, time
import numpy as np
from clif_kit.store import Store
store = Store(sys.argv[1], fingerprint="f" * 64)
with store.lock():
    print("held", flush=True)
    time.sleep(1)
    store.save("seed-000007", {"found": np.array(49)})
"""
    with subprocess.Popen([sys.executable, "-c", code, store.folder], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match="being written by another process"):
            map_seeds(study_of(str(log)), [7], store=store, n_jobs=1, progress=False, wait=0)
        (found,) = map_seeds(study_of(str(log)), [7], store=store, n_jobs=1, progress=False)
    assert found["found"] == 49
    assert not log.exists() or not log.read_text()


def study_of(log, broken=None):
    """A study that leaves a line a call. Nested, so that workers get it by value."""

    def study(seed):
        import os

        import numpy

        if seed == broken:
            raise ArithmeticError(f"no luck with seed {seed}")
        with open(log, "a") as file:
            file.write(f"{os.getpid()} {seed} 1\n")
        return {"draws": numpy.random.default_rng(seed).normal(size=3), "seed": numpy.array(seed)}

    return study


def test_seeds_in_parallel_are_the_plain_loop_in_the_order_asked_for(store, log):
    seeds = [7, 0, 12, 3]
    got = map_seeds(study_of(str(log)), seeds, store=store, progress=False)
    assert [int(result["seed"]) for result in got] == seeds
    for result, seed in zip(got, seeds, strict=True):
        np.testing.assert_array_equal(result["draws"], np.random.default_rng(seed).normal(size=3))
    counted, workers = calls(log)
    assert counted == dict.fromkeys(seeds, 1)
    assert os.getpid() not in workers


def test_finished_seeds_are_never_done_again_and_more_can_follow(store, log):
    with pytest.raises(ArithmeticError, match="seed 5"):
        map_seeds(study_of(str(log), broken=5), [1, 2, 5, 9], store=store, n_jobs=1, progress=False)
    assert store.keys() == ["seed-000001", "seed-000002"]
    got = map_seeds(study_of(str(log)), np.array([9, 5, 2, 1]), store=store, n_jobs=1, progress=False)
    assert [int(result["seed"]) for result in got] == [9, 5, 2, 1]
    assert calls(log)[0] == dict.fromkeys([1, 2, 5, 9], 1)


def test_a_seed_that_comes_twice_is_refused(store, log):
    with pytest.raises(ValueError, match="each seed once"):
        map_seeds(study_of(str(log)), [1, 2, 1], store=store, n_jobs=1, progress=False)
