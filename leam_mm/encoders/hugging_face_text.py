"""Text towers of Hugging Face's transformers (XLM-R, BERT, mT5), built by open_clip from local files.

encoder:
  embed_dim: 512
  vision: {patch_size: 32}
  text: {model: FacebookAI/xlm-roberta-base, context_length: 77, pretrained: true}
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from leam_mm.errors import UserError
from leam_mm.files import files_sha256
from leam_mm.released_files import compare_released_files, is_variant


@dataclass
class HuggingFaceText:
    """Settings of a text tower of transformers.

    Args:
        model: Folder with a config.json, or name of a downloaded model on the hub.
        context_length: L, tokens per caption.
        pooler: Pooling over the tokens. (max_pooler is not supported: open_clip 3.3.0 includes the padding in it.)
        projection: Projection to the shared embedding.
        pretrained: Load the weights in the model's folder; otherwise initialise at random.
    """

    model: str
    context_length: int = 77
    pooler: Literal["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] = "mean_pooler"
    projection: Literal["linear", "mlp"] = "mlp"
    pretrained: bool = False

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding; a tokenizer may have fewer tokens."""
        return int(transformers_config(self.model).vocab_size)

    @property
    def width(self) -> int:
        """E, channels."""
        return int(transformers_config(self.model).hidden_size)  # also an alias of d_model

    def text_config(self, name: str) -> dict[str, object]:
        """Return the ``text_cfg`` of open_clip; ``name`` is the folder or hub name of the tower's config."""
        return {
            "hf_model_name": name,
            "hf_model_pretrained": False,
            "hf_proj_type": self.projection,
            "hf_pooler_type": self.pooler,
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
        }

    def check(self) -> None:
        """Raise UserError if the context is longer than the tower's position embeddings."""
        config = transformers_config(self.model)
        positions = getattr(config, "max_position_embeddings", None)
        if positions and "roberta" in config.model_type:
            positions -= config.pad_token_id + 1  # RoBERTa's positions start at pad_token_id + 1
        if positions and self.context_length > positions:
            raise UserError(
                f"model.encoder.text.context_length is {self.context_length}, but {self.model} takes {positions} "
                f"tokens at most: set it, and data.init_args.captions.context_length, to {positions} or less"
            )


def transformers_folder(model: str) -> Path:
    """Return the folder of a model: the given folder, or the hub's local cache. Nothing is downloaded."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, FileNotFoundError):
        raise UserError(
            f"the text model {model} is neither a folder nor in the local cache: run `hf download {model}` on a "
            "machine with network access, or give a folder with its config.json"
        ) from None


@lru_cache(maxsize=8)
def transformers_config(model: str) -> Any:
    """Return the config of a transformers model, without running code from its folder."""
    from transformers import AutoConfig

    folder = transformers_folder(model)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json: give the folder of a transformers model")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{folder}/config.json cannot be used ({reason}): give an encoder that transformers supports"
        ) from None


def transformers_model(model: str, texts: bool) -> Any:
    """Return a frozen float32 encoder. Only safetensors are loaded, and no code from the folder is run.

    Args:
        model: Folder, or name of a downloaded model on the hub.
        texts: Load only the text encoder of a model with more parts, such as T5; otherwise the whole model.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    folder, config = transformers_folder(model), transformers_config(model)
    compare_released_files(folder)
    kind = AutoModelForTextEncoding if texts and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise many types for invalid files
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{folder} has no weights that transformers can load ({reason}): give intact safetensors files"
        ) from None
    if texts and config.is_encoder_decoder and kind is AutoModel:
        loaded = loaded.get_encoder()
    if not all(bool(torch.isfinite(value).all()) for value in loaded.state_dict().values()):
        raise UserError(f"{folder} holds weights that are NaN or infinite: give undamaged ones")
    return loaded.float().eval().requires_grad_(False)


def folder_sha256(folder: Path) -> str:
    """Return one SHA-256 over the files that determine a model's output: weights, settings, tokenizer."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.model")])
    return files_sha256(file for file in files if not is_variant(file))
