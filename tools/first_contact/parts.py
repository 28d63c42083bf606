"""The parts of a first contact: each adds its rows one by one, so that none is lost."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn

from model import fused, grouped
from model.config_file import load_config
from model.loading.build import build_skeleton
from model.loading.options import LoadOptions
from pipeline.device import missing_compiler
from tools.bench.random_model import build_random_model, count_model_bytes
from tools.bench.step import (
    StepBench,
    bind_step,
    build_bench_model,
    count_bench_cost,
    measure_step,
    timed,
)
from tools.first_contact.exchange import check_exchange
from tools.first_contact.kernels import check_kernels
from tools.first_contact.machine import GIB, check_machine
from tools.first_contact.profile import profile_kernels
from tools.first_contact.settings import AddRow, FirstContact, Part, Row, free_bytes
from tools.verify.checks import Check
from tools.verify.verify import Event, GroupDone, Request, verify_recording

WORKSPACE_BYTES = 8 * GIB  # of a full step beside its weights
REHEARSED_GROUPS = frozenset({"vae", "tall_nocfg"})


def verify(contact: FirstContact, add: AddRow) -> None:
    """Compare float32 results with the recordings: a row per group, and one per failed check."""

    def report(event: Event) -> None:
        if isinstance(event, GroupDone):
            add({"group": event.name, **_plain(asdict(event)), "is_ok": not event.num_failed})
        elif isinstance(event, Check) and not event.is_ok:
            add({"group": event.group, "check": event.name, "note": event.note, "is_ok": False,
                 "max_error": event.max_error, "tolerance": event.tolerance})  # fmt: skip

    is_short = contact.is_rehearsal or contact.is_quick
    request = Request(
        checkpoint=contact.recording / "model",
        recording=contact.recording,
        only=REHEARSED_GROUPS if is_short else frozenset(),
        device=contact.device,
    )
    verify_recording(request, report)


def kernels(contact: FirstContact, add: AddRow) -> None:
    """Check single kernels with a fixed routing."""
    prepare_precision()
    for check in check_kernels(torch.device(contact.device)):
        add(asdict(check))


def step_part(name: str, quantization: str = "none", is_fused: bool = True) -> Part:
    """Return the part that times steps of a few real layers, and profiles the deepest."""

    def run(contact: FirstContact, add: AddRow) -> None:
        enable_fused(contact, is_fused)
        for layers in contact.depths:
            bench = replace(contact.step, layers=layers, quantization=quantization)
            guarded(add, {"layers": layers}, partial(_time_step, contact, bench))
        for row in profile_kernels(bench):
            add(row)

    return Part(f"step_{name}", f"A step in {name.replace('_', ' ')}", 120, run)


def _time_step(contact: FirstContact, bench: StepBench) -> dict[str, object]:
    result = measure_step(build_bench_model(bench), bench)
    return {**_plain(asdict(result)), **_count_step(contact, bench)}


def _count_step(contact: FirstContact, bench: StepBench) -> dict[str, object]:
    """Return the counted cost; without one, what was measured is still worth its row."""
    card = contact.card()
    try:
        counted = count_bench_cost(bench, card)
    except Exception as e:  # noqa: BLE001 -- the measurement matters more
        return {"counted_s": None, "note": f"not counted: {type(e).__name__}: {e}"[:400]}
    return {
        "counted_s": counted.seconds,
        "counted_kernels": len(counted.kernels),
        "counted_for": card.name,
    }


def vae(contact: FirstContact, add: AddRow) -> None:
    """Time the decoder of the real architecture; a rehearsal takes the recorded checkpoint's."""
    prepare_precision()
    small = contact.recording / "model"
    config = load_config(small) if contact.is_rehearsal else contact.real_config()
    decoder = build_skeleton(config).vae
    decoder.encoder = None  # type: ignore[assignment]
    side = 2 if contact.is_rehearsal else config.image_base_size // config.pixels_per_token
    for dtype, memory_format in (
        (torch.float32, torch.contiguous_format),
        (torch.bfloat16, torch.contiguous_format),
        (torch.bfloat16, torch.channels_last_3d),
    ):
        layout = str(memory_format).removeprefix("torch.")
        label = {"dtype": str(dtype).removeprefix("torch."), "layout": layout}

        def decode(dtype: torch.dtype = dtype, form: torch.memory_format = memory_format) -> Timing:
            _fill(decoder, contact.device, dtype, form)
            shape = (1, config.vae.latent_channels, side, side)
            latent_BCYX = torch.randn(shape, device=contact.device)
            with torch.inference_mode():
                return _median(lambda: decoder.decode(latent_BCYX), contact, 2)

        guarded(add, {**label, "latent_side": side}, decode)


def full(contact: FirstContact, add: AddRow) -> None:
    """Time steps of the whole architecture, in the widest format that memory holds."""
    enable_fused(contact, True)
    config = contact.real_config()
    free = free_bytes(contact.device)
    for quantization in ("none", "fp8", "int8", "int4"):
        options = LoadOptions(device=contact.device, quantization=quantization)
        needed = count_model_bytes(config, options)
        fits = needed + WORKSPACE_BYTES <= free
        row: Row = {"format": "bfloat16" if quantization == "none" else quantization,
               "weights_gib": needed / GIB, "free_gib": free / GIB, "fits": fits}  # fmt: skip
        if contact.is_rehearsal or not fits:
            add({**row, "note": "a rehearsal makes none" if contact.is_rehearsal else "too large"})
            continue
        add({**row, "note": "weights are being made"})
        bench = replace(contact.step, layers=len(config.layers), quantization=quantization)
        with torch.inference_mode():
            step = bind_step(build_random_model(config, options), bench)
            guarded(add, row, partial(_median, step, contact, 5))
        return


Timing = dict[str, object]


def _median(run: Callable[[], object], contact: FirstContact, repeats: int) -> Timing:
    first = timed(run, contact.device)
    seconds = [timed(run, contact.device) for _ in range(repeats)]
    return {"first_s": first, "seconds": statistics.median(seconds)}


def guarded(
    add: AddRow, label: dict[str, object], measure: Callable[[], dict[str, object]]
) -> None:
    """Add a row with what was measured, or with the error that kept it from being measured."""
    started = time.perf_counter()
    try:
        measured = measure()
    except Exception as e:  # noqa: BLE001 -- such as too little memory: smaller rows remain
        measured = {"is_ok": False, "note": f"{type(e).__name__}: {e}"[:400]}
    add({**label, **measured, "row_s": time.perf_counter() - started})


def prepare_precision() -> None:
    """Keep float32 products in float32, as the product does."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def enable_fused(contact: FirstContact, is_wanted: bool) -> None:
    """Compile the fused kernels, where that is wanted and possible."""
    prepare_precision()
    is_possible = contact.device.startswith("cuda") and not missing_compiler()
    fused.enable_compilation(is_wanted and is_possible)
    grouped.use_torch()
    if is_wanted and is_possible:
        device = torch.device(contact.device)
        if not grouped.is_fast(torch.bfloat16, torch.cuda.get_device_capability(device)):
            grouped.enable_triton(device, torch.bfloat16)


def _fill(
    module: nn.Module, device: str, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    """Give every parameter random values on a device, convolutions in a memory format."""
    for child in module.modules():
        for name, parameter in list(child.named_parameters(recurse=False)):
            spread = max(1, parameter[0].numel()) ** -0.5
            values = (torch.randn(parameter.shape, device=device) * spread).to(dtype)
            if values.dim() == 5:
                values = values.to(memory_format=memory_format)
            setattr(child, name, nn.Parameter(values, requires_grad=False))


def _plain(fields: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in fields.items() if key != "name"}


PARTS = (
    Part("machine", "The machine", 60, check_machine),
    Part("verify", "Recordings, in float32", 180, verify),
    Part("kernels", "Kernels, with a fixed routing", 240, kernels),
    step_part("bfloat16"),
    step_part("bfloat16_not_fused", is_fused=False),
    step_part("fp8", "fp8"),
    step_part("int8", "int8"),
    step_part("int4", "int4"),
    Part("vae", "Decoding at full size", 120, vae),
    Part("full", "The whole architecture, random weights", 240, full, is_long=True),
    Part("exchange", "All-reduce between cards", 90, check_exchange),
)
