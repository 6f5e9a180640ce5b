"""What stands around the transformer of a diffusion pipeline: text encoder, VAE and scheduler.

Methods are put on the transformer alone. The text encoder is loaded when prompts are to be encoded and let go again;
the VAE stays on the host and visits the device. So neither takes accelerator memory while a method trains.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import Flux2KleinPipeline
from torch import Tensor, nn

from peftsweep.modalities.loading import quiet
from peftsweep.modalities.wrapped import base_of, evaluating, visiting


class DiffusionParts:
    """The frozen parts of one Flux2KleinPipeline. Embeddings, latents and pictures are handed out on the host."""

    def __init__(self, folder: Path, fingerprint: str, dtype: torch.dtype) -> None:
        """folder: a pipeline as diffusers saves it; fingerprint: of what embeddings and latents depend on."""
        self.fingerprint, self.dtype = fingerprint, dtype
        self._folder, self._device = folder, torch.device("cpu")
        absent = {"transformer": None, "text_encoder": None, "tokenizer": None}
        self._pipeline: Any = Flux2KleinPipeline.from_pretrained(folder, dtype=dtype, **absent)
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.vae.requires_grad_(False).eval()
        # As the checkpoint has them: making a picture sets the scheduler to the few levels of its own steps.
        self.sigmas: Tensor = self._pipeline.scheduler.sigmas[: len(self._pipeline.scheduler.timesteps)].float().clone()

    @property
    def pixels_per_token(self) -> int:
        """Side of the square of pixels that one latent token stands for."""
        return 2 * int(self._pipeline.vae_scale_factor)

    def on(self, device: torch.device) -> DiffusionParts:
        """The same parts, doing their work on `device`."""
        found = copy.copy(self)
        found._device = device
        return found

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str], *, max_tokens: int, layers: Sequence[int]) -> Tensor:
        """(n, max_tokens, d): the text encoder's hidden states after `layers`, side by side."""
        with quiet():
            encoder = Flux2KleinPipeline.from_pretrained(self._folder, dtype=self.dtype, transformer=None, vae=None)
        encoder.text_encoder.requires_grad_(False).eval().to(self._device)
        options: dict[str, Any] = {"max_sequence_length": max_tokens, "text_encoder_out_layers": tuple(layers)}
        try:
            found = [encoder.encode_prompt(prompt, device=self._device, **options)[0].cpu() for prompt in prompts]
        finally:
            del encoder
            gc.collect()
            _release(self._device)
        return torch.cat(found)

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """(n, 3, h, w) in [-1, 1] -> latents (n, c, h / pixels_per_token, w / pixels_per_token), normalised as the
        transformer knows them."""
        with visiting(self._pipeline.vae, self._device) as vae:
            found = [
                self._pipeline._encode_vae_image(one.unsqueeze(0).to(self._device, vae.dtype), generator=None).cpu()
                for one in pixels
            ]
        return torch.cat(found)

    @torch.no_grad()
    def generate(
        self,
        model: nn.Module,
        prompt_embeds: Tensor,
        negative_embeds: Tensor,
        seeds: Sequence[int],
        *,
        resolution: int,
        steps: int,
        guidance: float,
        batch_size: int,
        on_done: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        """uint8 (n, resolution, resolution, 3): picture i from prompt_embeds[i], (n, s, d), and the noise of seeds[i].

        negative_embeds: (1, s, d), the empty prompt's; steps: of denoising; guidance: 1 does without it; on_done: told
        how many pictures were finished. The noise is drawn on the host, so a seed means the same on every device.
        """
        transformer = base_of(model)
        with evaluating(transformer), visiting(self._pipeline.vae, self._device):
            pictures = []
            for start in range(0, len(seeds), batch_size):
                chosen = slice(start, start + batch_size)
                embeds = prompt_embeds[chosen].to(self._device, self.dtype)
                found = _pipeline_around(self._pipeline, transformer)(
                    prompt_embeds=embeds,
                    negative_prompt_embeds=negative_embeds.to(embeds).expand(len(embeds), -1, -1),
                    generator=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],
                    height=resolution,
                    width=resolution,
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    output_type="np",
                ).images
                pictures.append((255 * np.clip(found, 0, 1)).round().astype(np.uint8))
                if on_done:
                    on_done(len(embeds))
        _release(self._device)
        return np.concatenate([np.empty((0, resolution, resolution, 3), np.uint8), *pictures])


def predict_velocity(
    model: nn.Module, latents: Tensor, sigmas: Tensor, prompt_embeds: Tensor, dtype: torch.dtype
) -> Tensor:
    """What the transformer takes for noise - latents, (b, c, h, w) in its own dtype.

    latents: (b, c, h, w), noised to `sigmas` (b,) in 0 to 1; prompt_embeds: (b, s, d); all on the model's device.
    model: the transformer, bare or in any PEFT wrapper.
    """
    pipeline: Any = Flux2KleinPipeline
    predicted = model(
        hidden_states=pipeline._pack_latents(latents).to(dtype),
        timestep=sigmas.to(dtype),
        guidance=None,
        encoder_hidden_states=prompt_embeds.to(dtype),
        txt_ids=pipeline._prepare_text_ids(prompt_embeds).to(latents.device),
        img_ids=pipeline._prepare_latent_ids(latents).to(latents.device),
        return_dict=False,
    )[0]
    return cast(Tensor, predicted.transpose(1, 2).reshape(latents.shape))


def _pipeline_around(pipeline: Any, transformer: nn.Module) -> Any:
    """A pipeline of this call alone: the parts outlive a job, its transformer must not."""
    components = pipeline.components | {"transformer": transformer}
    whole: Any = Flux2KleinPipeline(**components, is_distilled=pipeline.config.is_distilled)
    whole.set_progress_bar_config(disable=True)
    return whole


def _release(device: torch.device) -> None:
    """What was borrowed goes back, so that it doesn't count as reserved while a method trains."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
