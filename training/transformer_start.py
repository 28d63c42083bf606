"""Initial weights of the transformer, which pass the noise through.

At step 0 the predicted velocity is the noisy latent over its deviation, which is nearly right at
high noise. From ordinary weights the convolutional ends spend the first hours learning to do that.
The way: latent -> pairs (+z, -z) -> residual stream -> norm -> silu(z) - silu(-z) = z.
"""

import torch
from torch import Tensor, nn

from model.layers import TimestepEmbedding
from model.patch import TimedResBlock
from model.transformer import DecoderLayer, HunyuanImage


@torch.no_grad()
def start_transformer(transformer: HunyuanImage, seed: int = 0) -> None:
    """Set all weights but those of the autoencoder."""
    torch.manual_seed(seed)
    for name, parameter in transformer.named_parameters():
        if name.startswith("vae."):
            continue
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5)
    nn.init.normal_(transformer.model.wte.weight, std=0.05)
    for module in transformer.modules():
        if isinstance(module, DecoderLayer):
            _quieten(module)
        elif isinstance(module, TimestepEmbedding):
            for linear in (module.mlp[0], module.mlp[2]):
                nn.init.normal_(_weight(linear), std=0.02)
        elif isinstance(module, TimedResBlock):
            _weight(module.out_layers[3]).zero_()
            _weight(module.emb_layers[1]).mul_(0.5)
    _pass_noise_through(transformer)


def _quieten(layer: DecoderLayer) -> None:
    """Let the layers begin as small corrections of the residual stream."""
    width = layer.mlp.experts.down_proj.shape[-1]
    hidden = layer.mlp.experts.gate_and_up_proj.shape[-1]
    layer.self_attn.o_proj.weight.mul_(0.1)
    layer.mlp.experts.gate_and_up_proj.normal_(0.0, hidden**-0.5)
    layer.mlp.experts.down_proj.normal_(0.0, 0.1 * width**-0.5)
    if layer.mlp.shared_mlp is not None:
        layer.mlp.shared_mlp.down_proj.weight.mul_(0.1)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _pass_noise_through(transformer: HunyuanImage) -> None:
    convolution, embed_block = transformer.patch_embed.model
    final_block, head = transformer.final_layer.model
    assert isinstance(embed_block, TimedResBlock)
    assert isinstance(final_block, TimedResBlock)
    assert isinstance(head, nn.Sequential)
    first, last = _weight(convolution), _weight(head[2])
    enter, leave = _weight(embed_block.skip_connection), _weight(final_block.skip_connection)
    inner, channels = first.shape[:2]
    pairs_ZC = _signs(channels, inner)
    first.mul_(0.3)[:, :, 1, 1] += pairs_ZC
    enter.mul_(0.5)[:inner] = 0
    enter[:inner, :, 0, 0] = torch.eye(inner)
    leave.zero_()[:, :inner, 0, 0] = torch.eye(inner)
    last.zero_()[:, :, 1, 1] = pairs_ZC.T


def _signs(channels: int, width: int) -> Tensor:
    """Return the map of each channel to a pair (+, -)."""
    assert width == 2 * channels, "patch_embed_hidden_dim must be twice the latent channels"
    signs_ZC = torch.zeros(width, channels)
    index = torch.arange(channels)
    signs_ZC[2 * index, index], signs_ZC[2 * index + 1, index] = 1.0, -1.0
    return signs_ZC
