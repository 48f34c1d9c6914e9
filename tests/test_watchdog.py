"""Real processes, really killed: the oracle is the operating system."""

import os
import signal
import subprocess
import sys
import time

import pytest

from clif_kit.watchdog import PARENT_PID, _alive

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no process groups to watch on Windows")

CHILD = """
import os, time
from clif_kit.watchdog import watch_parent
{call}
print(os.getpid(), flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
time.sleep(60)
"""


def spawn(code, *args, **env):
    """Start ``python -c code args`` and return it with the pid that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True, env={**os.environ, **env}
    )
    return process, int(process.stdout.readline())


def gone_within(pid, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not _alive(pid):
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def reap():
    """Processes that a test started and that must not survive it."""
    pids = []
    yield pids
    for pid in pids:
        if _alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "call",
    [
        "watch_parent(every=0.05)",
        "[watch_parent(every=0.05) for _ in range(3)]",
        pytest.param(
            "watch_parent(signal_on_linux=True, every=50)",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux"),
        ),
    ],
)
def test_a_child_dies_with_its_killed_parent(call, reap):
    parent, child = spawn(PARENT, CHILD.format(call=call))
    reap.append(child)
    time.sleep(0.3)
    assert _alive(child)  # while the parent lives, nothing happens
    parent.kill()
    parent.wait()
    assert gone_within(child, 5)


def test_without_the_watchdog_the_child_lives_on(reap):
    """The control: otherwise the test above would prove nothing."""
    parent, child = spawn(PARENT, CHILD.format(call="None"))
    reap.append(child)
    parent.kill()
    parent.wait()
    assert not gone_within(child, 1)


@pytest.mark.parametrize("named_by", ["argument", "environment"])
def test_a_farther_ancestor_is_watched_too(named_by, reap):
    ancestor, _ = spawn("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    call = f"watch_parent({ancestor.pid if named_by == 'argument' else ''}, every=0.05)".replace("(,", "(None,")
    env = {PARENT_PID: str(ancestor.pid)} if named_by == "environment" else {}
    child, pid = spawn(CHILD.format(call=call), **env)  # its direct parent is this test, which lives
    reap.append(pid)
    time.sleep(0.3)
    assert child.poll() is None
    ancestor.kill()
    ancestor.wait()
    assert child.wait(5) == -signal.SIGKILL


def test_a_parent_dead_before_the_call_ends_the_child_at_once():
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(call=f"watch_parent({dead.pid}, every=50)")],
        stdout=subprocess.PIPE,
        timeout=20,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert child.stdout == b""


def test_a_zombie_counts_as_dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        assert sys.platform != "linux" or gone_within(process.pid, 5)  # not reaped: nobody has waited yet
        os.kill(process.pid, 0)  # and yet signal 0 still finds it
    finally:
        process.wait()


def test_calling_it_again_starts_no_second_thread_and_a_fork_is_watched_anew():
    code = """
import os, threading, time
from clif_kit.watchdog import watch_parent
for _ in range(3):
    watch_parent(every=0.05)
def watchers():
    return [t.name for t in threading.enumerate()].count("clif-watchdog")
assert watchers() == 1
if os.fork() == 0:
    assert watchers() == 0
    watch_parent(every=0.05)
    assert watchers() == 1
    time.sleep(0.3)  # the new parent is the right one: it does not kill itself
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "7\n"


def test_a_malformed_environment_variable_is_refused():
    result = subprocess.run(
        [sys.executable, "-c", CHILD.format(call="watch_parent()")],
        env={**os.environ, PARENT_PID: "mother"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "mother" in result.stderr
