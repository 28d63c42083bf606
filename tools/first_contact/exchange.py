"""Time of an all-reduce between ranks: NCCL on cards, gloo on a CPU as a rehearsal."""

import json
import tempfile
import time
from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from model.mesh import join_mesh, leave_mesh
from tools.first_contact.settings import AddRow, FirstContact

# A step's hidden states of one row, and of two, at real sizes; and a small sum for the latency.
REAL_BYTES = (2**14, 33_562_624, 67_125_248)
REHEARSED_BYTES = (2**14, 2**20)
REPEATS = 20


def check_exchange(contact: FirstContact, add: AddRow) -> None:
    """Add a row for each size and number of ranks; a note where there is one card alone."""
    if contact.is_rehearsal and contact.device.startswith("cuda"):
        add({"note": "a pretending CUDA has no NCCL"})
        return
    num_cards = 2 if contact.is_rehearsal else torch.cuda.device_count()
    if num_cards < 2:
        add({"note": "one card: nothing to exchange"})
        return
    sizes = REHEARSED_BYTES if contact.is_rehearsal else REAL_BYTES
    device = "cpu" if contact.is_rehearsal else "cuda"
    for num_ranks in sorted({2, num_cards}):
        with tempfile.TemporaryDirectory(prefix="hyimage-exchange-") as folder:
            rows = Path(folder) / "rows.json"
            rendezvous = Path(folder) / "rendezvous"
            spawn(run_rank, (num_ranks, rendezvous, device, sizes, rows), nprocs=num_ranks)
            for row in json.loads(rows.read_text()):
                add(row)


def run_rank(
    rank: int, num_ranks: int, rendezvous: Path, device: str, sizes: tuple[int, ...], rows: Path
) -> None:
    """Time all sums along with the other ranks; the first rank writes the rows."""
    mesh = join_mesh(rank, 1, num_ranks, rendezvous, device)
    measured = []
    for num_bytes in sizes:
        values = torch.ones(num_bytes // 2, dtype=torch.bfloat16, device=mesh.device)
        summed = mesh.tensor.all_reduce(values.clone())
        is_ok = bool((summed == num_ranks).all())
        started = time.perf_counter()
        for _ in range(REPEATS):
            mesh.tensor.all_reduce(values)
        _ = values[0].item()  # waits for the device
        seconds = (time.perf_counter() - started) / REPEATS
        bus = 2 * num_bytes * (num_ranks - 1) / num_ranks / seconds
        measured.append({"ranks": num_ranks, "bytes": num_bytes, "seconds": seconds,
                         "bus_gb_s": bus / 1e9, "is_ok": is_ok})  # fmt: skip
    if mesh.is_first:
        rows.write_text(json.dumps(measured))
    leave_mesh()
