"""A FLUX.2 transformer small enough for hundreds of tests, with batches and a loss for it."""

import torch
from diffusers import Flux2Transformer2DModel
from torch import Tensor, nn

IMAGE_TOKENS, PROMPT_TOKENS, BATCH_SIZE = 16, 8, 8
CHANNELS, PROMPT_WIDTH = 32, 48


def tiny_transformer() -> Flux2Transformer2DModel:
    """A double-stream and two single-stream blocks, 8 heads of 32: sizes that the default capacities divide."""
    torch.manual_seed(0)
    model = Flux2Transformer2DModel(
        in_channels=CHANNELS,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=32,
        num_attention_heads=8,
        joint_attention_dim=PROMPT_WIDTH,
        timestep_guidance_channels=16,
        mlp_ratio=3.0,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    )
    return model.eval().requires_grad_(False)


def image_batch(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, BATCH_SIZE, IMAGE_TOKENS, CHANNELS, generator=generator)
    prompts = torch.randn(BATCH_SIZE, PROMPT_TOKENS, PROMPT_WIDTH, generator=generator)
    sigmas = torch.rand(BATCH_SIZE, generator=generator)
    return {"latents": latents[0], "target": latents[1], "sigmas": sigmas, "prompt_embeds": prompts}


def velocity_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    dtype = next(model.parameters()).dtype
    return model(
        hidden_states=batch["latents"].to(dtype),
        encoder_hidden_states=batch["prompt_embeds"].to(dtype),
        timestep=batch["sigmas"].to(dtype),
        img_ids=positions(IMAGE_TOKENS),
        txt_ids=positions(PROMPT_TOKENS),
        return_dict=False,
    )[0]


def positions(tokens: int) -> Tensor:
    ids = torch.zeros(tokens, 4)
    ids[:, -1] = torch.arange(tokens)
    return ids


def image_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (velocity_of(model, batch).float() - batch["target"]).square().mean()
