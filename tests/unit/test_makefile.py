"""The Makefile: what each target installs, and which build of torch, seen from a dry run."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Makefile").read_text(encoding="utf-8")
CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8")
(TORCH,) = re.findall(r"^torch==.*$", CONSTRAINTS, flags=re.M)
# Stands for pip: notes what it is given, and has only the builds of torch that are listed.
PIP = """#!/bin/sh
echo "$@" >> "{log}"
case "$*" in *torch==*) ;; *) exit 0 ;; esac
for build in {builds}; do case "$*" in *"{torch}$build") exit 0 ;; esac; done
echo "ERROR: No matching distribution found for torch" >&2
exit 1
"""


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run make from another folder than the repository's."""
    return subprocess.run(
        ["make", "-C", str(folder), *arguments],
        cwd="/", capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """An environment whose python does nothing, and whose pip has all builds of torch."""
    (tmp_path / "bin").mkdir()
    script(tmp_path / "bin" / "python", "#!/bin/sh\n")
    offer(tmp_path, '"" +cpu +cu130')
    return tmp_path


def script(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def offer(venv: Path, builds: str) -> None:
    script(venv / "bin" / "pip", PIP.format(log=venv / "pip.log", builds=builds, torch=TORCH))


def installed(venv: Path) -> list[str]:
    """Return what pip was to install, without its options."""
    lines = (venv / "pip.log").read_text(encoding="utf-8").splitlines()
    return [re.sub(r"^.*-c constraints.txt ", "", line) for line in lines]


def test_serve_installs_no_test_and_no_check(venv: Path) -> None:
    planned = make("-n", f"VENV={venv}", "serve")
    assert "-e ." in planned.stdout
    assert "[dev]" not in planned.stdout
    assert f"{venv}/bin/hyimage serve --config configs/tiny.toml" in planned.stdout


@pytest.mark.parametrize("target", ["test", "check", "setup", "format"])
def test_what_tests_or_checks_installs_both(venv: Path, target: str) -> None:
    assert '-e ".[dev]"' in make("-n", f"VENV={venv}", target).stdout


def test_a_second_run_installs_nothing(venv: Path) -> None:
    assert make(f"VENV={venv}", "base").returncode == 0
    (venv / "pip.log").unlink()
    assert make(f"VENV={venv}", "base").returncode == 0
    assert not (venv / "pip.log").exists()


def test_the_build_for_the_cpu_is_the_first_choice(venv: Path) -> None:
    make(f"VENV={venv}", "base")
    assert installed(venv) == [f"{TORCH}+cpu", "-e ."]


def test_without_a_build_for_the_cpu_it_says_so_and_takes_what_there_is(venv: Path) -> None:
    offer(venv, '""')
    done = make(f"VENV={venv}", "base")
    assert done.returncode == 0, done.stderr
    assert "PIP_EXTRA_INDEX_URL" in done.stdout
    assert installed(venv) == [f"{TORCH}+cpu", TORCH, "-e ."]


def test_another_fault_of_pip_is_shown_and_takes_nothing_else(venv: Path) -> None:
    script(venv / "bin" / "pip", "#!/bin/sh\necho 'no space left on device' >&2\nexit 1\n")
    done = make(f"VENV={venv}", "base")
    assert done.returncode != 0
    assert "no space left on device" in done.stdout + done.stderr


def test_a_build_that_was_asked_for_is_installed_and_stays(venv: Path) -> None:
    make(f"VENV={venv}", "base")
    make(f"VENV={venv}", "TORCH=cu130", "base")
    make(f"VENV={venv}", "base")
    assert installed(venv) == [f"{TORCH}+cpu", "-e .", f"{TORCH}+cu130", "-e ."]


def test_a_target_for_a_gpu_takes_the_build_for_cuda(venv: Path) -> None:
    assert "the build for cuda" in make("-n", f"VENV={venv}", "first-contact").stdout
    assert "the build for cpu" in make("-n", f"VENV={venv}", "test").stdout


def test_every_target_and_variable_has_a_line_of_help() -> None:
    shown = make("help").stdout
    (phony,) = re.findall(r"^\.PHONY: (.*)$", TEXT, flags=re.M)
    targets = set(phony.split()) - {"help"}
    assert set(re.findall(r"^make ([\w-]+) ", shown, flags=re.M)) == targets
    variables = re.findall(r"^([A-Z]+) \?=", TEXT, flags=re.M)
    assert [name for name in variables if name not in shown] == []
