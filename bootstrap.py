#!/usr/bin/env python3
"""Sets this checkout up, then runs one task. Standard library only, so that it works before anything is installed.

    python3 bootstrap.py book [--profile quick|book|paper]   run what is out of date, render the book, print its path
    python3 bootstrap.py test                                 unit tests, notebooks, the book from what is committed
    python3 bootstrap.py notebook NAME [-p key=value ...]     one notebook; the rest goes to `python -m clif_kit.runs`
    python3 bootstrap.py publish [--profile P] [NAME ...]     fresh runs -> notebooks/ and book/results/
    python3 bootstrap.py setup | test-browser | serve | bench | lock [--upgrade] | lint | clean [--all]

`make TASK` does the same. One task at a time owns the checkout; a killed task leaves nothing to repair by hand.
"""
# Old Pythons must be able to read this file, to be told politely: no syntax newer than 3.6 here.
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
ENV, BUILD = ROOT / ".venv", ROOT / "_build"
PY = ENV / "bin" / "python"
PYTHONS = ((3, 11), (3, 12), (3, 13))
UV, TORCH = "uv==0.13.9", "torch==2.13.0"
LOCKS = ("requirements.lock", "requirements-nodeps.lock")
PEERS, PEERS_LOCK = BUILD / "peers", "requirements-peers.lock"  # rivals of `make bench`: an environment over .venv
LOCK_FILE = BUILD / "lock"
PATIENCE = 30  # seconds that a killed predecessor may take to disappear
WATCHED = "from clif_kit.watchdog import watch_parent; watch_parent(signal_on_linux=True); "
STARTED = f"{time.time():.0f}"  # progress lines count from here
held = []  # the open lock file: children inherit it, so that it is free only when they are gone too


class Stop(Exception):
    """A message for the user, on one line; the exit code is 1."""


def check_python():
    """Refuse a Python for which the locked packages have no wheels."""
    if sys.platform == "win32":
        raise Stop("Windows is not supported; use WSL (Ubuntu) and run the same command there.")
    if sys.version_info[:2] in PYTHONS:
        return
    names = ["python{}.{}".format(*version) for version in PYTHONS]
    found = [name for name in names if shutil.which(name)]
    advice = f"try: make PYTHON={found[0]} ..." if found else "install one of them, then: make PYTHON=python3.11 ..."
    have = f"{sys.executable} is {platform.python_version()}"
    raise Stop(f"needs Python 3.11, 3.12 or 3.13, but {have}; {advice}")


def environment():
    """What every process that we start gets: one thread each, compiled modules kept, whom to die with."""
    env = dict(os.environ, UV_NO_CONFIG="1", PYTHONNOUSERSITE="1", CLIF_PARENT_PID=str(os.getpid()))
    env.setdefault("OMP_NUM_THREADS", "1")
    env.setdefault("TOKENIZERS_PARALLELISM", "false")
    env.setdefault("CLIF_STARTED", STARTED)
    env["PATH"] = str(ENV / "bin") + os.pathsep + env.get("PATH", "")
    for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH", "CLIF_RUN_DIR", "CLIF_PROFILE"):
        env.pop(name, None)
    return env


def die_with_us():
    """In a child, before it starts (Linux): SIGKILL when we die, also for programs without a watchdog, such as uv."""
    import ctypes

    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL


def run(*command, check=True, env=None, **options):
    """Start a process that dies with us and wait for it; its exit code."""
    command = [str(part) for part in command]
    preexec = die_with_us if sys.platform == "linux" else None
    fds = tuple(f.fileno() for f in held)
    done = subprocess.run(
        command, cwd=str(ROOT), env=dict(environment(), **(env or {})), preexec_fn=preexec, pass_fds=fds, **options
    )
    if check and done.returncode:
        what = " ".join(Path(part).name for part in command[:4])
        raise Stop(f"{what} failed (exit code {done.returncode})")
    return done.returncode


# --- one task at a time ---


def hold_lock(task):
    """Own the checkout. Waits for a dying predecessor, not for a living one."""
    import fcntl

    BUILD.mkdir(exist_ok=True)
    file = LOCK_FILE.open("a+")  # stays open as long as we live
    end = time.monotonic() + PATIENCE
    grace = time.monotonic() + 3  # a run whose `make` was killed notices within a second
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError:
            holder = read_holder()
            alive = holder and is_alive(holder["pid"])
            if time.monotonic() > (grace if alive else end):
                who = "'{command}' (pid {pid}, since {since})".format(**holder) if holder else "another run"
                raise Stop(f"this checkout is in use by {who}; wait for it or end it.") from None
            time.sleep(0.1)
    file.seek(0)
    file.truncate()
    json.dump({"pid": os.getpid(), "command": task, "since": time.strftime("%H:%M:%S")}, file)
    file.flush()
    held.append(file)


def read_holder():
    """Who wrote the lock file, or None while it is being written."""
    try:
        return json.loads(LOCK_FILE.read_text())
    except (OSError, ValueError):
        return None


def is_alive(pid):
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# --- set-up ---


def fingerprint():
    """Changes when the environment must be made anew: locks, project file, interpreter, place (paths are baked in)."""
    digest = hashlib.sha256()
    for name in (*LOCKS, "pyproject.toml"):
        digest.update((ROOT / name).read_bytes())
    digest.update(f"{sys.version_info[:2]} {ROOT} {UV} {TORCH}".encode())
    return digest.hexdigest()


def setup():
    """Make or repair .venv; nothing to do when its stamp fits."""
    stamp, unfinished = ENV / ".stamp", ENV / ".unfinished"
    backend = os.environ.get("CLIF_TORCH", "")
    want = fingerprint()
    have = stamp.read_text().split() if stamp.exists() else []
    if len(have) == 2 and have[0] == want and backend in ("", have[1]):
        return
    start = time.monotonic()
    say("setting up .venv (once; downloads about 1 GB of Python packages)")
    if stamp.exists():
        stamp.unlink()
    if unfinished.exists() or not made_by_this_python():
        shutil.rmtree(str(ENV), ignore_errors=True)
    ENV.mkdir(exist_ok=True)
    unfinished.touch()  # whoever finds it starts over: a half-installed package looks like an installed one
    if not PY.exists():
        make_venv()
    install(backend or "cpu")
    stamp.write_text(f"{want} {backend or 'cpu'}")
    unfinished.unlink()
    say(f"set up in {time.monotonic() - start:.0f} s")


def made_by_this_python():
    """Whether .venv has an interpreter of our version, in working order."""
    code = f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})"
    return PY.exists() and subprocess.run([str(PY), "-c", code], stderr=subprocess.DEVNULL).returncode == 0


def make_venv():
    """An empty environment with pip."""
    try:
        venv.EnvBuilder(with_pip=True, symlinks=True).create(str(ENV))
    except (subprocess.CalledProcessError, ImportError):
        advice = "on Debian or Ubuntu: apt-get install python3-venv"
        raise Stop(f"this Python cannot make a virtual environment; {advice}") from None


def install(backend):
    """The locked packages (hashes checked), torch, and clif_kit in place."""
    run(PY, "-m", "pip", "install", "-q", "--disable-pip-version-check", UV)
    uv = (ENV / "bin" / "uv", "pip", "install", "-q", "--python", PY)
    run(*uv, "--require-hashes", "-r", "requirements.lock")
    run(*uv, "--require-hashes", "--no-deps", "-r", "requirements-nodeps.lock")
    wheel = local_torch() if backend == "cpu" else None
    run(*uv, *([wheel] if wheel else ["--torch-backend", backend, TORCH]))
    run(*uv, "--no-deps", "--no-build-isolation", "-e", ".")


def local_torch():
    """A torch wheel for this interpreter and machine in a PIP_FIND_LINKS folder, or None."""
    python = "-cp{}{}-".format(*sys.version_info[:2])
    system = "linux" if sys.platform == "linux" else "macosx"
    pattern = TORCH.replace("==", "-") + "*.whl"
    for folder in os.environ.get("PIP_FIND_LINKS", "").split():
        for wheel in sorted(Path(folder).glob(pattern)):
            if python in wheel.name and system in wheel.name and platform.machine() in wheel.name:
                return wheel
    return None


# --- tasks ---


def say(text):
    """One line of our own."""
    print(text, flush=True)


def option(args, name, default):
    """Take `--name value` out of the arguments."""
    if name in args:
        i = args.index(name)
        if i + 1 == len(args):
            raise Stop(f"{name} needs a value")
        default = args[i + 1]
        del args[i : i + 2]
    return default


def book(args):
    """Run what is out of date and render the book. Snakemake knows what that is."""
    profile = option(args, "--profile", "quick")
    none_left(args)
    page = BUILD / "html" / profile / "index.html"
    done = BUILD / "run" / profile / "book.done"
    if done.exists() and not page.exists():
        done.unlink()
    snakemake("--config", "profile=" + profile)
    say(f"The book: {page}")


def snakemake(*args):
    """Snakemake, two notebooks at once. Its own chatter goes to a file, shown when it is the only explanation."""
    code = WATCHED + "from snakemake.cli import main; main()"
    log = BUILD / "snakemake.log"
    if any((ROOT / ".snakemake" / "locks").glob("*")):  # left by a killed run: ours is the lock that counts
        run(PY, "-c", code, "--unlock", "--cores", "1", *args, stderr=subprocess.DEVNULL)
    quiet = ("--quiet", "host", "progress", "rules", "reason")
    with open(str(log), "w") as file:
        options = ("--cores", "2", "--keep-going", "--rerun-incomplete", *args, *quiet)
        failed = run(PY, "-c", code, *options, check=False, stderr=file)
    if failed:
        text = log.read_text()
        if "Traceback" in text or not re.search(r"non-zero exit status [12]\b", text):  # else the job has said it
            say(text)
        raise Stop("not finished: see above. What did finish is kept; the same command goes on from there.")


def test(args):
    """Three stages, all of them whatever happens; fails if one fails."""
    none_left(args)
    # -v undoes pyproject's -q: CI reads pytest's closing line. A module's tests stay in one worker.
    pytest = (PY, "-m", "pytest", "-v", "-p", "no:cacheprovider")
    both = ("-n", "2", "--dist", "loadscope")
    units = ("--doctest-modules", "clif_kit", "tests", "--ignore=tests/test_book.py", "--ignore=tests/test_browser.py")
    nbval = ("--nbval-lax", "--nbval-current-env", "notebooks")
    pages = (PY, "-m", "clif_kit.pages", "committed")
    stages = (
        ("unit tests and docstring examples", [(*pytest, *units, *both)]),
        ("notebooks, executed again and compared", [(*pytest, *nbval, *both)]),
        ("the book, built from what is committed and checked", [pages, (*pytest, "tests/test_book.py")]),
    )
    results = []
    for i, (title, commands) in enumerate(stages, 1):
        say(f"\n--- {i}/{len(stages)} {title}")
        start = time.monotonic()
        env = {"CLIF_BOOK_HTML": str(BUILD / "html" / "committed")}
        failed = any(run(*command, check=False, env=env) for command in commands)  # stops at the first failure
        results.append(f"{'FAILED' if failed else 'passed'} {time.monotonic() - start:4.0f} s  {title}")
    say("\n" + "\n".join(results))
    failures = sum(line.startswith("FAILED") for line in results)
    if failures:
        raise Stop(f"{failures} of {len(stages)} stages failed")


def test_browser(args):
    """The rendered pages in a real browser."""
    if not (os.environ.get("CLIF_CHROMIUM") or shutil.which("chromium")):
        raise Stop("the browser test needs Chromium: apt-get install chromium, or CLIF_CHROMIUM=/path/to/it")
    axe = ("--no-deps", "--require-hashes", "-r", "tests/browser_requirements.txt")
    run(ENV / "bin" / "uv", "pip", "install", "-q", "--python", PY, *axe)  # nothing to fetch when it is there
    html = BUILD / "html" / "committed"
    run(PY, "-m", "clif_kit.pages", "committed")
    pytest = (PY, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "2")
    run(*pytest, "tests/test_browser.py", *args, env={"CLIF_BOOK_HTML": str(html)})


def notebook(args):
    """One notebook."""
    sys.exit(run(PY, "-m", "clif_kit.runs", *args, check=False))


def publish(args):
    """Fresh runs to the places that git keeps."""
    sys.exit(run(PY, "-m", "clif_kit.pages", "publish", *args, check=False))


def serve(args):
    """The rendered book at http://127.0.0.1:8000."""
    folder = BUILD / "html" / option(args, "--profile", "quick")
    if not (folder / "index.html").exists():
        raise Stop("there is no book yet: make book")
    run(PY, "-m", "http.server", "--bind", "127.0.0.1", "--directory", folder, *(args or ["8000"]))


def bench(args):
    """Side-by-side measurements; rewrites benchmarks/results.json."""
    peers()
    sys.exit(run(PY, "-m", "benchmarks", *args, check=False))  # it has said what went wrong


def peers():
    """Make or repair the rivals' environment; nothing to do when its stamp fits."""
    stamp, python = PEERS / ".stamp", PEERS / "bin" / "python"
    want = hashlib.sha256((ROOT / PEERS_LOCK).read_bytes() + fingerprint().encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == want:
        return
    say("setting up the rivals' environment (once)")
    shutil.rmtree(str(PEERS), ignore_errors=True)
    run(PY, "-m", "venv", "--without-pip", PEERS)
    uv = (ENV / "bin" / "uv", "pip", "install", "-q", "--python", python)
    run(*uv, "--require-hashes", "--no-deps", "-r", PEERS_LOCK)
    site = "lib/python{}.{}/site-packages".format(*sys.version_info[:2])
    (PEERS / site / "clif-kit-venv.pth").write_text(f"{ENV / site}\n")  # looked in last: the same torch for both sides
    stamp.write_text(want)


def lock(args):
    """requirements*.in -> hashed locks -> environment.yml."""
    none_left([arg for arg in args if arg != "--upgrade"])
    upgrade = ["--upgrade"] if "--upgrade" in args else []
    uv = (ENV / "bin" / "uv", "pip", "compile", "-q", "--universal", "--python-version", "3.11", *upgrade)
    for name in (*LOCKS, PEERS_LOCK):
        extra = [] if name == LOCKS[0] else ["--no-deps"]
        run(*uv, "--generate-hashes", "--no-header", *extra, name.replace(".lock", ".in"), "-o", name)
    (ROOT / "environment.yml").write_text(environment_yml())
    say(f"wrote {', '.join(LOCKS)}, {PEERS_LOCK}, environment.yml")


def pins(name):
    """The lines of a lock without hashes and comments: `name==version` with its marker."""
    lines = (ROOT / name).read_text().splitlines()
    return [line.rstrip(" \\") for line in lines if line and line[0] not in " #-"]


def environment_yml():
    """The same versions for conda and Binder, where pip cannot mix hashed lines with `-e .`."""
    lines = [
        "# Written by `make lock`; tests/test_environment.py keeps it in step with requirements.lock.",
        f"# For conda, mamba and Binder. {pins(LOCKS[1])[0]} is left out: it asks for packages that we do not need.",
        "# Add it with: pip install --no-deps -r requirements-nodeps.lock",
        "name: clif-kit",
        "channels:",
        "  - conda-forge",
        "  - nodefaults",
        "dependencies:",
        "  - python=3.11",
        "  - pip",
        "  - pytorch-cpu={}.*".format(TORCH.split("==")[1].rsplit(".", 1)[0]),  # pip's torch may be a CUDA build
        "  - pip:",
    ]
    lines += [f"      - {json.dumps(pin) if ' ' in pin else pin}" for pin in pins(LOCKS[0])]
    return "\n".join([*lines, "      - -e .", ""])


def lint(args):
    """Ruff."""
    run(PY, "-m", "ruff", "check", *(args or ["bootstrap.py", "clif_kit", "tests", "benchmarks", "data_scripts"]))


def clean(args):
    """Remove runs and pages; downloads and stores stay unless --all, which also removes .venv."""
    none_left([arg for arg in args if arg != "--all"])
    gone = [BUILD, ENV] if "--all" in args else [BUILD / name for name in ("run", "src", "html")]
    for folder in [*gone, ROOT / ".snakemake"]:
        shutil.rmtree(str(folder), ignore_errors=True)


def none_left(args):
    """Refuse arguments that nobody reads."""
    if args:
        raise Stop(f"does not know {' '.join(args)}")


TASKS = {
    "setup": none_left, "book": book, "test": test, "test-browser": test_browser, "notebook": notebook,
    "publish": publish, "serve": serve, "bench": bench, "lock": lock, "lint": lint, "clean": clean,
}  # fmt: skip


def main(argv):
    """Check, lock, set up, run; the exit code."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(__doc__)
        return 0
    task, args = argv[0], argv[1:]
    if task not in TASKS:
        raise Stop(f"no task {task!r}; there are: {', '.join(TASKS)}")
    check_python()
    if os.environ.get("MAKELEVEL"):
        sys.path.insert(0, str(ROOT))
        from clif_kit.watchdog import watch_parent  # standard library only

        watch_parent(signal_on_linux=True)
    if task != "serve":
        hold_lock(" ".join(["make" if os.environ.get("MAKELEVEL") else "bootstrap.py", *argv]))
    if task != "clean":
        setup()
    TASKS[task](args)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Stop as stop:
        sys.exit(f"bootstrap.py: {stop}")
    except KeyboardInterrupt:
        sys.exit(130)
