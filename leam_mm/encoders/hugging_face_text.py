"""Text towers of Hugging Face's transformers (XLM-R, BERT, mT5), built by open_clip from what lies on this machine.

encoder:
  embed_dim: 512
  vision: {patch_size: 32}
  text: {model: FacebookAI/xlm-roberta-base, context_length: 77, pretrained: true}
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from leam_mm.errors import UserError
from leam_mm.files import file_sha256


@dataclass
class HuggingFaceText:
    """Settings of a text tower of transformers.

    Args:
        model: Folder with its config.json, or its name on the hub if it has been downloaded.
        context_length: L, tokens per caption.
        pooler: How one vector is made of the tokens. (max_pooler is left out: open_clip 3.3.0 pools over the padding.)
        projection: To the shared embedding.
        pretrained: Start from the weights beside the config, else from random ones.
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
        return int(transformers_config(self.model).hidden_size)  # d_model answers to this name too

    def text_config(self, name: str) -> dict[str, object]:
        """The ``text_cfg`` of open_clip, with ``name`` for where the tower's config is."""
        return {
            "hf_model_name": name,
            "hf_model_pretrained": False,
            "hf_proj_type": self.projection,
            "hf_pooler_type": self.pooler,
            "context_length": self.context_length,
            "vocab_size": self.vocab_size,
        }

    def check(self) -> None:
        """Refuse more tokens than the tower has places for."""
        config = transformers_config(self.model)
        places = getattr(config, "max_position_embeddings", None)
        if places and "roberta" in config.model_type:
            places -= config.pad_token_id + 1  # its positions begin behind the padding's
        if places and self.context_length > places:
            raise UserError(
                f"model.encoder.text.context_length is {self.context_length}, but {self.model} reads {places} tokens "
                f"at most: set it, and data.init_args.captions.context_length, to {places} or less"
            )


def transformers_folder(model: str) -> Path:
    """The folder of a model: itself, or the hub's copy in the local cache; nothing is downloaded."""
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, FileNotFoundError):
        raise UserError(
            f"the text model {model} is neither a folder nor in the local cache: run `hf download {model}` where there "
            "is network, or give a folder that holds its config.json"
        ) from None


@lru_cache(maxsize=8)
def transformers_config(model: str) -> Any:
    """The config of a model of transformers, without running code that lies beside it."""
    from transformers import AutoConfig

    folder = transformers_folder(model)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} holds no config.json: give the folder of a model of transformers")
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{folder}/config.json cannot be used ({reason}): give an encoder that transformers has"
        ) from None


def transformers_model(model: str, texts: bool) -> Any:
    """A frozen encoder with its weights, float32: safetensors only, and no code that lies beside them.

    Args:
        model: Folder, or name on the hub if it has been downloaded.
        texts: Take the text encoder of a model that has more, such as T5; otherwise the whole.
    """
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING, AutoModel, AutoModelForTextEncoding

    folder, config = transformers_folder(model), transformers_config(model)
    kind = AutoModelForTextEncoding if texts and type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING else AutoModel
    try:
        loaded = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise half a dozen kinds for files that do not fit
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(
            f"{folder} holds no weights that transformers loads ({reason}): give intact ones as safetensors"
        ) from None
    if texts and config.is_encoder_decoder and kind is AutoModel:
        loaded = loaded.get_encoder()
    return loaded.float().eval().requires_grad_(False)


def folder_sha256(folder: Path) -> str:
    """One digest of all that decides what a model of transformers answers: weights, settings, tokenizer."""
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.json"), *folder.glob("*.model")])
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()
