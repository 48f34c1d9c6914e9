"""Store: damage, full disks, kills and other people's folders. Oracles: the bytes on disk and fresh processes."""

import builtins
import errno
import functools
import os
import re
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clif_kit import store as store_module
from clif_kit.store import Store, StoreFull, StoreLocked, StoreMismatch, fingerprint, resumable

ARRAYS = {"theta": np.arange(6.0).reshape(2, 3), "steps": np.array([3, 4]), "done": np.array(True)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "s", fingerprint="a" * 64)


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    steps: int = 3

    def doubled(self):
        return 2 * self.lr


@dataclass(frozen=True)
class OtherSettings:
    lr: float = 0.1
    steps: int = 3


def scaled(factor):
    return lambda x: factor * x


def test_a_shard_comes_back_bit_for_bit_in_another_process(store):
    values = np.array([np.pi, -0.0, np.inf, np.nan, 5e-324])
    store.save("k", {"x": values, "transposed": np.arange(6).reshape(2, 3).T, "scalar": np.float32(2)})
    code = """
import sys
from clif_kit.store import Store
got = Store(sys.argv[1], fingerprint="a" * 64).load("k")
print(got["x"].tobytes().hex(), got["transposed"].tolist(), got["scalar"].shape, got["scalar"])
"""
    out = subprocess.run([sys.executable, "-c", code, store.folder], capture_output=True, text=True, check=True).stdout
    assert out.split() == f"{values.tobytes().hex()} [[0, 3], [1, 4], [2, 5]] () 2.0".split()


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "garbage", "renamed", "foreign"])
def test_a_damaged_shard_counts_as_missing_with_one_warning(store, damage, tmp_path):
    store.save("good", ARRAYS)
    store.save("bad", ARRAYS)
    path = store.folder / "bad.safetensors"
    content = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(content[:-5])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "flip":  # one bit of a number: the format itself cannot see it
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif damage == "garbage":
        path.write_bytes(b"\xff" * 100)
    elif damage == "renamed":
        other = store.folder / "other.safetensors"
        store.save("other", {"theta": np.zeros(3)})
        os.replace(other, path)
    else:
        elsewhere = Store(tmp_path / "elsewhere", fingerprint="b" * 64)
        elsewhere.save("bad", ARRAYS)
        os.replace(elsewhere.folder / "bad.safetensors", path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        looks = [store.has("bad"), store.has("bad")]
        with pytest.raises(KeyError, match="bad"):
            store.load("bad")
    assert looks == [False, False]
    assert [re.search("'bad'.*damaged", str(w.message)) is not None for w in caught] == [True]
    np.testing.assert_array_equal(store.load("good")["theta"], ARRAYS["theta"])
    store.save("bad", ARRAYS)  # recomputed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.has("bad")


@pytest.mark.parametrize("when", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_leaves_the_old_shard_and_no_part_file(store, monkeypatch, when, code):
    store.save("k", {"x": np.zeros(3)})

    def fail(*_):
        raise OSError(code, os.strerror(code))

    def open_and_fill(path, mode):
        file = builtins.open(path, mode)  # noqa: SIM115
        if when == "write":
            file.write(b"half of it")
            file.flush()

            class Full:
                write = flush = staticmethod(fail)

                def __enter__(self):
                    return self

                def __exit__(self, *_):
                    file.close()

            return Full()
        return file

    with monkeypatch.context() as patch:
        if when == "write":
            patch.setattr(store_module, "open", open_and_fill, raising=False)
        else:
            patch.setattr(os, when, fail)
        with pytest.raises(OSError) as caught:
            store.save("k", {"x": np.ones(3)})
    assert caught.value.errno == code
    assert isinstance(caught.value, StoreFull) == (code == errno.ENOSPC)
    if code == errno.ENOSPC:
        assert re.search(r"no space left for k.safetensors \(\d+ bytes\).*run again", str(caught.value))
        assert "\n" not in str(caught.value)
    assert not list(store.folder.glob("*.part"))
    np.testing.assert_array_equal(store.load("k")["x"], np.zeros(3))


def test_a_writer_killed_half_way_leaves_no_shard(store):
    code = """
import os, signal, sys
import numpy as np
from clif_kit.store import Store
store = Store(sys.argv[1], fingerprint="a" * 64)
store.save("first", {"x": np.ones(2)})
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
store.save("second", {"x": np.ones(2)})
"""
    assert subprocess.run([sys.executable, "-c", code, store.folder], check=False).returncode == -9
    assert store.keys() == ["first"]
    assert store.has("first")
    assert not store.has("second")
    store.save("second", ARRAYS)  # the dead writer's lock and .part are in nobody's way
    assert sorted(p.name for p in store.folder.iterdir() if p.suffix == ".part") == []


def test_a_folder_of_other_settings_is_refused_and_named(store):
    with pytest.raises(StoreMismatch, match=r"aaaaaaaaaaaa.*bbbbbbbbbbbb.*another folder, or delete") as caught:
        Store(store.folder, fingerprint="b" * 64)
    assert str(store.folder) in str(caught.value)
    Store(store.folder, fingerprint="a" * 64)


def test_two_processes_do_not_write_one_folder(store):
    code = """
import sys, time
from clif_kit.store import Store
with Store(sys.argv[1], fingerprint="a" * 64).lock():
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, store.folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreLocked, match=f"{re.escape(str(store.folder))} is being written"):
            store.save("k", ARRAYS)
        assert store.keys() == []  # reading needs no lock
    finally:
        holder.kill()
        holder.wait()
    end = time.monotonic() + 5
    while time.monotonic() < end:  # the system frees a dead process's lock
        try:
            with store.lock():
                store.save("k", ARRAYS)  # nested in its own lock
            break
        except StoreLocked:
            time.sleep(0.05)
    assert store.keys() == ["k"]


@pytest.mark.parametrize("key", ["", "../k", "a/b", ".hidden", "a b"])
def test_keys_that_leave_the_folder_are_refused(store, key):
    with pytest.raises(ValueError, match="key"):
        store.save(key, ARRAYS)


def test_fingerprints_agree_between_processes():
    """Hash randomisation and memory addresses must not matter."""
    code = """
from test_store import *
print(fingerprint(scaled(2), Settings(), {"a", "b", "c"}, np.eye(2), torch.tanh, ARRAYS))
"""
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    assert re.fullmatch("[0-9a-f]{64}", seen.pop())


def test_different_things_have_different_fingerprints():
    layers = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    things = [
        0, False, None, "0", 0.0, "", b"", [], {}, set(), [0], [[0]], [0, 0], {"a": 0}, {"a": [0]}, {0: "a"},
        np.zeros(2), np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(2, np.float32), np.zeros(4, np.float32),
        np.zeros(2, int), np.array(["a"]), np.array(["b"]),
        Settings(), Settings(lr=0.2), OtherSettings(), Settings, OtherSettings,
        scaled(2), scaled(3), functools.partial(scaled, 2), functools.partial(scaled, 3), scaled, torch.tanh, torch.sin,
        [b"ab", b"c"], [b"a", b"bc"], [b"abc"],
        torch.float32, torch.float64, *layers, store_module, warnings, Settings().doubled, torch.nn.Tanh, torch.nn.ReLU,
    ]  # fmt: skip
    prints = [fingerprint(t) for t in things]
    clashes = [(things[i], things[j]) for i in range(len(things)) for j in range(i) if prints[i] == prints[j]]
    assert clashes == []


def test_equal_content_in_other_clothes_has_one_fingerprint():
    x = np.arange(6.0).reshape(2, 3)
    assert fingerprint(x) == fingerprint(torch.from_numpy(x)) == fingerprint(np.asfortranarray(x))
    assert fingerprint((1, 2)) == fingerprint([1, 2])
    assert fingerprint(np.float64(0.5)) == fingerprint(0.5)
    assert fingerprint(scaled(2)) == fingerprint(scaled(2))
    assert fingerprint(torch.nn.Tanh()) == fingerprint(torch.nn.Tanh())


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(_json, _json)
def test_fingerprints_are_equal_exactly_when_canonical_json_is(a, b):
    """Oracle: sorted JSON of the two things."""
    import json

    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (fingerprint(a) == fingerprint(b)) == same


@pytest.mark.parametrize("thing", [object(), iter([]), np.array([object()])])
def test_what_has_no_stable_content_is_refused(thing):
    with pytest.raises(TypeError, match="cannot fingerprint"):
        fingerprint(thing)


def test_a_function_without_source_is_refused():
    namespace = {}
    exec("def f(x): return x", namespace)
    with pytest.raises(ValueError, match="no source text for f"):
        fingerprint(namespace["f"])


def test_resumable_computes_what_is_missing_and_starts_afresh_for_other_settings(tmp_path):
    calls = []

    def compute(number):
        calls.append(number)
        return {"x": np.array([number])}

    def run(*depends, folder=tmp_path):
        once = resumable(folder, *depends)
        return [int(once(f"step-{k}", lambda k=k: compute(k))["x"][0]) for k in range(3)]

    assert run(0.1) == run(0.1) == [0, 1, 2]
    assert calls == [0, 1, 2]
    next(tmp_path.glob("*/step-1.safetensors")).unlink()
    assert run(0.1) == [0, 1, 2]
    assert calls == [0, 1, 2, 1]
    assert run(0.2) == [0, 1, 2]
    assert len(calls) == 7
    assert run(0.1, folder=None) == [0, 1, 2]
    assert len(calls) == 10


def test_what_contains_itself_is_refused_in_words():
    def factorial(n):
        return 1 if n < 2 else n * factorial(n - 1)

    with pytest.raises(TypeError, match="contains itself"):
        fingerprint(factorial)


def test_resumable_keeps_what_was_done_before_an_error(tmp_path):
    once = resumable(tmp_path, "settings")
    once("a", lambda: {"x": np.array(1)})
    with pytest.raises(ZeroDivisionError):
        once("b", lambda: {"x": np.array(1 // 0)})
    again = resumable(tmp_path, "settings")
    assert again("a", lambda: pytest.fail("computed twice"))["x"] == 1
    assert again("b", lambda: {"x": np.array(2)})["x"] == 2
