"""The first step over the whole sequence, as the reference runs it, with a look inside the layers.

The server never runs this: it computes the prompt once and then only the step's tokens. Both go
through the same modules, and the recorded velocities check that they agree.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.attention import AttentionGroup, LayerKV
from model.image_input import EmbeddedImage
from model.rope import build_rotary_table
from model.sequence import ImageSequence, grid_positions, sequence_spans
from model.transformer import HunyuanImage


@torch.inference_mode()
def trace_full_sequence(
    transformer: HunyuanImage,
    rows: Sequence[ImageSequence],
    step_BSD: Tensor,
    images: Sequence[EmbeddedImage] = (),
) -> dict[str, Tensor]:
    """Return what the recordings name, for rows of equal length.

    `step_BSD` holds the [<timestep>, image] embeddings of step 0. `layer*` values are those of the
    first row, the others of all rows. `images` are the input images of every row.
    """
    traced: dict[str, Tensor] = {}
    x_BSD = torch.cat([_embed(transformer, row, step_BSD[i], images) for i, row in enumerate(rows)])
    traced["inputs_embeds_step0"] = x_BSD
    new_kv: list[list[LayerKV]] = [[] for _ in rows]
    config = transformer.config
    groups = [
        AttentionGroup(
            rows=slice(i, i + 1),
            rope=build_rotary_table(
                grid_positions(row, len(row.ids)), config.head_dim, config.rope_theta
            ).to(transformer.device),
            spans=sequence_spans(row),
        )
        for i, row in enumerate(rows)
    ]
    handles = [
        module.register_forward_hook(hook)
        for index, layer in enumerate(transformer.model.layers)
        for module, hook in _hooks(traced, f"layer{index}", layer, len(rows[0].ids))
    ]
    try:
        traced["backbone_out_step0"] = transformer.run_layers(x_BSD, groups, new_kv=new_kv)
    finally:
        for handle in handles:
            handle.remove()
    # On a mesh each rank has seen its own heads, and its share of the sum over the width.
    group = transformer.mesh.tensor
    for index, layer in enumerate(new_kv[0]):
        traced[f"layer{index}.kcache"] = group.all_gather(layer.k_BGSH, dim=1)
        traced[f"layer{index}.vcache"] = group.all_gather(layer.v_BGSH, dim=1)
        if (shared := f"layer{index}.shared_out") in traced:
            traced[shared] = group.all_reduce(traced[shared].clone())
    return traced


def _embed(
    transformer: HunyuanImage,
    row: ImageSequence,
    step_SD: Tensor,
    images: Sequence[EmbeddedImage],
) -> Tensor:
    x_1SD = transformer.embed_ids(row.ids)
    for image in images:
        image.place(x_1SD, 0)
    x_1SD[0, row.prefix_length : row.image_stop] = step_SD
    return x_1SD


def _hooks(
    traced: dict[str, Tensor], name: str, layer: nn.Module, length: int
) -> list[tuple[nn.Module, Callable[..., None]]]:
    """Return the modules to watch and what to note about the first row's tokens."""

    def note(key: str, select: Callable[[Any, Any], Tensor]) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, output: Any) -> None:
            traced[f"{name}.{key}"] = select(inputs, output)

        return hook

    mlp: Any = layer.mlp
    watched: list[tuple[Any, Callable[..., None]]] = [
        (layer, note("in", lambda i, _: i[0][:1])),
        (layer, note("out", lambda _, o: o[:1])),
        (layer.self_attn, note("attn_out", lambda _, o: o[:1])),
        (layer.post_attention_layernorm, note("moe_in", lambda _, o: o[1][:1])),
        (mlp, note("moe_out", lambda _, o: o[:1])),
        (mlp.gate.wg, note("router_logits", lambda _, o: o[:length])),
        (mlp.gate, note("topk_weight", lambda _, o: o[0][:length])),
        (mlp.gate, note("topk_index", lambda _, o: o[1][:length])),
    ]
    if mlp.shared_mlp is not None:
        watched.append((mlp.shared_mlp, note("shared_out", lambda _, o: o[:length].unsqueeze(0))))
    return watched
