"""A rank of a mesh of GPUs: its tensors and its collectives stay on its own device."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.load import load_pipeline
from pipeline.ranks import join_settings_mesh, settings_of_rank
from pipeline.settings import PipelineSettings
from tests.device.pretend_functions import pretended_cuda
from tests.device.pretend_mesh import pretended_mesh
from tests.device.test_modes import REQUESTS, images_of

MESHES = [
    (1, {"tensor_parallel_size": 2}),
    (1, {"tensor_parallel_size": 2, "expert_parallel": True}),
    (3, {"cfg_parallel_size": 2, "tensor_parallel_size": 2}),
]


@pytest.mark.parametrize("quantization", ["none", "fp8"])
@pytest.mark.parametrize(("rank", "spread"), MESHES, ids=str)
def test_a_ranks_collectives_are_on_its_own_device(
    wide_checkpoint: Path, tmp_path: Path, rank: int, spread: dict[str, Any], quantization: Any
) -> None:
    settings = PipelineSettings(
        checkpoint=str(wide_checkpoint),
        device="cuda",
        dtype="bfloat16",
        quantization=quantization,
        **spread,
    )
    with pretended_cuda() as cuda, pretended_mesh() as nccl:
        mesh = join_settings_mesh(settings, rank, tmp_path / "rendezvous")
        assert nccl.backend == "nccl"
        assert nccl.device_at_start == rank
        assert str(nccl.device_id) == f"cuda:{rank}"
        pipeline = load_pipeline(settings_of_rank(settings, rank), mesh=mesh)
        devices = {str(p.device) for p in pipeline.transformer.parameters()}
        assert devices == {f"cuda:{rank}"}
        for name in ("guided", "TeaCache and FBCache", "auto size"):
            assert images_of(pipeline, REQUESTS[name])
        assert {collective.device for collective in nccl.collectives} == {f"cuda:{rank}"}
        assert cuda.record.hazards == []


def test_a_vote_of_the_ranks_waits_for_the_device_once(
    wide_checkpoint: Path, tmp_path: Path
) -> None:
    settings = PipelineSettings(
        checkpoint=str(wide_checkpoint), device="cuda", dtype="bfloat16", tensor_parallel_size=2
    )
    with pretended_cuda() as cuda, pretended_mesh():
        mesh = join_settings_mesh(settings, 1, tmp_path / "rendezvous")
        cuda.record.clear()
        assert mesh.all_true(True)
        assert mesh.broadcast_int(5) == 5
        assert len([s for s in cuda.record.syncs if "item" in s.what]) == 2
