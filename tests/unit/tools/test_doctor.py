"""`hyimage doctor`: each check on facts that are given, and the command on this machine."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.app import app
from cli.plan import commands_of
from pipeline.settings import PipelineSettings
from server.settings import Settings, load_settings
from tools.doctor.check import Check
from tools.doctor.checkpoint import check_disk, check_files, check_fit
from tools.doctor.deployment import check_deployment
from tools.doctor.machine import GpuCard, Machine, check_machine
from tools.doctor.run import run_checks

GOLDEN = Path(__file__).parents[2] / "golden" / "model"
H100 = GpuCard(
    name="NVIDIA H100 80GB HBM3", capability=(9, 0), free_bytes=84 * 10**9, total_bytes=85 * 10**9
)
CPU = Machine(
    torch_version="2.13.0+cpu", cuda_version=None, cuda_fault="", driver_cards=(), cards=(),
    free_bytes=16 * 10**9, shared_bytes=2**33, num_cores=2, load=0.5, compiler_fault="",
)  # fmt: skip
GPU = replace(
    CPU, torch_version="2.13.0", cuda_version="13.0", driver_cards=(f"{H100.name}, 580.1",) * 4,
    cards=(H100,) * 4,
)  # fmt: skip
CUDA = PipelineSettings(device="cuda", tensor_parallel_size=4)


def by_name(machine: Machine, settings: PipelineSettings) -> dict[str, Check]:
    return {check.name: check for check in check_machine(machine, settings)}


def test_a_machine_without_a_card_suits_settings_without_one() -> None:
    checks = by_name(CPU, PipelineSettings())
    assert {check.status for check in checks.values()} == {"ok"}
    assert list(checks) == ["torch", "gpu", "processor"]


def test_cards_and_their_driver_are_named() -> None:
    checks = by_name(GPU, CUDA)
    assert checks["gpu"] == Check(name="gpu", status="ok", sentence="4 card(s); driver 580.1")
    assert "H100" in checks["cuda:3"].sentence
    assert {check.status for check in checks.values()} == {"ok"}


@pytest.mark.parametrize(
    ("machine", "settings", "status", "words"),
    [
        (CPU, CUDA, "fail", "no NVIDIA card"),
        (GPU, PipelineSettings(), "warn", "which uses none"),
        (replace(GPU, cards=(), cuda_version=None), CUDA, "fail", "built for the CPU"),
        (replace(GPU, cards=(), cuda_version=None), PipelineSettings(), "warn", "for the CPU"),
        (replace(GPU, cards=(), cuda_fault="driver too old"), CUDA, "fail", "driver too old"),
    ],
)
def test_settings_and_cards_that_do_not_suit_each_other_say_what_to_change(
    machine: Machine, settings: PipelineSettings, status: str, words: str
) -> None:
    check = by_name(machine, settings)["gpu"]
    assert check.status == status
    assert words in check.sentence
    assert check.next_step


@pytest.mark.parametrize(
    ("machine", "name", "step"),
    [
        (replace(GPU, cards=(replace(H100, free_bytes=10**9),)), "cuda:0", "CUDA_VISIBLE_DEVICES"),
        (replace(GPU, compiler_fault="there is no C compiler"), "compiler", "gcc"),
        (replace(GPU, shared_bytes=2**26), "shared memory", "--ipc=host"),
    ],
)
def test_what_slows_or_breaks_cards_is_a_warning(machine: Machine, name: str, step: str) -> None:
    check = by_name(machine, CUDA)[name]
    assert check.status == "warn"
    assert step in check.next_step


def test_a_card_without_fast_kernels_says_so() -> None:
    old = replace(GPU, cards=(replace(H100, capability=(7, 0)),))
    assert "grouped products" in by_name(old, CUDA)["cuda:0"].sentence


def test_busy_cores_are_a_warning_unless_the_threads_are_set() -> None:
    busy = replace(CPU, load=6.0)
    assert by_name(busy, PipelineSettings())["processor"].status == "warn"
    assert by_name(busy, PipelineSettings(num_threads=1))["processor"].status == "ok"


def test_a_checkpoint_with_a_damaged_shard_names_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(tiny_checkpoint, folder)
    assert check_files(folder).status == "ok"
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    check = check_files(folder)
    assert (check.status, shard.name in check.sentence) == ("fail", True)
    shard.unlink()
    assert "download" in check_files(folder).sentence


def test_a_folder_that_is_not_there_says_where_weights_come_from(tmp_path: Path) -> None:
    check = check_files(tmp_path / "none")
    assert check.status == "fail"
    assert "hyimage download" in check.next_step


def test_the_disk_is_read_no_further_than_asked(tiny_checkpoint: Path) -> None:
    check = check_disk(tiny_checkpoint, read_bytes=1)
    assert check.status == "ok"
    assert "GB/s over" in check.sentence


def test_what_fits_on_cards_comes_with_the_command_that_serves_it() -> None:
    one = replace(GPU, cards=(H100,))  # few modes to count
    check = check_fit(GOLDEN, one, PipelineSettings(), commands_of)
    assert check.status == "ok"
    assert check.next_step.endswith(f"hyimage serve --checkpoint {GOLDEN}")


def test_what_does_not_fit_in_memory_fails(tiny_checkpoint: Path) -> None:
    small = replace(CPU, free_bytes=10**6)
    check = check_fit(tiny_checkpoint, small, PipelineSettings(), commands_of)
    assert check.status == "fail"
    assert "hyimage plan" in check.next_step


def settings_in(folder: Path, **server: object) -> Settings:
    values = {"data_dir": str(folder / "data"), "port": 0, **server}
    return Settings.model_validate({"server": values})


def test_a_server_could_start_here(tmp_path: Path) -> None:
    checks = list(check_deployment(settings_in(tmp_path)))
    assert [(check.name, check.status) for check in checks] == [
        ("port", "ok"), ("keys", "ok"), ("data", "ok"),
    ]  # fmt: skip
    assert not (tmp_path / "data").exists(), "nothing is changed"


def test_a_key_in_the_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sentence() -> str:
        checks = {check.name: check for check in check_deployment(settings_in(tmp_path))}
        return checks["keys"].sentence

    assert sentence() == "127.0.0.1 serves whoever reaches this address"
    monkeypatch.setenv("HYIMAGE_API_KEYS", "a-key")
    assert sentence() == "127.0.0.1 serves whoever has a key"


def test_what_stops_a_server_fails(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        checks = list(check_deployment(settings_in(tmp_path, host="0.0.0.0", port=port)))
    assert [(check.name, check.status) for check in checks] == [
        ("port", "fail"), ("keys", "fail"), ("data", "fail"),
    ]  # fmt: skip
    assert all(check.next_step for check in checks)


def test_stores_elsewhere_are_named_as_not_reached(tmp_path: Path) -> None:
    settings = load_settings(None, images__store="s3://bucket/images", server__port=0)
    names = [check.name for check in check_deployment(settings)]
    assert names == ["port", "keys", "data", "images.store"]


def test_every_check_runs_on_facts_that_are_given(tiny_checkpoint: Path, tmp_path: Path) -> None:
    worker = PipelineSettings(checkpoint=str(tiny_checkpoint))
    settings = settings_in(tmp_path).model_copy(update={"worker": worker})
    checks = list(run_checks(settings, commands_of, CPU))
    assert {check.status for check in checks} == {"ok"}
    assert [check.name for check in checks][-3:] == ["checkpoint", "disk", "fits"]


def test_the_command_prints_each_check_and_exits_with_1_if_one_fails(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    environment = {
        "HYIMAGE_SERVER__DATA_DIR": str(tmp_path / "data"), "HYIMAGE_SERVER__PORT": "0",
    }  # fmt: skip
    good = CliRunner().invoke(app, ["doctor", str(tiny_checkpoint), "--json"], env=environment)
    assert good.exit_code == 0, good.output
    assert json.loads(good.output)["is_ok"] is True
    bad = CliRunner().invoke(app, ["doctor", str(tmp_path)], env=environment)
    assert bad.exit_code == 1
    assert "fail checkpoint:" in bad.output
