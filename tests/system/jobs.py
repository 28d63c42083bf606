"""Variants of a job."""

from dataclasses import replace
from typing import Any

from server.engine.messages import Job


def variant(job: Job, job_id: str | None = None, **changes: Any) -> Job:
    """Return a job with another id, or another field of its request."""
    return replace(job, job_id=job_id or job.job_id, request=replace(job.request, **changes))
