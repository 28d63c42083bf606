"""The implementation equals the recorded reference, and the check of it can fail."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from model.errors import ConfigError
from pipeline.load import Pipeline
from server.runware.errors import CommandError
from tools.modes import parse_mode
from tools.verify.checks import Check
from tools.verify.recording import Recording, RecordingError
from tools.verify.run import list_groups
from tools.verify.verify import Request, verify_recording

GOLDEN = Path(__file__).parent

GROUPS = [
    "names", "schedules", "noise", "resolutions", "tokens", "vae", "vit", "ar",
    "square_cfg5_en", "wide_cfg75_cjk_sys", "tall_nocfg", "batch2_cfg5", "e2e_auto",
]  # fmt: skip


def verify(checkpoint: Path, folder: Path, *only: str, mode: str = "single") -> bool:
    return verify_recording(
        Request(
            checkpoint=checkpoint,
            recording=folder,
            only=frozenset(only),
            mode=mode,
        )
    )


def run_group(pipeline: Pipeline, folder: Path, name: str) -> list[Check]:
    groups = list_groups(pipeline, Recording(folder), {name})
    return [check for group in groups if group.name == name for check in group.checks]


@pytest.mark.parametrize("name", GROUPS)
def test_every_recorded_tensor_of_a_group_is_reproduced(
    golden_pipeline: Pipeline, name: str
) -> None:
    checks = run_group(golden_pipeline, GOLDEN, name)
    assert [check for check in checks if not check.is_ok] == []
    assert len(checks) >= 2


def test_every_file_of_the_recording_is_checked_or_skipped_with_a_reason(
    golden_pipeline: Pipeline,
) -> None:
    groups = {group.name: group for group in list_groups(golden_pipeline, Recording(GOLDEN), set())}
    files = {
        key.split(":")[0].removesuffix(".safetensors")
        for key in Recording(GOLDEN).manifest["tensors"]
    }
    assert files <= groups.keys()
    assert {name for name, group in groups.items() if group.skipped} == set()


@pytest.fixture
def copied_recording(tmp_path: Path) -> Path:
    """A small recording of one case that a test may damage."""
    manifest = json.loads((GOLDEN / "manifest.json").read_text())
    manifest["cases"] = {"tall_nocfg": manifest["cases"]["tall_nocfg"]}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for name in ("tall_nocfg.safetensors", "tall_nocfg.0.png"):
        shutil.copy(GOLDEN / name, tmp_path)
    return tmp_path


def test_a_value_just_outside_its_tolerance_fails(
    golden_pipeline: Pipeline, copied_recording: Path
) -> None:
    path = copied_recording / "tall_nocfg.safetensors"
    tensors = load_file(path)
    tensors["pred_step1"][0, 0, 0, 0] += 1e-3
    save_file(tensors, path)
    failed = [
        c.name for c in run_group(golden_pipeline, copied_recording, "tall_nocfg") if not c.is_ok
    ]
    assert failed == ["pred_step1"]


def test_a_recorded_tensor_that_we_do_not_know_fails(
    golden_pipeline: Pipeline, copied_recording: Path
) -> None:
    path = copied_recording / "tall_nocfg.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "layer1.unheard_of": tensors["sigmas"].clone()}, path)
    manifest = json.loads((copied_recording / "manifest.json").read_text())
    manifest["tensors"]["tall_nocfg.safetensors:layer1.unheard_of"] = {"tolerance": "exact"}
    (copied_recording / "manifest.json").write_text(json.dumps(manifest))
    failed = [c for c in run_group(golden_pipeline, copied_recording, "tall_nocfg") if not c.is_ok]
    assert [(c.name, c.note) for c in failed] == [
        ("layer1.unheard_of", "recorded, but no check looked at it")
    ]


def test_a_promised_tensor_that_is_not_in_the_file_is_an_error(copied_recording: Path) -> None:
    path = copied_recording / "tall_nocfg.safetensors"
    tensors = load_file(path)
    del tensors["pred_step0"]
    save_file(tensors, path)
    with pytest.raises(RecordingError, match="pred_step0"):
        Recording(copied_recording).read_tensors("tall_nocfg.safetensors")


def test_the_report_tells_success_from_failure(copied_recording: Path) -> None:
    checkpoint = GOLDEN / "model"
    assert verify(checkpoint, copied_recording)
    path = copied_recording / "tall_nocfg.safetensors"
    tensors = load_file(path)
    tensors["token_ids"][0, 3] += 1
    save_file(tensors, path)
    assert not verify(checkpoint, copied_recording)
    with pytest.raises(CommandError, match="tall_nocfg"):
        verify(checkpoint, copied_recording, "no_such_case")


@pytest.mark.parametrize("mode", ["layers2", "cfg2", "tensor2-expert", "cfg2xtensor2"])
def test_the_recordings_hold_on_a_mesh(mode: str) -> None:
    """Images with and without guidance, batch, automatic size, texts, and decoding in shards."""
    cases = ("vae", "square_cfg5_en", "tall_nocfg", "batch2_cfg5", "e2e_auto", "ar")
    assert verify(GOLDEN / "model", GOLDEN, *cases, mode=mode)


@pytest.mark.parametrize("mode", ["", "cfg3", "tensor", "tensor2xcfg2", "layers"])
def test_a_mode_that_is_not_one_is_refused_with_those_that_are(mode: str) -> None:
    with pytest.raises(CommandError, match="cfg2xtensor2"):
        parse_mode(mode)


def test_a_mode_that_does_not_divide_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        verify(GOLDEN / "model", GOLDEN, mode="tensor4")
