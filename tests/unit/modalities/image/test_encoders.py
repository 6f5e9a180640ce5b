import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from peftsweep.errors import ModelError
from peftsweep.modalities.image.encoders import load_image_encoder, load_text_image_scorer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "dino"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(folder)
    settings = {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def picture(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_embeddings_are_of_length_one_and_follow_the_picture(encoder_folder: Path) -> None:
    encoder = load_image_encoder(str(encoder_folder), CPU)
    found = encoder.embed([picture(0), picture(1), picture(0)])
    assert found.shape == (3, 16)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    assert torch.equal(found[0], found[2])
    assert not torch.allclose(found[0], found[1])


def test_pictures_of_any_sizes_go_together(encoder_folder: Path) -> None:
    assert load_image_encoder(str(encoder_folder), CPU).embed([picture(0, 40, 64), picture(1, 100, 33)]).shape == (
        2,
        16,
    )


def test_more_pictures_than_a_batch_are_embedded_in_order(encoder_folder: Path) -> None:
    encoder = load_image_encoder(str(encoder_folder), CPU)
    pictures = [picture(seed) for seed in range(40)]
    torch.testing.assert_close(encoder.embed(pictures)[35:], encoder.embed(pictures[35:]))


def test_an_encoder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model"):
        load_image_encoder(str(tmp_path / "nothing"), CPU)


def test_a_model_without_a_text_encoder_scores_no_texts(encoder_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"clip_model|processor"):
        load_text_image_scorer(str(encoder_folder), CPU)


def test_clip_scores_are_cosines_of_the_paired_text(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, CLIPProcessor, PreTrainedTokenizerFast

    torch.manual_seed(0)
    text = {
        "vocab_size": 8,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
    }
    vision = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = CLIPConfig(text_config=text | {"eos_token_id": 1}, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    words = {word: number for number, word in enumerate(["<pad>", "<end>", "red", "blue", "toy"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>", model_max_length=8)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, fast).save_pretrained(tmp_path)
    scorer = load_text_image_scorer(str(tmp_path), CPU)
    found = scorer.score([picture(0), picture(0)], ["red toy", "blue toy"])
    assert len(found) == 2
    assert all(-1 <= score <= 1 for score in found)
    assert found[0] != found[1]
