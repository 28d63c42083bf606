"""The counted step of the real model: operations against arithmetic, and what cards change."""

import json
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from model.config import ModelConfig
from model.config_file import parse_config
from model.errors import ConfigError
from model.fused import add_rms_norm
from model.planning.cards import CARDS, card_of_memory
from model.planning.devices import parse_devices
from model.planning.meta_step import MeshShape, Workload, build_meta_mesh, silent_all_reduce
from model.planning.step_cost import count_cost
from model.planning.step_count import KINDS, OTHER, CountedStep, count_mode, sum_by_kind
from model.quantization.scheme import SCHEMES
from tests.conftest import GOLDEN

H100 = CARDS["H100"]
WORKLOAD = Workload(prompt_tokens=256, grid=(64, 64))
SINGLE, TENSOR4 = MeshShape(), MeshShape(tensor=4)
LAYERS, TOKENS, HIDDEN = 32, 2 * 4097, 4096


@cache
def real_config() -> ModelConfig:
    fields = json.loads((GOLDEN / "real_config_distil.json").read_text())
    distilled = ("cfg_distilled", "use_meanflow")
    return parse_config({k: v for k, v in fields.items() if k not in distilled})


@cache
def count(
    card: str, shape: MeshShape = SINGLE, scheme: str = "none", is_compiled: bool = True
) -> CountedStep:
    mesh = build_meta_mesh(shape)
    return count_mode(real_config(), mesh, WORKLOAD, CARDS[card], SCHEMES.get(scheme), is_compiled)


def test_an_operation_takes_the_longest_of_its_multiplications_bytes_and_launch() -> None:
    with count_cost(H100) as cost, torch.no_grad():
        large = torch.empty(8192, 8192, dtype=torch.bfloat16, device="meta")
        large @ large
        large + large
        large[0, 0] + large[0, 0]
        large[:100]
    product, addition, launch = cost.kernels
    assert product.seconds == pytest.approx(2 * 8192**3 / H100.matmul)
    assert addition.seconds == pytest.approx(3 * 2 * 8192**2 / H100.bandwidth)
    assert launch.seconds == pytest.approx(2.5e-6)
    assert cost.flops == 2 * 8192**3


def test_a_fused_function_and_attention_are_one_kernel_each() -> None:
    x = torch.empty(1, 16, 128, dtype=torch.bfloat16, device="meta")
    q = torch.empty(1, 4, 16, 128, dtype=torch.bfloat16, device="meta")
    with count_cost(H100) as cost, torch.no_grad():
        add_rms_norm(x, x, torch.empty(128, device="meta"), 1e-5)
        F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True)
    assert [kernel.name for kernel in cost.kernels] == ["add_rms_norm", "attention"]


def test_without_a_compiler_every_operation_of_a_fused_function_is_a_kernel_of_its_name() -> None:
    x = torch.empty(1, 16, 128, dtype=torch.bfloat16, device="meta")
    with count_cost(H100, is_compiled=False) as cost, torch.no_grad():
        add_rms_norm(x, x, torch.empty(128, device="meta"), 1e-5)
    # A sum, a cast, a norm, a cast, the weight's cast, a product.
    assert [kernel.name for kernel in cost.kernels] == ["add_rms_norm"] * 6
    assert cost.bytes_moved > 2 * 4 * x.nbytes


def test_without_a_compiler_a_step_is_slower_and_its_products_are_the_same() -> None:
    for scheme in ("none", "fp8", "int4"):
        fused, eager = (count("H100", SINGLE, scheme, c).whole for c in (True, False))
        assert eager.num_kernels > 1.5 * fused.num_kernels
        assert eager.seconds > 1.1 * fused.seconds
        assert eager.flops == fused.flops
        assert set(sum_by_kind(eager.kernels)) == set(sum_by_kind(fused.kernels))


def test_an_all_reduce_passes_each_byte_twice_over_a_ring() -> None:
    x = torch.empty(10**6, dtype=torch.bfloat16, device="meta")
    with count_cost(H100) as cost:
        silent_all_reduce(x, 4)
    seconds = H100.link_latency_s + 2 * 2e6 * 3 / 4 / H100.link
    assert [kernel.seconds for kernel in cost.kernels] == [pytest.approx(seconds)]


def test_every_layer_of_tensor_ranks_sums_twice_what_a_hidden_state_takes() -> None:
    sums = [k for k in count("H100", TENSOR4).whole.kernels if k.name == "all_reduce"]
    assert len(sums) == 2 * LAYERS
    assert {kernel.bytes_moved for kernel in sums} == {TOKENS * HIDDEN * 2}
    assert count("H100").whole.bytes_exchanged == 0


def test_tensor_ranks_share_the_products_but_not_the_sums_of_experts() -> None:
    whole = sum_by_kind(count("H100").whole.kernels)
    part = sum_by_kind(count("H100", TENSOR4).whole.kernels)
    assert part["expert products"].flops * 4 == whole["expert products"].flops
    assert part["sum of experts"] == whole["sum of experts"]


def test_ranks_with_whole_experts_multiply_as_much_and_move_more() -> None:
    sliced = sum_by_kind(count("H100", TENSOR4).whole.kernels)
    whole = sum_by_kind(count("H100", MeshShape(tensor=4, expert_parallel=True)).whole.kernels)
    assert whole["expert products"].flops == sliced["expert products"].flops
    assert whole["expert products"].bytes_moved > sliced["expert products"].bytes_moved


def test_every_composite_operation_is_taken_apart_into_kernels() -> None:
    for scheme in ("none", *SCHEMES):
        names = {kernel.name for kernel in count("H100", scheme=scheme).whole.kernels}
        assert not names & {"linear", "softmax", "conv2d", "group_norm", "embedding_bag", "matmul"}


def test_kinds_hold_every_kernel_once() -> None:
    cost = count("H100", scheme="int8").whole
    kinds = sum_by_kind(cost.kernels)
    assert set(kinds) == set(KINDS) - {"all-reduce, all-gather"}
    assert sum(kind.seconds for kind in kinds.values()) == pytest.approx(cost.seconds)
    assert sum(kind.num_kernels for kind in kinds.values()) == cost.num_kernels
    assert kinds[OTHER].flops == 0


def test_float8_weights_are_multiplied_as_they_are_where_a_card_can() -> None:
    names = {
        card: {kernel.name for kernel in count(card, scheme="fp8").whole.kernels}
        for card in ("H100", "RTX 4090", "A100")
    }
    assert "dequantize" not in names["H100"]
    assert {"_scaled_mm", "dequantize", "_grouped_mm"} <= names["RTX 4090"]
    assert "_scaled_mm" not in names["A100"]


def test_a_card_without_grouped_products_multiplies_in_triton_or_expert_by_expert() -> None:
    assert count("A100").whole.num_kernels == count("H100").whole.num_kernels
    eager = [count(card, is_compiled=False).whole.num_kernels for card in ("A100", "H100")]
    assert eager[0] - eager[1] == LAYERS * 2 * 63


@pytest.mark.parametrize("scheme", ["none", "fp8", "int8", "int4"])
@pytest.mark.parametrize("card", CARDS)
def test_no_kernel_passes_the_roofline(card: str, scheme: str) -> None:
    counted = count(card, scheme=scheme)
    assert 0 < counted.roofline_s(CARDS[card]) < counted.whole.seconds


@pytest.mark.parametrize(
    ("memory_gb", "name"),
    [(24, "RTX 4090"), (40, "A100"), (80, "H100"), (96, "RTX PRO 6000"), (141, "H200"),
     (192, "B200")],
)  # fmt: skip
def test_the_memory_stands_for_a_card_and_a_name_overrides_it(memory_gb: int, name: str) -> None:
    assert card_of_memory(memory_gb * 1e9).name == name
    assert parse_devices(f"2x{memory_gb}GB").card.name == name
    assert parse_devices(f"2x{memory_gb}GB", "A100").card.name == "A100"


def test_a_card_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="H100"):
        parse_devices("1x80GB", "V100")
