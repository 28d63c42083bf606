from pathlib import Path

import numpy as np
import pytest
import torch

from model.loading.build import load_model
from model.loading.options import LoadOptions
from model.resolution import find_size
from model.vae import Vae
from pipeline.load import load_pipeline
from pipeline.settings import PipelineSettings
from training.architecture import build_config
from training.export import build_trained, export_checkpoint
from training.scenes import OFFERED, Scene, grid_of
from training.scoring import SampleOptions, generate_scene
from training.state import load_state, save_state
from training.transformer import STATE_NAME, TransformerTrainer
from training.vae import STATE_NAME as VAE_STATE_NAME


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has saved once: started weights, and averages that differ from them."""
    folder = tmp_path_factory.mktemp("run")
    trainer = TransformerTrainer(folder)
    for averaged in trainer.ema.values():
        averaged += 0.01
    save_state(folder / STATE_NAME, trainer.state())
    torch.manual_seed(0)
    save_state(
        folder / VAE_STATE_NAME, {"weights": Vae(build_config().vae).state_dict(), "step": 0}
    )
    export_checkpoint(folder, folder / "export" / "tiny")
    return folder


def test_an_export_loads_strictly_and_equals_the_averaged_weights(run: Path) -> None:
    options = LoadOptions(dtype=torch.float32, skip=())
    loaded = dict(load_model(run / "export" / "tiny", options).named_parameters())
    trained = dict(build_trained(run).named_parameters())
    assert loaded.keys() == trained.keys()
    for name, parameter in trained.items():
        # stored as bfloat16
        torch.testing.assert_close(loaded[name], parameter, rtol=2e-2, atol=2e-3, msg=name)


def test_an_export_fits_into_the_repository(run: Path) -> None:
    sizes = [path.stat().st_size for path in (run / "export" / "tiny").iterdir()]
    assert sum(sizes) <= 40_000_000


def test_exporting_again_replaces_the_folder_and_leaves_nothing_beside_it(run: Path) -> None:
    export_checkpoint(run, run / "export" / "tiny")
    assert [path.name for path in (run / "export").iterdir()] == ["tiny"]


def test_an_export_generates_at_an_offered_size(run: Path) -> None:
    pipeline = load_pipeline(PipelineSettings(checkpoint=str(run / "export" / "tiny")))
    columns, rows = grid_of(find_size(OFFERED, 1536, 512))
    scene = Scene(columns, rows, "snow", "center", ())
    options = SampleOptions(num_steps=1, guidance=2.0)
    first, again = (generate_scene(pipeline, scene, "a cat", options, seed=3) for _ in range(2))
    assert first.shape == (512, 1536, 3)
    assert np.array_equal(first, again)


def test_a_state_file_is_the_old_one_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    save_state(path, {"step": 1})

    def unpicklable() -> None: ...

    with pytest.raises((AttributeError, TypeError, RuntimeError)):
        save_state(path, {"step": unpicklable})
    assert load_state(path) == {"step": 1}
