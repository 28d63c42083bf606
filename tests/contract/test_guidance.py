"""`hunyuan.guidance`: how it reaches the engine, what is refused, what diagnostics say of it."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from pipeline.guidance_plan import PLAIN_GUIDANCE, ApgPlan, GuidancePlan
from server.app import create_app
from server.settings import Settings
from tests.contract.conftest import FakeEngine, change, make_task, refusal

CALIBRATED = GuidancePlan(interval="calibrated")


def plan_of(client: TestClient, engine: FakeEngine, **hunyuan: Any) -> GuidancePlan:
    response = client.post("/v1", json=[make_task(hunyuan=hunyuan)])
    assert response.status_code == 200, response.text
    return engine.jobs[-1].request.guidance_plan


@pytest.mark.parametrize(
    ("guidance", "plan"),
    [
        (None, PLAIN_GUIDANCE),
        ({}, PLAIN_GUIDANCE),
        ("plain", PLAIN_GUIDANCE),
        ("interval", CALIBRATED),
        ({"interval": "calibrated"}, CALIBRATED),
        ({"interval": [0, 0.8]}, GuidancePlan(interval=(0.0, 0.8))),
        ({"interval": [0, 1]}, PLAIN_GUIDANCE),
        ({"apg": {}}, GuidancePlan(apg=ApgPlan(momentum=-0.5, eta=0.0))),
        (
            {"apg": {"momentum": 0, "normThreshold": 0.3, "eta": 1}},
            GuidancePlan(apg=ApgPlan(norm_threshold=0.3)),
        ),
        ({"apg": {"momentum": 0, "eta": 1}}, PLAIN_GUIDANCE),
        ({"rescale": 0.7, "ramp": "cosine"}, GuidancePlan(rescale=0.7, ramp="cosine")),
        ({"rescale": 0, "ramp": "none", "interval": None}, PLAIN_GUIDANCE),
    ],
)
def test_the_options_reach_the_engine(
    client: TestClient, engine: FakeEngine, guidance: object, plan: GuidancePlan
) -> None:
    assert plan_of(client, engine, guidance=guidance) == plan


@pytest.mark.parametrize(
    ("guidance", "parameter", "said"),
    [
        ("sometimes", "hunyuan.guidance", "It must be an object, or one of: 'plain', 'interval'."),
        (3, "hunyuan.guidance", "Got 3."),
        ({"interval": [0.8, 0.2]}, "hunyuan.guidance.interval", "low < high"),
        ({"interval": [0.8]}, "hunyuan.guidance.interval", "[low, high]"),
        ({"interval": [0, 1.1]}, "hunyuan.guidance.interval", "Got [0, 1.1]."),
        ({"interval": [False, True]}, "hunyuan.guidance.interval", "Got [false, true]."),
        ({"interval": "all"}, "hunyuan.guidance.interval", "or 'calibrated'. Got 'all'."),
        ({"apg": {"eta": 2}}, "hunyuan.guidance.apg.eta", "0 to 1"),
        ({"apg": {"normThreshold": 0}}, "hunyuan.guidance.apg.normThreshold", "Got 0."),
        ({"apg": {"momentum": -2}}, "hunyuan.guidance.apg.momentum", "-1 to 1"),
        ({"rescale": 1.5}, "hunyuan.guidance.rescale", "0 to 1"),
        ({"ramp": "up"}, "hunyuan.guidance.ramp", "'linear', 'cosine'"),
        ({"scale": 7}, "hunyuan.guidance.scale", "'apg', 'interval', 'ramp', 'rescale'"),
    ],
)
def test_what_is_refused_is_named_with_what_would_work(
    client: TestClient, guidance: object, parameter: str, said: str
) -> None:
    error = refusal(client, hunyuan={"guidance": guidance})
    assert error["parameter"] == parameter
    assert said in error["message"]


def test_a_setting_gives_tasks_without_options_the_interval(
    settings: Settings, engine: FakeEngine
) -> None:
    app: Any = create_app(change(settings, api__default_guidance="interval"), engine)
    with TestClient(app) as client:
        assert plan_of(client, engine) == CALIBRATED
        assert plan_of(client, engine, guidance="plain") == PLAIN_GUIDANCE
        assert plan_of(client, engine, guidance={"rescale": 0.5}) == GuidancePlan(rescale=0.5)


def test_diagnostics_have_rows_and_the_guidance(client: TestClient) -> None:
    (item,) = client.post("/v1?diagnostics=1", json=[make_task()]).json()["data"]
    assert item["diagnostics"]["rows"] == {"run": 0, "saved": 0}  # of an engine that runs none
    assert item["diagnostics"]["guidance"] == {
        "interval": [0.0, 1.0],
        "unguidedSteps": 0,
        "apg": None,
        "rescale": 0.0,
        "ramp": "none",
    }


def test_the_openapi_page_has_the_options_and_the_presets(client: TestClient) -> None:
    page = client.get("/openapi.json").text
    assert '"normThreshold"' in page
    assert '"plain","interval"' in page.replace('", "', '","')
