"""The set-up: what is locked, what conda users get, and a bootstrap that repairs itself."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
import bootstrap  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
SPEC = re.compile(r"[a-z0-9_.-]+(=[0-9][0-9a-z.*]*)?")  # the part of conda's language that we use


def locked(name):
    """Project name to versions, for a lock file; more than one where the markers differ."""
    found = {}
    for pin in bootstrap.pins(name):
        requirement = Requirement(pin)
        found.setdefault(requirement.name, []).append(next(iter(requirement.specifier)).version)
    return found


# --- locks ---


@pytest.mark.parametrize("name", bootstrap.LOCKS)
def test_every_locked_line_has_a_hash(name):
    blocks = re.split(r"\n(?=[a-z0-9])", (ROOT / name).read_text("utf-8"))
    assert len(blocks) == len(bootstrap.pins(name))
    assert all("--hash=sha256:" in block and "==" in block.splitlines()[0] for block in blocks)


def test_the_lock_covers_what_the_project_needs():
    lock = locked("requirements.lock")
    lock["torch"] = [bootstrap.TORCH.split("==")[1]]
    wanted = [re.sub(r"\s+#.*", "", line) for line in (ROOT / "requirements.in").read_text("utf-8").splitlines()]
    for text in PROJECT["dependencies"] + [line for line in wanted if line and line[0] != "#"]:
        requirement = Requirement(text)
        name = requirement.name.lower().replace("_", "-")
        assert name in lock, f"{text} is not locked: make lock"
        assert all(requirement.specifier.contains(version) for version in lock[name]), (text, lock[name])


def test_the_lock_brings_no_torch_and_no_cuda():
    assert not [name for name in locked("requirements.lock") if re.match(r"torch$|nvidia|triton|cuda", name)]


# --- environment.yml ---


def test_environment_yml_is_what_make_lock_writes():
    assert (ROOT / "environment.yml").read_text("utf-8") == bootstrap.environment_yml(), "make lock"


def test_environment_yml_equals_the_lock_without_hashes():
    *conda, pip = CONDA["dependencies"]
    *pins, editable = pip["pip"]
    assert pins == bootstrap.pins("requirements.lock")
    assert editable == "-e ."
    torch = next(spec for spec in conda if spec.startswith("pytorch-cpu="))
    assert bootstrap.TORCH.split("==")[1].startswith(torch.split("=")[1].removesuffix("*"))
    assert "--hash" not in (ROOT / "environment.yml").read_text("utf-8")
    assert all(SPEC.fullmatch(spec) for spec in conda)
    assert [Requirement(pin) for pin in pins]


def test_conda_python_is_one_that_the_project_takes():
    python = next(spec for spec in CONDA["dependencies"] if str(spec).startswith("python="))
    assert python.split("=")[1] in SpecifierSet(PROJECT["requires-python"])


# --- bootstrap.py ---


def test_bootstrap_takes_the_pythons_that_the_project_takes():
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in range(8, 20) if f"3.{v}" in allowed] == [minor for _, minor in bootstrap.PYTHONS]


def test_an_old_python_can_read_bootstrap_and_needs_nothing_else():
    tree = ast.parse((ROOT / "bootstrap.py").read_text("utf-8"), feature_version=(3, 6))
    imported = {a.name.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names | {"clif_kit"}
    code = "import sys; sys.path.insert(0, sys.argv[1]); import clif_kit.watchdog"  # -I -S: no package is found
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code, str(ROOT)], check=False).returncode == 0


@pytest.mark.parametrize("version", [(3, 10), (3, 14)])
def test_another_python_is_refused_politely(monkeypatch, version):
    monkeypatch.setattr(bootstrap, "sys", SimpleNamespace(version_info=version, platform="linux", executable="python"))
    with pytest.raises(bootstrap.Stop, match=r"needs Python 3.11, 3.12 or 3.13, but python is"):
        bootstrap.check_python()


def test_make_has_the_tasks_of_bootstrap():
    targets = set(re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text("utf-8")))
    assert targets == set(bootstrap.TASKS) | {"help"}


def test_ci_and_readme_and_workflow_use_the_same_command():
    for name in (".ci/run", "README.md", ".github/workflows/test.yml"):
        assert "make test" in (ROOT / name).read_text("utf-8"), name
    versions = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text("utf-8"))
    matrix = versions["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert [tuple(Version(v).release) for v in matrix] == list(bootstrap.PYTHONS)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A checkout where a set-up takes no time: the list of what it did."""
    done = []
    for name in (*bootstrap.LOCKS, "pyproject.toml"):
        (tmp_path / name).write_text(name)
    env = tmp_path / ".venv"
    python = env / "bin" / "python"

    def make_venv():
        python.parent.mkdir()
        python.touch()
        done.append("venv")

    for name, value in {
        "ROOT": tmp_path,
        "ENV": env,
        "PY": python,
        "make_venv": make_venv,
        "install": done.append,
        "made_by_this_python": python.exists,
    }.items():
        monkeypatch.setattr(bootstrap, name, value)
    monkeypatch.delenv("CLIF_TORCH", raising=False)
    return SimpleNamespace(root=tmp_path, env=env, done=done)


def test_set_up_happens_once(fake):
    bootstrap.setup()
    bootstrap.setup()
    assert fake.done == ["venv", "cpu"]


def test_a_changed_lock_installs_again_but_keeps_the_environment(fake):
    bootstrap.setup()
    (fake.root / "requirements.lock").write_text("other")
    bootstrap.setup()
    assert fake.done == ["venv", "cpu", "cpu"]


def test_a_stamp_that_was_cut_off_means_set_up_again(fake):
    bootstrap.setup()
    (fake.env / ".stamp").write_text(bootstrap.fingerprint())
    bootstrap.setup()
    assert fake.done == ["venv", "cpu", "cpu"]


def test_a_mistyped_option_removes_nothing(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr(bootstrap, "ROOT", tmp_path)
    monkeypatch.setattr(bootstrap, "BUILD", tmp_path)
    with pytest.raises(bootstrap.Stop, match="does not know --al"):
        bootstrap.clean(["--al"])
    with pytest.raises(bootstrap.Stop, match="does not know --upgrad"):
        bootstrap.lock(["--upgrad"])
    assert (tmp_path / "run").exists()


def test_another_torch_is_installed_when_asked_for_and_then_kept(fake, monkeypatch):
    bootstrap.setup()
    monkeypatch.setenv("CLIF_TORCH", "cu130")
    bootstrap.setup()
    monkeypatch.delenv("CLIF_TORCH")
    bootstrap.setup()
    assert fake.done == ["venv", "cpu", "cu130"]


def test_a_half_made_environment_is_thrown_away(fake, monkeypatch):
    def interrupted(_):
        (fake.env / "half").touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bootstrap, "install", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.setup()
    bootstrap.setup()
    assert fake.done == ["venv", "venv", "cpu"]
    assert not (fake.env / "half").exists()
    assert not (fake.env / ".unfinished").exists()


def test_only_a_torch_wheel_for_this_machine_is_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://example.org {tmp_path}")
    version, machine = bootstrap.TORCH.split("==")[1], os.uname().machine
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    system = "manylinux_2_28" if sys.platform == "linux" else "macosx_11_0"
    for name in (f"torch-{version}-cp39-cp39-{system}_{machine}", f"torch-1.0-{python}-{python}-{system}_{machine}"):
        (tmp_path / f"{name}.whl").touch()
    assert bootstrap.local_torch() is None
    right = tmp_path / f"torch-{version}+cpu-{python}-{python}-{system}_{machine}.whl"
    right.touch()
    assert bootstrap.local_torch() == right


LOCK = """
import sys; sys.path.insert(0, sys.argv[1])
import bootstrap, time
from pathlib import Path
bootstrap.BUILD = Path(sys.argv[2]); bootstrap.LOCK_FILE = bootstrap.BUILD / "lock"; bootstrap.PATIENCE = 5
try:
    bootstrap.hold_lock("make book")
except bootstrap.Stop as stop:
    sys.exit(str(stop))
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""


def test_a_second_run_says_who_is_at_work_and_a_dead_one_is_no_obstacle(tmp_path):
    command = [sys.executable, "-c", LOCK, str(ROOT), str(tmp_path)]
    with subprocess.Popen([*command, "60"], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        second = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
        assert second.returncode == 1
        assert f"in use by 'make book' (pid {first.pid}, since " in second.stderr
        first.kill()
    third = subprocess.run([*command, "0"], capture_output=True, text=True, check=False)
    assert (third.returncode, third.stdout) == (0, "held\n")
    assert json.loads((tmp_path / "lock").read_text())["pid"]
