"""Judge by an image-text model of transformers (LLaVA, Idefics, Qwen-VL, BLIP-2, ...) from a local folder.

- class_path: leam_mm.evaluators.image_text_judge.ImageTextJudge
  init_args: {model: models/Idefics3-8B-Llama3}

The answer is the probability of "yes" against "no" as the first token that the model writes, as in VQAScore (Lin et
al. 2404.01291, section 3). Nothing is downloaded, and no code in the folder is run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from leam_mm.encoders.hugging_face_text import folder_sha256, transformers_config, transformers_folder
from leam_mm.errors import UserError
from leam_mm.evaluators.evaluator import EvaluationContext
from leam_mm.evaluators.image_judge import ImageJudge
from leam_mm.prompts.atoms import Atom
from leam_mm.released_files import compare_released_files


class ImageTextJudge(ImageJudge):
    """Asks the question and compares the probabilities of the answers' first tokens.

    Args:
        model: Folder of the model and its processor, or a name in the hub's local cache.
        language: Language of the questions, where the prompts translate them; otherwise English is used.
        instruction: Text after the question.
        yes: The answer "yes" in the language of the instruction.
        no: The answer "no".
        batch_size: Images in one forward pass.
        name: Part of the metrics' names.
    """

    def __init__(
        self,
        model: Path,
        language: str = "en",
        instruction: str = "Answer with yes or no.",
        yes: str = "yes",
        no: str = "no",
        batch_size: int = 8,
        name: str = "image_text_model",
    ) -> None:
        """See the class for the arguments."""
        if batch_size < 1:
            raise UserError(f"ImageTextJudge: batch_size is {batch_size}; give at least 1")
        self.model, self.language, self.instruction, self.yes, self.no = model, language, instruction, yes, no
        self.batch_size, self.name = batch_size, name

    def prepare(self, context: EvaluationContext, atoms: Sequence[Atom]) -> None:
        """Load processor and model; see ImageJudge."""
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = transformers_folder(str(self.model))
        transformers_config(str(folder))
        compare_released_files(folder)
        closed = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._processor: Any = AutoProcessor.from_pretrained(folder, **closed)
            dtype = torch.bfloat16 if context.device.type == "cuda" else torch.float32
            network: Any = AutoModelForImageTextToText.from_pretrained(
                folder, use_safetensors=True, dtype=dtype, **closed
            )
        except Exception as error:  # transformers and safetensors raise many types for invalid files
            reason = str(error).strip().split("\n")[0][:160]
            raise UserError(
                f"{folder} holds no image-text model that transformers can load ({reason}): give the folder of one, "
                "with its processor and safetensors"
            ) from None
        self._network: Any = network.to(context.device).eval().requires_grad_(False)
        tokenizer = getattr(self._processor, "tokenizer", None)
        if tokenizer is None:
            raise UserError(f"{folder} has no tokenizer: give the folder of an image-text model with its processor")
        tokenizer.padding_side = "left"  # the answer follows the question in every row
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._yes, self._no = first_tokens(tokenizer, self.yes, self.no)
        self._image_token = "" if getattr(self._processor, "chat_template", None) else image_token(self._processor)
        self.protocol = f"{folder.name} {folder_sha256(folder)[:12]}, {self.yes} against {self.no} as the first token"

    @torch.no_grad()
    def answer(self, images: Tensor, atom: Atom) -> Tensor:
        """Return the probability of "yes" among both answers; see ImageJudge."""
        text = self._question(atom.in_language(self.language).question)
        return torch.cat([self._answer(part, text) for part in images.split(self.batch_size)])

    def _answer(self, images: Tensor, text: str) -> Tensor:
        shown = [[Image.fromarray(image.permute(1, 2, 0).numpy())] for image in images.cpu()]
        inputs = self._processor(images=shown, text=[text] * len(shown), return_tensors="pt", padding=True)
        inputs = inputs.to(self._network.device, self._network.dtype)
        # One token of generate() also serves models whose decoder is separate from the encoder of the question.
        written = self._network.generate(
            **inputs, max_new_tokens=1, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        logit = written.logits[0].double()
        both = torch.stack([logit[:, ids].logsumexp(dim=1) for ids in (self._yes, self._no)], dim=1)
        return both.softmax(dim=1)[:, 0].cpu()

    def _question(self, question: str) -> str:
        words = f"{question} {self.instruction}".strip()
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": words}]
            said = [{"role": "user", "content": content}]
            return str(self._processor.apply_chat_template(said, add_generation_prompt=True))
        return f"{self._image_token}{words}"


def image_token(processor: Any) -> str:
    """Return what stands for the image in the text of a processor; "" if the processor inserts it.

    Args:
        processor: Processor of transformers, for a model without chat template.
    """
    token = str(getattr(processor, "image_token", None) or "")
    number = getattr(processor, "image_token_id", None)
    try:
        found = processor(images=[[Image.new("RGB", (64, 64))]], text=["yes"], return_tensors="pt")["input_ids"]
    except Exception:  # processors raise many kinds if an image has no place in the text
        return token
    number = processor.tokenizer.convert_tokens_to_ids(token) if number is None and token else number
    return "" if number is not None and bool((found == number).any()) else token


def first_tokens(tokenizer: Any, yes: str, no: str) -> tuple[list[int], list[int]]:
    """Return the tokens with which each answer may begin: lower and upper case, with and without a space before.

    Args:
        tokenizer: Tokenizer of transformers.
        yes: First answer.
        no: Second answer.

    Raises:
        UserError: No token tells the answers apart.
    """
    found = []
    for word in (yes, no):
        forms = {form for text in (word, word.capitalize(), word.upper()) for form in (text, f" {text}")}
        encoded = [tokenizer.encode(form, add_special_tokens=False) for form in sorted(forms)]
        whole = {ids[0] for ids in encoded if len(ids) == 1}
        found.append(whole or {ids[0] for ids in encoded if ids})
    unknown = {tokenizer.unk_token_id} if tokenizer.unk_token_id is not None else set()
    both = (found[0] & found[1]) | unknown
    first, second = (sorted(ids - both) for ids in found)
    if not first or not second:
        raise UserError(f"the judge's tokenizer has no tokens that tell {yes!r} from {no!r}: give other answers")
    return first, second
