"""Pipeline settings: the [worker] section of the deployment settings. Free of torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class PipelineSettings(BaseModel):
    """Which checkpoint is loaded, and how it is held and spread over devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    checkpoint: str = Field("checkpoints/tiny", description="Folder with config.json")
    device: str = "cpu"
    layer_devices: tuple[str, ...] = Field(
        (),
        description="Spread the layers over these devices of one process, such as cuda:0, cuda:1",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    vae_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "fp8", "int8", "int4"] = Field(
        "none", description="Quantize the layers' weights at load; a quantized folder needs none"
    )
    device_memory_gb: float = Field(
        0,
        ge=0,
        description="Device memory to keep to, by offloading experts; 0: no limit",
    )
    offload: Literal["cpu", "disk"] = Field(
        "cpu", description="Where experts are held that device_memory_gb leaves no room for"
    )
    compile_experts: bool = Field(
        False, description="torch.compile around the experts; CUDA, minutes at the first images"
    )
    num_threads: int = Field(0, ge=0, description="CPU threads; 0: as torch decides")
    max_active_jobs: int = Field(2, ge=1, description="Jobs whose steps are interleaved")
    batch_size: int = Field(1, ge=1, description="Images of a job that are generated together")
    cfg_parallel_size: int = Field(
        1,
        ge=1,
        le=2,
        description="CFG parallel: processes that split the conditional and unconditional row",
    )
    tensor_parallel_size: int = Field(
        1, ge=1, description="Tensor parallel: processes that split each layer by key/value heads"
    )
    expert_parallel: bool = Field(
        False,
        description="Expert parallel: tensor ranks hold some experts whole, not slices of all",
    )
    max_rewrite_tokens: int = Field(2048, ge=16, le=12800, description="Longest rewritten prompt")
    system_prompt: str = Field(
        "auto", description="auto: the checkpoint's own; none; or the text itself"
    )

    @model_validator(mode="after")
    def _one_way_at_a_time(self) -> Self:
        """Refuse combinations of settings that exclude each other."""
        if self.layer_devices and (self.num_ranks > 1 or self.device_memory_gb):
            raise ValueError(
                "layer_devices excludes cfg_parallel_size, tensor_parallel_size and "
                "device_memory_gb: choose one way"
            )
        if self.layer_devices and self.device not in ("cpu", self.layer_devices[0]):
            raise ValueError("device, if it is set beside layer_devices, must be the first of them")
        if self.compile_experts and (self.device == "cpu" or self.device_memory_gb):
            raise ValueError(
                "compile_experts needs a CUDA device that holds all experts: set device, and "
                "leave device_memory_gb at 0"
            )
        return self

    @property
    def num_ranks(self) -> int:
        """Return how many processes generate an image together."""
        return self.cfg_parallel_size * self.tensor_parallel_size
