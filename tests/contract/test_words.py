"""Sizes left to the model, rewrites, system prompts and long prompts, as requests ask for them."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.checkpoint_info import read_checkpoint_info
from server.app import create_app
from server.engine.messages import Job
from server.settings import Settings
from tests.contract.conftest import FakeEngine, make_task, refusal


def change_checkpoint(settings: Settings, name: str, **fields: Any) -> None:
    path = Path(settings.worker.checkpoint) / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def send(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1", json=[make_task(**fields)])


def job_of(settings: Settings, engine: FakeEngine, **fields: Any) -> Job:
    app: Any = create_app(settings, engine)
    with TestClient(app) as client:
        response = send(client, **fields)
        assert response.status_code == 200, response.text
    return engine.jobs[-1]


def test_without_a_size_the_model_chooses_and_the_cost_is_that_of_its_choice(
    client: TestClient, engine: FakeEngine
) -> None:
    """The engine of these tests chooses 1344x704."""
    (auto,) = send(client, includeCost=True).json()["data"]
    (same,) = send(client, includeCost=True, width=1344, height=704).json()["data"]
    assert engine.jobs[0].request.width_px is None
    assert auto["cost"] == same["cost"]


def test_a_setting_gives_tasks_without_a_size_a_fixed_one(
    settings: Settings, engine: FakeEngine
) -> None:
    api = settings.api.model_copy(update={"default_size": "1024x1024"})
    job = job_of(settings.model_copy(update={"api": api}), engine)
    assert (job.request.width_px, job.request.height_px) == (1024, 1024)


def test_a_pretrain_checkpoint_refuses_rewrites_at_admission(client: TestClient) -> None:
    error = refusal(client, hunyuan={"rewrite": "think"})
    assert (error["code"], error["parameter"]) == ("unsupportedRewrite", "hunyuan.rewrite")
    assert "Instruct" in error["message"]
    assert refusal(client, hunyuan={"rewrite": "better"})["code"] == "invalidRewrite"


def test_an_instruct_checkpoint_takes_rewrites_and_system_prompts(
    settings: Settings, engine: FakeEngine
) -> None:
    change_checkpoint(settings, "generation_config.json", sequence_template="instruct")
    options = {"rewrite": "recaption", "systemPrompt": "Be brief."}
    job = job_of(settings, engine, hunyuan=options)
    assert (job.request.rewrite, job.request.system_prompt) == ("recaption", "Be brief.")


def test_a_distilled_checkpoint_brings_its_steps_and_takes_no_negative_prompt(
    settings: Settings, engine: FakeEngine
) -> None:
    change_checkpoint(settings, "config.json", cfg_distilled=True, use_meanflow=True)
    change_checkpoint(settings, "generation_config.json", diff_infer_steps=8)
    assert job_of(settings, engine).request.num_steps == 8
    assert job_of(settings, engine, steps=12).request.num_steps == 12
    app: Any = create_app(settings, engine)
    with TestClient(app) as client:
        error = refusal(client, negativePrompt="blurry")
    assert (error["code"], error["parameter"]) == ("unsupportedNegativePrompt", "negativePrompt")


@pytest.mark.parametrize("name", ["positivePrompt", "negativePrompt"])
def test_a_prompt_longer_than_the_model_is_refused_with_the_count(
    settings: Settings, engine: FakeEngine, name: str
) -> None:
    """100 positions are left beside the image and the template; a letter is a token here."""
    stride = read_checkpoint_info(Path(settings.worker.checkpoint)).pixels_per_token
    image_tokens = (1024 // stride) ** 2
    change_checkpoint(settings, "config.json", max_position_embeddings=image_tokens + 64 + 100)
    app: Any = create_app(settings, engine)
    with TestClient(app) as client:
        fits = {"width": 1024, "height": 1024, name: "x y " * 20}
        assert send(client, **fits).status_code == 200
        error = refusal(client, **{**fits, name: "qzx " * 60})
    assert (error["code"], error["parameter"]) == ("promptTooLong", name)
    assert error["excess"] > 0
    assert str(error["excess"]) in error["message"]
