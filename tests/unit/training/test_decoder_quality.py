from pathlib import Path

import numpy as np
import pytest

from training.decoder_quality import main, measure_blockiness, measure_psnr


def test_an_image_of_even_blocks_is_blocky_and_a_ramp_is_not() -> None:
    ramp_yx3 = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 256, axis=0).repeat(3, 2)
    assert measure_blockiness(ramp_yx3) == pytest.approx(1.0)
    blocks_yx3 = ramp_yx3 // 64 * 64
    assert measure_blockiness(blocks_yx3) == float("inf")
    assert measure_blockiness(ramp_yx3 // 2 + blocks_yx3 // 2) > 10


def test_edges_between_the_multiples_of_64_do_not_count_as_blocks() -> None:
    image_yx3 = np.zeros((256, 256, 3), np.uint8)
    image_yx3[70:100, 70:100] = 255
    assert measure_blockiness(image_yx3) == 0


def test_an_even_image_shows_no_grid() -> None:
    assert measure_blockiness(np.full((128, 192, 3), 90, np.uint8)) == 1.0


def test_the_psnr_of_an_error_of_one_level_is_that_of_8_bits() -> None:
    wanted_yx3 = np.full((8, 8, 3), 100, np.uint8)
    assert measure_psnr(wanted_yx3 + 1, wanted_yx3) == pytest.approx(48.13, abs=0.01)


def test_the_command_prints_the_quality_of_a_checkpoint(
    art: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["checkpoints/tiny", "--count", "1", "--art", str(art)])
    assert capsys.readouterr().out.startswith("1 scenes: PSNR ")
