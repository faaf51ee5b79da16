"""Setting up works, and says in a sentence why where it cannot."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bench
from bench.help import doctor

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def test_the_lock_pins_exact_versions_that_any_machine_can_install() -> None:
    assert [line for line in LOCK if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    assert "torch==2.13.0" in LOCK


def test_the_lock_holds_all_that_is_needed_to_run_and_test() -> None:
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in LOCK}
    needed = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["test"]
    needed += PROJECT["build-system"]["requires"]  # make installs the project without build isolation
    for requirement in map(Requirement, needed):
        version = locked.get(canonicalize_name(requirement.name))
        assert version is not None and requirement.specifier.contains(version), str(requirement)


LARGEST_WHEEL = 100 * 10**6
"""Bytes that a package index takes by default."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tree, built without network."""
    folder = tmp_path_factory.mktemp("dist")
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a fresh environment outside any clone with the wheel, and the packages of this one."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    install = ["-m", "pip", "--python", str(scripts / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([sys.executable, *install, str(wheel)], check=True, capture_output=True)
    here = "import sysconfig; print(sysconfig.get_path('purelib'))"
    ours, theirs = (
        subprocess.run([python, "-c", here], check=True, capture_output=True, text=True).stdout.strip()
        for python in (sys.executable, str(scripts / "python"))
    )
    Path(theirs, "shared.pth").write_text(f"{ours}\n")
    return scripts


def call(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**outside, **environment}, capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_wheel_holds_what_a_run_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("needs a git checkout")
    folders = ("bench", "methods", "reports", "datasets")
    tracked = [name for name in listed.stdout.splitlines() if name.split("/")[0] in folders and (ROOT / name).is_file()]
    needed = {name for name in tracked if not name.startswith("reports/results/")} | {"run_bench.py", "CITATIONS.bib"}
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == {f"online_adaptation_bench/{name}" for name in needed} | {"online_adaptation_bench.pth"}
    assert wheel.stat().st_size < LARGEST_WHEEL


@pytest.mark.slow
def test_the_installed_command_finds_methods_data_models_and_trained_weights_from_any_folder(
    installed: Path, tmp_path: Path
) -> None:
    version = call(installed / "oab", "--version", cwd=tmp_path).stdout
    assert version == f"online-adaptation-bench {bench.__version__}, protocol {bench.PROTOCOL}\n"
    plan = ("run", "default", "--streams", "1", "--documents", "5", "--dry-run")
    done = call(installed / "oab", *plan, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "camels" in done.stdout and "gold_in_prompt" in done.stdout
    assert call(installed / "oab", "report", cwd=tmp_path).stderr.endswith("Run an experiment first: oab.\n")
    code = "import bench, datasets; print(bench.__file__, hasattr(datasets, 'load_dataset'))"
    file, is_hugging_face = call(installed / "python", "-c", code, cwd=tmp_path).stdout.split()
    assert Path(file).is_relative_to(installed.parent) and is_hugging_face == "True"


@pytest.mark.slow
def test_another_package_called_bench_does_not_come_before_the_installed_one(installed: Path, tmp_path: Path) -> None:
    other = tmp_path / "bench"
    other.mkdir()
    (other / "__init__.py").write_text("")
    code = "from run_bench import run; import bench; print(bench.PROTOCOL)"
    for command in (("oab", "--version"), ("python", "-c", code)):
        done = call(installed / command[0], *command[1:], cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0 and bench.PROTOCOL in done.stdout, done.stderr


def test_another_package_called_bench_that_is_loaded_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("")
    search = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = call(sys.executable, "-c", "import bench, run_bench", cwd=tmp_path, PYTHONPATH=search)
    assert done.returncode != 0 and f"is loaded, from {tmp_path / 'bench'}: import run_bench before it." in done.stderr


def test_the_datasets_folder_is_not_beside_hugging_faces_package() -> None:
    target = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(target["only-include"]) == set(target["sources"]) == {"bench", "methods", "reports", "datasets"}
    assert all(place == f"online_adaptation_bench/{name}" for name, place in target["sources"].items())


def test_the_doctor_knows_every_extra() -> None:
    extras = {name: listed for name, listed in PROJECT["project"]["optional-dependencies"].items() if name != "test"}
    assert {Requirement(item).name for listed in extras.values() for item in listed} == set(doctor.OPTIONAL)


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == bench.__version__
    assert citation["license"] == PROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of a checkout that make needs."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml", ".ci/run"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def ready(checkout: Path) -> Path:
    """A checkout that is set up with tools that only print what they are called with."""
    for tool in ("python", "ruff", "mypy"):
        script(checkout / ".venv/bin" / tool, f'echo {tool} "$@"')
    (checkout / ".venv/.ready").touch()
    return checkout


@needs_make
@pytest.mark.parametrize(
    ("python", "complaint"),
    [
        ("exit 1", "3.11 or later is needed"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "cannot make virtual environments"),
        (None, "There is no"),
    ],
)
def test_make_says_what_is_wrong_with_python(checkout: Path, python: str | None, complaint: str) -> None:
    path = checkout / "python" if python is None else script(checkout / "python", python)
    done = make(checkout, "bench", f"PYTHON={path}")
    assert done.returncode != 0 and complaint in done.stderr
    assert not (checkout / ".venv").exists()


@needs_make
def test_a_failed_installation_is_not_taken_for_a_finished_one(checkout: Path) -> None:
    python = script(
        checkout / "python",
        'test "$2" = venv && mkdir -p .venv/bin && printf "#!/bin/sh\\nexit 1\\n" > .venv/bin/python && '
        "chmod +x .venv/bin/python; exit 0",
    )
    for _ in range(2):
        done = make(checkout, "test", f"PYTHON={python}")
        assert done.returncode != 0 and "Setting up" in done.stdout
        assert not (checkout / ".venv/.ready").exists()


@needs_make
@pytest.mark.parametrize(
    ("target", "called"),
    [("bench", "python run_bench.py"), ("test", "python -m pytest"), ("perf", "python -m tests.perf")],
)
def test_a_checkout_that_is_ready_is_not_set_up_again(ready: Path, target: str, called: str) -> None:
    (line,) = make(ready, target).stdout.splitlines()
    assert line.partition(" --")[0] == called


@needs_make
def test_make_real_gets_the_model_runs_what_needs_no_files_and_names_the_other_texts(ready: Path) -> None:
    lines = make(ready, "real", "OPTIONS=--streams 2").stdout.splitlines()
    assert lines[:2] == ["python run_bench.py model get smollm2", "python run_bench.py run real-newsworld --streams 2"]
    squad = yaml.safe_load((ROOT / "datasets" / "squad" / "dataset.yaml").read_text())
    text = "\n".join(lines[2:])
    assert squad["source"]["hub"]["id"] in text and "datasets/realtimeqa" in text and "--data-files FOLDER" in text


@needs_make
def test_a_changed_lock_is_installed(ready: Path) -> None:
    future = (ready / ".venv/.ready").stat().st_mtime + 10
    os.utime(ready / "requirements.lock", (future, future))
    assert "Setting up" in make(ready, "test", f"PYTHON={script(ready / 'python', '')}").stdout


@needs_make
@pytest.mark.parametrize("code", [0, 1, 5])
def test_ci_ends_with_the_tests_and_fails_with_them(ready: Path, code: int) -> None:
    script(ready / ".venv/bin/python", f"echo summary; exit {code}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run([ready / ".ci/run"], env=environment, capture_output=True, text=True, cwd=ready.parent)
    assert (done.returncode == 0) == (code == 0), done.stderr
    assert done.stdout.splitlines()[-1] == "summary"
