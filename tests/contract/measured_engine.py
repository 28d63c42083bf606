"""An engine that reports seconds of every stage, known beforehand."""

from collections.abc import AsyncIterator
from dataclasses import replace

from server.engine.messages import (
    Job,
    JobDone,
    JobEvent,
    JobImage,
    JobPrefilled,
    JobStarted,
    JobStep,
    JobText,
)
from tests.contract.conftest import FakeEngine, make_diagnostics


class MeasuredEngine(FakeEngine):
    """Reports seconds of each stage; the second step of every image is reused."""

    async def submit(self, job: Job) -> AsyncIterator[JobEvent]:
        yield JobStarted(job_id=job.job_id)
        for image, seed in enumerate(job.request.seeds):
            yield JobText(job_id=job.job_id, image=image, text="<think>", seconds=1.0)
            yield JobText(job_id=job.job_id, image=image, text="<think>a", seconds=2.0)
            yield JobPrefilled(job_id=job.job_id, image=image, seconds=0.25)
            for step in range(1, job.request.num_steps + 1):
                yield JobStep(
                    job_id=job.job_id,
                    image=image,
                    step=step,
                    num_steps=job.request.num_steps,
                    is_reused=step == 2,
                    seconds=0.5,
                )
            yield JobImage(
                job_id=job.job_id,
                image=image,
                encoded=b"image %d" % seed,
                width_px=1000,
                height_px=500,
                diagnostics=replace(
                    make_diagnostics(job.request), num_evaluations=2, num_reused_evaluations=1
                ),
                seconds=0.125,
                encode_seconds=0.0625,
            )
        yield JobDone(job_id=job.job_id)
