"""An engine of a cluster, in this process: when it stops generating, and what Ray Serve sees."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="needs the extra `ray`")

from ray.exceptions import ActorDiedError, ActorUnavailableError

from pipeline.settings import PipelineSettings
from server.cluster.deployments import EngineReplica, build, build_application, engine_resources
from server.cluster_settings import ClusterSettings
from server.engine.messages import (
    Job,
    JobCancelled,
    JobDone,
    JobEvent,
    JobImage,
    JobPrefilled,
    JobStep,
)
from server.settings import Settings, SettingsError
from tests.system.jobs import variant

pytestmark = pytest.mark.slow


class Asker:
    """Stands for an ingress, alive until it is ended."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.num_asked = 0
        self.__ray_ready__ = self

    def remote(self) -> Awaitable[None]:
        async def answer() -> None:
            self.num_asked += 1
            if self.error is not None:
                raise self.error

        return answer()


class Replica(EngineReplica):
    """One that is closed by hand."""

    def __del__(self) -> None: ...  # type: ignore[override]


async def use(settings: PipelineSettings, scenario: Callable[[Replica], Awaitable[None]]) -> None:
    replica: Any = Replica.__new__(Replica)
    try:
        await replica.__init__(settings, watch_every_s=0.1)  # as Ray does
        await asyncio.wait_for(scenario(replica), 60)
    finally:
        await replica.close()


async def nothing(_: Replica) -> None: ...


async def last_of(events: AsyncIterator[JobEvent]) -> JobEvent:
    return [event async for event in events][-1]


def test_a_job_is_generated_on_while_its_ingress_may_live_and_ends_when_it_is_dead(
    tiny_checkpoint: Path, job: Job
) -> None:
    async def scenario(replica: Replica) -> None:
        asker, endless = Asker(), variant(job, num_steps=100, seeds=tuple(range(20)))
        events = replica.submit(endless, asker)
        while not isinstance(await anext(events), JobStep):
            pass
        asker.error = ActorUnavailableError("the network", b"x" * 16)
        while asker.num_asked < 3:
            event = await anext(events)
            assert isinstance(event, JobPrefilled | JobStep | JobImage)
            assert event.job_id == "job"
        asker.error = ActorDiedError()
        assert isinstance(await last_of(events), JobCancelled)
        assert isinstance(await last_of(replica.submit(job, Asker())), JobDone)

    asyncio.run(use(PipelineSettings(checkpoint=str(tiny_checkpoint), num_threads=1), scenario))


def test_a_job_that_comes_again_ends_its_former_run_only(tiny_checkpoint: Path, job: Job) -> None:
    async def scenario(replica: Replica) -> None:
        former = replica.submit(variant(job, num_steps=100, seeds=tuple(range(20))), Asker())
        await anext(former)
        again, end = await asyncio.gather(last_of(replica.submit(job, Asker())), last_of(former))
        assert isinstance(again, JobDone)
        assert isinstance(end, JobCancelled)

    asyncio.run(use(PipelineSettings(checkpoint=str(tiny_checkpoint), num_threads=1), scenario))


def test_an_engine_that_cannot_load_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"config\.json"):
        asyncio.run(use(PipelineSettings(checkpoint=str(tmp_path)), nothing))


def test_an_engine_takes_a_gpu_for_each_rank_or_device_and_what_the_settings_say() -> None:
    def resources(worker: dict[str, Any], **cluster: Any) -> dict[str, float]:
        return engine_resources(Settings(worker=worker, cluster=cluster))

    assert resources({}) == {"CPU": 4}
    assert resources({"device": "cuda", "cfg_parallel_size": 2, "tensor_parallel_size": 2}) == {
        "CPU": 4,
        "GPU": 4,
    }
    spread = {"device": "cuda:0", "layer_devices": ["cuda:0", "cuda:1"]}
    wanted = {"cpus_per_engine": 0, "engine_resources": {"fast": 1}}
    assert resources(spread, **wanted) == {"GPU": 2, "fast": 1}


def test_all_servers_of_a_cluster_share_their_tasks() -> None:
    settings = Settings()
    assert not settings.tasks.is_shared
    assert settings.for_cluster().tasks.is_shared
    application = build_application(settings)
    (engines,) = application._bound_deployment.init_args
    assert engines._bound_deployment.init_args == (settings.worker,)


def test_a_cluster_without_keys_is_not_opened_to_everybody() -> None:
    with pytest.raises(SettingsError, match="API key"):
        build_application(Settings(server={"host": "0.0.0.0"}, keys={"file": "/nowhere"}))


@pytest.mark.parametrize(("engines", "max_engines"), [(2, 1), (0, 0)])
def test_numbers_of_engines_that_contradict_each_other_are_refused(
    engines: int, max_engines: int
) -> None:
    with pytest.raises(ValueError, match="max_engines"):
        ClusterSettings(engines=engines, max_engines=max_engines)
    assert ClusterSettings(engines=0, max_engines=1).max_engines == 1


def test_a_serve_file_with_an_unknown_argument_is_refused() -> None:
    with pytest.raises(SettingsError, match="confg"):
        build({"confg": "configs/cluster.toml"})
