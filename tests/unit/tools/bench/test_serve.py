from pathlib import Path

from server.settings import load_settings
from tools.bench.serve import run_serve_bench, settings_within


def test_a_measured_server_keeps_its_tasks_and_images_in_its_own_folder(tmp_path: Path) -> None:
    settings = settings_within(load_settings(None), str(tmp_path))
    assert settings.images.store == f"{tmp_path}/images"
    assert settings.tasks.database_url == f"sqlite:///{tmp_path}/tasks.db"
    assert settings.server == load_settings(None).server


def test_both_servers_are_measured(tiny_checkpoint: Path) -> None:
    settings = load_settings(None, worker__checkpoint=str(tiny_checkpoint))
    result = run_serve_bench(settings, num_requests=10, concurrency=2)
    assert 0 < result.bare_ms < 1000
    assert 0 < result.ours_ms < 1000
    assert result.ratio == result.ours_per_s / result.bare_per_s
