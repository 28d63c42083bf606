import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.config import MoeConfig
from model.fused import swiglu
from model.mesh import RankGroup
from model.moe import Experts, MoE, sort_by_expert

WIDTH = 16


def build(num_experts: int, top_k: int, num_shared: int = 1, normalize: bool = True) -> MoE:
    torch.manual_seed(num_experts * 10 + top_k)
    config = MoeConfig(
        num_experts=num_experts,
        experts_per_token=top_k,
        expert_width=8,
        num_shared_experts=num_shared,
        normalize_weights=normalize,
    )
    moe = MoE(WIDTH, config, RankGroup())
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return moe.requires_grad_(requires_grad=False)


def one_token_at_a_time(moe: MoE, x_TD: Tensor) -> Tensor:
    """The definition, without sorting or grouping."""
    weights, experts = moe.gate(x_TD)
    out = []
    for x, weight, expert in zip(x_TD, weights, experts, strict=True):
        y = torch.zeros_like(x) if moe.shared_mlp is None else moe.shared_mlp(x)
        for w, e in zip(weight, expert, strict=True):
            hidden = swiglu(moe.experts.gate_and_up_proj[e] @ x)
            y = y + w * (moe.experts.down_proj[e] @ hidden)
        out.append(y)
    return torch.stack(out)


@settings(deadline=None, max_examples=30)
@given(
    num_tokens=st.integers(1, 20),
    num_experts=st.integers(2, 6),
    top_k=st.integers(1, 2),
    num_shared=st.integers(0, 2),
    normalize=st.booleans(),
)
def test_sorting_tokens_by_expert_changes_nothing(
    num_tokens: int, num_experts: int, top_k: int, num_shared: int, normalize: bool
) -> None:
    moe = build(num_experts, top_k, num_shared, normalize)
    x = torch.randn(1, num_tokens, WIDTH, generator=torch.Generator().manual_seed(num_tokens))
    torch.testing.assert_close(moe(x)[0], one_token_at_a_time(moe, x[0]), atol=1e-5, rtol=1e-5)


def test_the_grouped_products_of_a_gpu_equal_the_loop_of_a_cpu() -> None:
    moe = build(5, 2)
    x = torch.randn(23, WIDTH)
    weights, experts = moe.gate(x)
    grouped = moe.experts._run_grouped(x, sort_by_expert(weights, experts, 0, 5, 5))
    torch.testing.assert_close(grouped, moe.experts(x, weights, experts), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_grouped", [False, True])
def test_the_outputs_of_ranks_with_whole_experts_add_up(is_grouped: bool) -> None:
    moe = build(6, 2)
    config = MoeConfig(
        num_experts=6, experts_per_token=2, expert_width=8, num_shared_experts=1,
        normalize_weights=True,
    )  # fmt: skip
    x = torch.randn(23, WIDTH)
    weights, experts = moe.gate(x)
    total = torch.zeros_like(x)
    for rank in range(3):
        part = Experts(WIDTH, config, RankGroup(rank, 3, expert_parallel=True))
        local = slice(2 * rank, 2 * rank + 2)
        part.load_state_dict({k: v[local] for k, v in moe.experts.state_dict().items()})
        if is_grouped:
            routing = sort_by_expert(weights, experts, part.first, 6, 2)
            total += part._run_grouped(x, routing).detach()
        else:
            total += part(x, weights, experts).detach()
    torch.testing.assert_close(total, moe.experts(x, weights, experts), atol=1e-5, rtol=1e-5)


def test_a_tokens_output_never_depends_on_its_neighbours() -> None:
    moe = build(6, 2)
    x = torch.randn(1, 30, WIDTH)
    torch.testing.assert_close(moe(x)[:, 7:9], moe(x[:, 7:9]), atol=1e-5, rtol=1e-5)


def test_experts_without_tokens_are_not_read() -> None:
    moe = build(4, 1, num_shared=0)
    x = torch.randn(1, 1, WIDTH)
    expected = moe(x)
    used = moe.gate(x[0])[1].item()
    for expert in range(4):
        if expert != used:
            moe.experts.down_proj[expert] = torch.nan
    assert torch.equal(moe(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_router_scores_in_float32_at_any_dtype(dtype: torch.dtype) -> None:
    moe = build(4, 2)
    wide = moe.gate(torch.ones(3, WIDTH))[0]
    assert moe.gate(torch.ones(3, WIDTH, dtype=dtype))[0].dtype == torch.float32
    assert torch.equal(moe.gate(torch.ones(3, WIDTH, dtype=dtype))[0], wide)
