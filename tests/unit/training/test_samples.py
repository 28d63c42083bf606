import json
from pathlib import Path

from training.samples import list_held_captions, save_samples
from training.scenes import is_held
from training.scoring import SampleOptions


def test_samples_are_a_sheet_and_a_line_of_scores(art: Path, tmp_path: Path) -> None:
    (tmp_path / "art").symlink_to(art)
    options = SampleOptions(num_steps=1, guidance=1.0)
    shares = save_samples(tmp_path, Path("checkpoints/tiny"), count=2, options=options)
    line = json.loads((tmp_path / "scores.jsonl").read_text())
    assert line["all"] == round(shares["all"], 3)
    assert line["s_per_image"] > 0
    assert (tmp_path / "sheets" / "samples.png").is_file()


def test_sample_captions_are_of_scenes_that_training_left_out() -> None:
    captioned = list_held_captions(20)
    assert all(is_held(scene) for scene, _ in captioned)
    assert captioned == list_held_captions(20)
