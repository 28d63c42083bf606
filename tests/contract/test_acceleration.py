"""Schedulers, step caches and diagnostics as requests ask for them."""

from typing import Any

import pytest
from fastapi.testclient import TestClient

from cache.plan import CachePlan, ForecastPlan
from schedulers.catalog import ACCEPTED
from server.app import create_app
from server.settings import CacheSettings, Settings
from tests.contract.conftest import FakeEngine, change, make_task, refusal
from tests.waiting import wait_until


def plan_of(client: TestClient, engine: FakeEngine, **fields: Any) -> CachePlan:
    response = client.post("/v1", json=[make_task(**fields)])
    assert response.status_code == 200, response.text
    return engine.jobs[-1].request.cache


@pytest.mark.parametrize("name", ACCEPTED)
def test_every_scheduler_name_reaches_the_engine(
    client: TestClient, engine: FakeEngine, name: str
) -> None:
    assert client.post("/v1", json=[make_task(scheduler=name)]).status_code == 200
    assert engine.jobs[-1].request.scheduler == name


def test_an_unknown_scheduler_is_refused_with_the_names_there_are(client: TestClient) -> None:
    error = refusal(client, scheduler="Nonsense")
    assert error["code"] == "invalidScheduler"
    assert "'DPM++ 2M Karras'" in error["message"]
    assert error["allowedValues"] == list(ACCEPTED)


def test_the_default_and_none_reuse_nothing(client: TestClient, engine: FakeEngine) -> None:
    assert not plan_of(client, engine).is_on
    assert not plan_of(client, engine, acceleration="none").is_on


def test_a_setting_gives_tasks_without_a_preset_another_one(
    settings: Settings, engine: FakeEngine
) -> None:
    app: Any = create_app(change(settings, cache__default_acceleration="medium"), engine)
    with TestClient(app) as client:
        assert plan_of(client, engine).name == "teaCache+forecast"
        assert not plan_of(client, engine, acceleration="none").is_on


def test_low_medium_and_high_reuse_more_and_more(client: TestClient, engine: FakeEngine) -> None:
    plans = [plan_of(client, engine, acceleration=name) for name in ("low", "medium", "high")]
    assert {plan.name for plan in plans} == {"teaCache+forecast"}
    assert {plan.forecast for plan in plans} == {ForecastPlan(order=1, contraction=0.5)}
    allowed = [((plan.tea_distance or 0), plan.tea_relaxation) for plan in plans]
    assert allowed == sorted(allowed)
    assert len(set(allowed)) == 3


@pytest.mark.parametrize(
    ("fields", "is_fitted"),
    [
        ({}, False),
        ({"acceleration": "none"}, False),
        ({"acceleration": "high"}, True),
        ({"acceleration": "low", "scheduler": "Default"}, True),
        ({"acceleration": "high", "scheduler": "Euler"}, False),
        ({"acceleratorOptions": {"teaCache": True}}, False),
    ],
)
def test_a_preset_steps_over_the_fitted_sigmas_unless_a_scheduler_is_named(
    client: TestClient, engine: FakeEngine, fields: dict[str, Any], is_fitted: bool
) -> None:
    assert client.post("/v1", json=[make_task(**fields)]).status_code == 200
    assert engine.jobs[-1].request.is_grid_fitted == is_fitted


def test_explicit_options_win_over_a_preset(client: TestClient, engine: FakeEngine) -> None:
    off = plan_of(client, engine, acceleration="high", acceleratorOptions={"teaCache": False})
    assert not off.is_on
    own = plan_of(client, engine, acceleration="high", acceleratorOptions={"fbCache": True})
    assert own.name == "fbCache"
    window = {"cacheStartStep": 4, "cacheMaxConsecutiveSteps": 2}
    preset = plan_of(client, engine, acceleration="low", acceleratorOptions=window)
    assert (preset.name, preset.start, preset.max_consecutive) == ("teaCache+forecast", 4, 2)


def test_both_caches_and_their_values_reach_the_plan(
    client: TestClient, engine: FakeEngine
) -> None:
    options = {"teaCache": True, "teaCacheDistance": 0.4, "fbCache": True}
    plan = plan_of(client, engine, acceleratorOptions=options)
    assert (plan.name, plan.tea_distance, plan.fb_threshold_scale) == ("teaCache+fbCache", 0.4, 1.0)
    assert (plan.start, plan.end, plan.max_consecutive) == (0, 20, 3)


def test_the_extension_field_asks_for_a_forecast(client: TestClient, engine: FakeEngine) -> None:
    plan = plan_of(client, engine, hunyuan={"forecast": {"order": 2, "interval": 4}})
    assert plan.forecast == ForecastPlan(order=2, interval=4)
    assert (plan.name, plan.max_consecutive) == ("forecast", 3)
    alone = plan_of(client, engine, hunyuan={"forecast": {}})
    assert (alone.name, alone.tea_distance) == ("teaCache+forecast", 0.8)
    hermite = plan_of(client, engine, hunyuan={"forecast": {"contraction": 0.6}})
    assert hermite.forecast == ForecastPlan(order=1, contraction=0.6)
    options = {"fbCache": True, "fbCacheThreshold": 0.25}
    with_fb = plan_of(client, engine, hunyuan={"forecast": {}}, acceleratorOptions=options)
    assert (with_fb.name, with_fb.fb_threshold_scale) == ("fbCache+forecast", 1.0)
    error = refusal(client, hunyuan={"forecast": {"order": 3}})
    assert (error["code"], error["max"]) == ("invalidOrder", 2)


@pytest.mark.parametrize(
    ("meaning", "threshold", "fb_threshold_scale"),
    [
        ("documented", 0.25, 1.0),
        ("documented", 0.0, 4 / 3),
        ("documented", 1.0, 0.0),
        ("original", 0.25, 1.0),
        ("original", 0.0, 0.0),
        ("original", 0.5, 2.0),
    ],
)
def test_the_fb_cache_threshold_means_what_the_setting_says(
    settings: Settings,
    engine: FakeEngine,
    meaning: str,
    threshold: float,
    fb_threshold_scale: float,
) -> None:
    cache = CacheSettings.model_validate({"fb_cache_threshold_meaning": meaning})
    app: Any = create_app(settings.model_copy(update={"cache": cache}), engine)
    with TestClient(app) as client:
        options = {"fbCache": True, "fbCacheThreshold": threshold}
        plan = plan_of(client, engine, acceleratorOptions=options)
    assert plan.fb_threshold_scale == pytest.approx(fb_threshold_scale)


@pytest.mark.parametrize(
    ("steps", "options", "window"),
    [
        (20, {}, (0, 20)),
        (20, {"cacheStartStep": 3, "cacheEndStep": 17}, (3, 17)),
        (30, {"cacheStartStepPercentage": 25, "cacheEndStepPercentage": 81}, (7, 25)),
        (10, {"cacheStopStep": 9}, (0, 9)),
    ],
)
def test_the_window_is_resolved_in_steps(
    client: TestClient,
    engine: FakeEngine,
    steps: int,
    options: dict[str, int],
    window: tuple[int, int],
) -> None:
    plan = plan_of(client, engine, steps=steps, acceleratorOptions={"teaCache": True, **options})
    assert (plan.start, plan.end) == window


@pytest.mark.parametrize(
    ("options", "code", "parameter"),
    [
        ({"teaCacheDistance": 1.01}, "invalidTeaCacheDistance", "teaCacheDistance"),
        ({"teaCacheDistance": 0.333}, "invalidTeaCacheDistance", "teaCacheDistance"),
        ({"fbCacheThreshold": -0.01}, "invalidFbCacheThreshold", "fbCacheThreshold"),
        ({"cacheDistance": 2}, "invalidFbCacheThreshold", "fbCacheThreshold"),
        ({"teaCache": "yes"}, "invalidTeaCache", "teaCache"),
        ({"cacheMaxConsecutiveSteps": 0}, "invalidCacheMaxConsecutiveSteps", None),
        ({"cacheMaxConsecutiveSteps": 6}, "invalidCacheMaxConsecutiveSteps", None),
        ({"cacheStartStep": 20}, "invalidCacheStartStep", "cacheStartStep"),
        ({"cacheEndStep": 21}, "invalidCacheEndStep", "cacheEndStep"),
        ({"cacheEndStep": 0}, "invalidCacheEndStep", "cacheEndStep"),
        ({"cacheStartStep": 9, "cacheEndStep": 9}, "invalidCacheEndStep", "cacheEndStep"),
        (
            {"cacheStartStepPercentage": 50, "cacheEndStepPercentage": 50},
            "invalidCacheEndStepPercentage",
            "cacheEndStepPercentage",
        ),
        ({"cacheStartStepPercentage": 100}, "invalidCacheStartStepPercentage", None),
        ({"deepCache": True}, "unsupportedParameter", "deepCache"),
        ({"teaCash": True}, "unsupportedParameter", "teaCash"),
    ],
)
def test_accelerator_options_out_of_bounds_are_refused(
    client: TestClient, options: dict[str, Any], code: str, parameter: str | None
) -> None:
    error = refusal(client, acceleratorOptions=options)
    assert error["code"] == code
    if parameter is not None:
        assert error["parameter"] == f"acceleratorOptions.{parameter}"
    assert error["taskType"] == "imageInference"


@pytest.mark.parametrize("end", ["Start", "End"])
def test_a_boundary_given_twice_is_refused(client: TestClient, end: str) -> None:
    options = {f"cache{end}Step": 5, f"cache{end}StepPercentage": 50}
    error = refusal(client, acceleratorOptions=options)
    assert error["code"] == "incompatibleParameters"
    assert error["parameter"] == [f"acceleratorOptions.{name}" for name in options]


def test_a_threshold_without_its_flag_is_ignored_with_a_warning(client: TestClient) -> None:
    task = make_task(acceleratorOptions={"teaCacheDistance": 0.3, "fbCacheThreshold": 0.1})
    (item,) = client.post("/v1?diagnostics=1", json=[task]).json()["data"]
    assert len(item["diagnostics"]["warnings"]) == 2
    assert "'teaCache': true" in item["diagnostics"]["warnings"][0]


def test_diagnostics_come_only_when_asked_for(client: TestClient) -> None:
    def item_of(url: str = "/v1", **headers: str) -> dict[str, Any]:
        (item,) = client.post(url, json=[make_task()], headers=headers).json()["data"]
        return dict(item)

    assert "diagnostics" not in item_of()
    assert "diagnostics" not in item_of(**{"X-Diagnostics": "0"})
    assert item_of(**{"X-Diagnostics": "1"})["diagnostics"]["cache"] == "none"
    assert item_of("/v1/?diagnostics=1")["diagnostics"]["cache"] == "none"


def test_diagnostics_can_be_polled_and_come_over_a_socket(client: TestClient) -> None:
    task = make_task(acceleration="low", deliveryMethod="async")
    client.post("/v1", json=[task])
    poll = {"taskType": "getResponse", "taskUUID": task["taskUUID"]}

    def polled() -> dict[str, Any]:
        (item,) = client.post("/v1?diagnostics=1", json=[poll]).json()["data"]
        return dict(item)

    wait_until(lambda: polled()["status"] == "success")
    assert polled()["diagnostics"]["cache"] == "teaCache+forecast"
    with client.websocket_connect("/v1?diagnostics=1") as socket:
        socket.send_json([{"taskType": "authentication", "apiKey": "any"}])
        socket.receive_json()
        socket.send_json([make_task(acceleration="high")])
        assert socket.receive_json()["data"][0]["diagnostics"]["cache"] == "teaCache+forecast"
