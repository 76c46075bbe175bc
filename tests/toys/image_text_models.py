"""Tiny image-text models of transformers with random weights, as their folders lie on a disk."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
TEXT = """<pad> <unk> <s> </s> <image> yes Yes no No maybe is there a an the red blue green circle square Is Are exactly
two shape shapes Answer with or . ? ist da ein roter Kreis assistant ja nein"""
WORDS = TEXT.split()
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_llava(folder: Path, seed: int = 0, chat: bool = True) -> Path:
    """A LLaVA of two layers for images of 16 pixels."""
    tokenizer = _tokenizer()
    image = CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
    processor = LlavaProcessor(
        image, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=CHAT if chat else None,
    )  # fmt: skip
    processor.save_pretrained(folder)
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(**TOWER, image_size=16, patch_size=8)
    text = LlamaConfig(
        vocab_size=len(WORDS), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=2, eos_token_id=3,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_token_id=4)
    return _save(LlavaForConditionalGeneration(config), folder)


def write_blip2(folder: Path) -> Path:
    """A BLIP-2 with a T5 for images of 16 pixels: question and answer have networks of their own."""
    image = BlipImageProcessor(size={"height": 16, "width": 16})
    Blip2Processor(image, _tokenizer(), num_query_tokens=4).save_pretrained(folder)
    torch.manual_seed(0)
    text = {
        "model_type": "t5", "vocab_size": len(WORDS), "d_model": 24, "d_kv": 12, "d_ff": 48, "num_layers": 2,
        "num_heads": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 3,
    }  # fmt: skip
    config = Blip2Config(
        vision_config={**TOWER, "image_size": 16, "patch_size": 8}, text_config=text, num_query_tokens=4,
        qformer_config={**TOWER, "encoder_hidden_size": 16, "vocab_size": len(WORDS)}, image_token_index=4,
    )  # fmt: skip
    return _save(Blip2ForConditionalGeneration(config), folder)


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("?", "isolated"), pre_tokenizers.Split(".", "isolated")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def _save(model: PreTrainedModel, folder: Path) -> Path:
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    model.save_pretrained(folder)
    return folder
