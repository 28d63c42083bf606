"""Pipeline settings: the [worker] section of the deployment settings. Free of torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

HeldDtype = Literal["float32", "bfloat16", "float16"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class PipelineSettings(BaseModel):
    """Which checkpoint is loaded, and how it is held and spread over devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    checkpoint: str = Field("checkpoints/tiny", description="Folder with config.json")
    device: str = Field(
        "cpu", description="cpu, cuda, or cuda:0; cuda in a mesh, where each rank has its own card"
    )
    layer_devices: tuple[str, ...] = Field(
        (),
        description="Spread the layers over these devices of one process, such as cuda:0, cuda:1",
    )
    dtype: Dtype = Field("auto", description="auto: bfloat16 on CUDA, float32 on a CPU")
    vae_dtype: Dtype = Field("auto", description="auto: bfloat16 on CUDA, float32 on a CPU")
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
    compile_kernels: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Fuse small operations with torch.compile; CUDA; auto: if a compiler is there",
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
    stall_timeout_s: float = Field(
        120.0,
        gt=0,
        description="A worker silent for longer, and for 10 times its longest step, is replaced",
    )
    image_inputs: bool = Field(
        False, description="Load what reads input images: the vision tower and the VAE's encoder"
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
        return self

    @model_validator(mode="after")
    def _devices_of_one_kind(self) -> Self:
        """Refuse devices that would compute garbage or share one card."""
        kinds = {device.partition(":")[0] for device in self.layer_devices}
        if len(kinds) > 1:
            raise ValueError(
                f"layer_devices mixes {' and '.join(sorted(kinds))}: a layer there would read what "
                "has not arrived yet. For less memory set device_memory_gb, which offloads experts"
            )
        if self.num_ranks > 1 and self.device not in ("cpu", "cuda"):
            raise ValueError(
                f"device is {self.device!r}, and all {self.num_ranks} processes would load there; "
                'write device = "cuda", and each takes the card of its rank; '
                "CUDA_VISIBLE_DEVICES chooses the cards"
            )
        if self.compile_kernels == "on" and not self.is_cuda:
            raise ValueError('compile_kernels = "on" needs a CUDA device; leave it at "auto"')
        return self

    @property
    def is_cuda(self) -> bool:
        """Whether the layers are held on CUDA devices."""
        return (self.layer_devices or (self.device,))[0].startswith("cuda")

    @property
    def weights_dtype(self) -> HeldDtype:
        """The dtype of the layers, `auto` resolved."""
        return self._resolve(self.dtype)

    @property
    def decoder_dtype(self) -> HeldDtype:
        """The dtype of the VAE, `auto` resolved."""
        return self._resolve(self.vae_dtype)

    def _resolve(self, dtype: Dtype) -> HeldDtype:
        if dtype != "auto":
            return dtype
        return "bfloat16" if self.is_cuda else "float32"

    @property
    def num_ranks(self) -> int:
        """Return how many processes generate an image together."""
        return self.cfg_parallel_size * self.tensor_parallel_size
