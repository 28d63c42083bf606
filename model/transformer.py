"""The transformer of HunyuanImage-3.0, in the checkpoint's own names: text and image paths."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from model.attention import AttentionGroup, LayerKV, SelfAttention
from model.config import ModelConfig
from model.layer_stages import Stage, list_stages, move, pipeline_order
from model.layers import AddRMSNorm, RMSNorm, TimestepEmbedding
from model.mesh import SINGLE, Mesh, RankGroup, splits_vocabulary
from model.moe import AcquireExperts, ExpertOffload, MoE
from model.patch import FinalLayer, PatchEmbed
from model.vae import Vae
from model.vision import VisionAligner, build_vision_tower


class DecoderLayer(nn.Module):
    """Attention and experts, each with a norm before it and a residual connection.

    Shapes: x_BSD -> x_BSD.
    """

    def __init__(self, config: ModelConfig, layer: int, ranks: RankGroup) -> None:
        super().__init__()
        self.self_attn = SelfAttention(config, layer, ranks)
        self.mlp = MoE(config.hidden_size, config.layers[layer], ranks)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = AddRMSNorm(config.hidden_size, config.rms_norm_eps)

    @property
    def device(self) -> torch.device:
        return self.input_layernorm.weight.device

    def forward(
        self,
        x_BSD: Tensor,
        groups: Sequence[AttentionGroup],
        new_kv: Sequence[list[LayerKV]] | None = None,
        acquire_experts: AcquireExperts | None = None,
    ) -> Tensor:
        attended_BSD = self.self_attn(self.input_layernorm(x_BSD), groups, new_kv)
        x_BSD, normed_BSD = self.post_attention_layernorm(x_BSD, attended_BSD)
        return x_BSD + self.mlp(normed_BSD, acquire_experts)


class Backbone(nn.Module):
    """Token embeddings, the layers, and the norm before the text head."""

    def __init__(self, config: ModelConfig, ranks: RankGroup, num_ids: int) -> None:
        super().__init__()
        # Not initialised, like all that a checkpoint fills: on the meta device normal random
        # numbers would import two seconds' worth of torch.
        self.wte = nn.Embedding.from_pretrained(
            torch.empty(num_ids, config.hidden_size), freeze=False
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, i, ranks) for i in range(len(config.layers))
        )
        self.ln_f = RMSNorm(config.hidden_size, config.rms_norm_eps)


class HunyuanImage(nn.Module):
    """Text and image paths around one backbone.

    A denoising step is `embed_step`, `run_layers`, `predict_velocity`; a caller may put a step
    cache around the middle one. Without vision the tower for input images is not even built.
    With tensor parallelism each rank holds a part (`model/loading/shard_plan.py`), and all ranks
    call the same methods in the same order. `expert_offload` is set where some layers' experts
    are not on the device.
    """

    expert_offload: ExpertOffload | None = None

    def __init__(
        self, config: ModelConfig, *, has_vision: bool = True, mesh: Mesh = SINGLE
    ) -> None:
        super().__init__()
        self.config = config
        self.mesh = mesh
        is_split = splits_vocabulary(config.vocab_size, mesh.tensor.size)
        self._vocabulary = mesh.tensor if is_split else SINGLE.tensor
        num_rows = config.vocab_size // self._vocabulary.size
        self.model = Backbone(config, mesh.tensor, num_rows)
        self.lm_head = nn.Linear(config.hidden_size, num_rows, bias=False)
        self.timestep_emb = TimestepEmbedding(config.hidden_size)
        self.time_embed = TimestepEmbedding(config.hidden_size)
        self.time_embed_2 = TimestepEmbedding(config.hidden_size)
        if config.is_guidance_distilled:
            self.guidance_emb = TimestepEmbedding(config.hidden_size)
        if config.is_meanflow:
            self.timestep_r_emb = TimestepEmbedding(config.hidden_size)
        self.patch_embed = PatchEmbed(config, mesh.tensor)
        self.final_layer = FinalLayer(config, mesh.tensor)
        self.vae = Vae(config.vae)
        self.vision_model = build_vision_tower(config.vision) if has_vision else None
        self.vision_aligner = VisionAligner(config.vision_aligner)

    @property
    def layers(self) -> list[DecoderLayer]:
        """Return the decoder layers, in running order."""
        return [cast(DecoderLayer, layer) for layer in self.model.layers]

    @property
    def dtype(self) -> torch.dtype:
        return self.model.wte.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.model.wte.weight.device

    @property
    def devices(self) -> list[torch.device]:
        """The devices of the layers, in the order of the layers, each once."""
        return list(dict.fromkeys(layer.device for layer in self.layers))

    def embed_ids(self, ids: Sequence[int]) -> Tensor:
        """Return the embeddings of one row of token ids. Shapes: -> x_1SD."""
        ranks = self._vocabulary
        ids_1S = torch.tensor([list(ids)], device=self.device)
        if ranks.size == 1:
            return self.model.wte(ids_1S)
        # This rank holds `count` rows of the vocabulary; the other ranks add theirs.
        count = self.model.wte.num_embeddings
        local_1S = ids_1S - ranks.rank * count
        is_local_1S = (local_1S >= 0) & (local_1S < count)
        x_1SD = self.model.wte(local_1S.clamp(0, count - 1)) * is_local_1S.unsqueeze(-1)
        return ranks.all_reduce(x_1SD)

    def embed_step(
        self,
        latent_BCYX: Tensor,
        timestep_B: Tensor,
        guidance_B: Tensor | None = None,
        next_timestep_B: Tensor | None = None,
    ) -> Tensor:
        """Return the tokens of a denoising step, [<timestep>, image tokens].

        A distilled model needs the guidance, and a mean-flow model the timestep that the step
        leads to: their tokens follow <timestep>.

        Shapes: latent_BCYX float32, timestep_B float32 in [0, 1000] -> x_BSD.
        """
        before = [self.timestep_emb(timestep_B)]
        if self.config.is_guidance_distilled:
            assert guidance_B is not None, "a distilled model takes the guidance as an input"
            before.append(self.guidance_emb(1000.0 * guidance_B))
        if self.config.is_meanflow:
            assert next_timestep_B is not None, "a mean-flow model takes the next timestep too"
            before.append(self.timestep_r_emb(next_timestep_B))
        image_BSD = self.patch_embed(latent_BCYX.to(self.dtype), self.time_embed(timestep_B))
        return torch.cat((torch.stack(before, dim=1), image_BSD), dim=1)

    def run_layers(
        self,
        x_BSD: Tensor,
        groups: Sequence[AttentionGroup],
        start: int = 0,
        stop: int | None = None,
        new_kv: Sequence[list[LayerKV]] | None = None,
    ) -> Tensor:
        """Run the layers [start, stop) on all rows, each on its own device.

        `new_kv`, where given, has a list for each group; every layer appends the keys and values
        of the group's new tokens. Over several devices the groups are microbatches.

        Shapes: x_BSD -> x_BSD, without final norm, on the model's device.
        """
        devices = [layer.device for layer in self.layers]
        stages = list_stages(devices, start, len(devices) if stop is None else stop)
        if all(stage.device == self.device for stage in stages):
            for stage in stages:
                x_BSD = self._run_stage(stage, x_BSD, groups, new_kv)
            return x_BSD
        parts = [x_BSD[group.rows] for group in groups]
        for stage_number, i in pipeline_order(len(stages), len(groups)):
            stage, count = stages[stage_number], len(parts[i])
            alone = replace(groups[i].to(stage.device), rows=slice(0, count))
            kv = None if new_kv is None else [new_kv[i]]
            parts[i] = self._run_stage(stage, move(parts[i], stage.device), [alone], kv)
        return torch.cat([move(part, self.device) for part in parts])

    def _run_stage(
        self,
        stage: Stage,
        x_BSD: Tensor,
        groups: Sequence[AttentionGroup],
        new_kv: Sequence[list[LayerKV]] | None,
    ) -> Tensor:
        """Run the layers of one stage on its device."""
        for index in range(stage.start, stage.stop):
            x_BSD = self.layers[index](x_BSD, groups, new_kv, self._acquire_experts(index))
        return x_BSD

    def _acquire_experts(self, layer: int) -> AcquireExperts | None:
        """Return what brings a layer's experts onto the device, or None where they are there."""
        if self.expert_offload is None or layer not in self.expert_offload.layers:
            return None
        return partial(self.expert_offload.acquire, layer)

    def predict_velocity(self, x_BSD: Tensor, timestep_B: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return the velocity at the image tokens of a step's last hidden states.

        Shapes: x_BSD as from embed_step, grid (Y, X) -> velocity_BCYX float32.
        """
        image_BSD = x_BSD[:, len(self.config.step_tokens) :]
        return self.final_layer(image_BSD, self.time_embed_2(timestep_B), grid)

    def text_logits(self, x_BSD: Tensor) -> Tensor:
        """Return next-token logits. Shapes: x_BSD -> logits_BSV float32."""
        return self._vocabulary.all_gather(self.lm_head(self.model.ln_f(x_BSD)).float(), dim=-1)
