"""How near two results of the layers are: bounds that a healthy device keeps, and only that.

Elementwise tolerances prove nothing here: one rounding flips a token's choice of experts, and then
all of its values are others. So float32 is compared where bfloat16 could flip a choice, and
bfloat16 with all experts chosen. `tests/device/test_gpu_suite.py` shows what passes and what fails.
"""

import torch
from torch import Tensor

from model.kv_cache import prefill
from model.transformer import HunyuanImage

IDS = list(range(60))

# The norm of a token's difference over its norm. Sums in another order are 1e-6 off, TF32 1e-3.
FLOAT32_ERROR = 5e-5
BFLOAT16_COSINE = 0.999
# float8 rounds the tokens too, to four bits: 0.985 when that is all that is wrong.
FLOAT8_COSINE = 0.97


def hidden(transformer: HunyuanImage) -> Tensor:
    """Return the hidden states of a text after the layers, on the CPU."""
    with torch.inference_mode():
        return prefill(transformer, IDS).hidden_1SD[0].float().cpu()


def largest_error(ours_SD: Tensor, theirs_SD: Tensor) -> float:
    """Return the largest difference of a token relative to its norm; a NaN stays one."""
    return float(((ours_SD - theirs_SD).norm(dim=-1) / theirs_SD.norm(dim=-1)).max())


def smallest_cosine(ours_SD: Tensor, theirs_SD: Tensor) -> float:
    """Return the smallest cosine between a token's two vectors; a NaN stays one."""
    return float(torch.nn.functional.cosine_similarity(ours_SD, theirs_SD, dim=-1).min())
