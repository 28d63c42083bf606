"""Which of torch's attention kernels run, and on which shapes."""

from dataclasses import replace
from pathlib import Path

from model.attention import FEW_QUERIES
from pipeline.generate import generate
from tests.device.pretend_functions import pretended_cuda
from tests.device.test_modes import REQUEST, REQUESTS, images_of, load


def test_a_growing_text_makes_no_new_plan_of_cudnn_for_each_token(
    instruct_checkpoint: Path,
) -> None:
    """cuDNN plans anew for each number of keys, which takes some 20 ms of the host's time."""
    with pretended_cuda() as cuda:
        pipeline = load(
            instruct_checkpoint, device="cuda:0", dtype="bfloat16", max_rewrite_tokens=24
        )
        cuda.record.clear()
        images_of(pipeline, replace(REQUESTS["guided"], rewrite="recaption"))
        calls = [call for call in cuda.record.attention if call.backend == "cudnn"]
        assert calls
        # What stands between the text and the image may be as short: one plan a task.
        assert len({(c.query, c.key) for c in calls if c.query[2] <= FEW_QUERIES}) <= 1
        assert min(call.query[2] for call in calls) > 1


def test_a_step_shares_keys_among_heads_without_a_copy(wide_checkpoint: Path) -> None:
    with pretended_cuda() as cuda:
        pipeline = load(wide_checkpoint, device="cuda:0", dtype="bfloat16")
        events = generate(pipeline, REQUEST)
        next(events)
        cuda.record.clear()
        next(events)  # a whole step, without the prompt's prefill
        kernels = [k.what for k in cuda.record.kernels if "attention.py" in k.where]
        assert [what for what in kernels if "attention" in what]
        assert [what for what in kernels if "clone" in what] == []
