"""An official client (PyPI runware-sdk) against a real server, by nothing but its base URL."""

import asyncio
import uuid
from typing import Any

import pytest
from runware import RunOptions, Runware, RunwareError

pytestmark = pytest.mark.slow

TASK = {
    "taskType": "imageInference",
    "model": "runware:180@1",
    "positivePrompt": "a red lighthouse on a cliff at dawn",
    "width": 256,
    "height": 256,
    "steps": 1,
}


async def use(url: str, transport: str) -> None:
    client = Runware(
        api_key="any-key",
        transport=transport,
        http_base_url=f"{url}/v1",
        ws_base_url=f"{url.replace('http', 'ws')}/v1",
        max_retries=1,
    )
    await client.connect()
    for delivery in ("sync", "async"):
        heard: list[Any] = []
        task_uuid = str(uuid.uuid4())
        results = await client.run(
            {
                **TASK,
                "taskUUID": task_uuid,
                "deliveryMethod": delivery,
                "numberResults": 2,
                "seed": 42,
                "includeCost": True,
                "safety": {"checkContent": True},
            },
            RunOptions(on_result=heard.append),
        )
        assert sorted(item["seed"] for item in results) == [42, 43]
        assert {item["taskUUID"] for item in results} == {task_uuid}
        assert all("cost" in item and item["NSFWContent"] is False for item in results)
        assert len(heard) == 2
        again: list[Any] = await client.get_response({"taskUUID": task_uuid})
        assert {item["imageUUID"] for item in again} == {item["imageUUID"] for item in results}
    for faulty, code in (({"steps": 1000}, "validation"), ({"width": 100}, "validation")):
        with pytest.raises(RunwareError) as caught:
            await client.run({**TASK, **faulty})
        assert caught.value.code == code
    with pytest.raises(RunwareError) as caught:
        await client.get_response({"taskUUID": str(uuid.uuid4())})
    assert caught.value.code == "notFound"
    await client.close()


@pytest.mark.parametrize("transport", ["rest", "websocket"])
def test_the_official_client_works_unchanged(shared_server: Any, transport: str) -> None:
    asyncio.run(asyncio.wait_for(use(shared_server.url, transport), 120))
