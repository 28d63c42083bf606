"""Settings of a Ray cluster: the section `[cluster]`."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ClusterSettings(BaseModel):
    """How many replicas `hyimage serve --cluster` requests of Ray Serve; see docs/cluster.md."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ingresses: int = Field(2, ge=1, description="Replicas that speak the API")
    engines: int = Field(1, ge=0, description="Replicas that generate; with max_engines the least")
    max_engines: int = Field(0, ge=0, description="More engines up to this many as tasks wait")
    tasks_per_engine: float = Field(
        4.0, gt=0, description="Tasks, generated or waiting, that each engine should have"
    )
    cpus_per_engine: float = Field(
        4.0, ge=0, description="CPUs that Ray reserves for each engine; no limit on their use"
    )
    cpus_per_ingress: float = Field(1.0, ge=0, description="The same for each ingress")
    engine_resources: dict[str, float] = Field(
        default_factory=dict, description="Other resources of Ray that an engine needs"
    )
    drain_s: float = Field(
        300.0, ge=0, description="How long an engine that is replaced may finish its tasks"
    )

    @model_validator(mode="after")
    def _some_engine(self) -> Self:
        if self.max_engines < max(1, self.engines) and (self.max_engines or not self.engines):
            raise ValueError(
                f"max_engines is {self.max_engines} and engines is {self.engines}: let max_engines "
                "be 0 for a fixed number of engines, or at least as large as both engines and 1"
            )
        return self
