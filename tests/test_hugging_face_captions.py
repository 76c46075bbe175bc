"""Text encoders of transformers from a folder: their own states, whatever the batch, and nothing of the padding."""

from pathlib import Path

import pytest
import torch
from toys.encoders import write_caption_encoder
from transformers import BertModel, T5Model

from leam_mm.captions.hugging_face_captions import HuggingFaceCaptions
from leam_mm.errors import UserError

TEXTS = ["a red square", "", "Quadrat, grün " * 9, "A Blue  square", "gelb"]


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_states_are_the_encoders_own_one_by_one(tmp_path: Path, kind: str) -> None:
    folder = write_caption_encoder(tmp_path, kind)
    encoder = HuggingFaceCaptions(str(folder), context_length=10)
    state, mask = encoder.encode(TEXTS)
    assert state.shape == (5, 10, encoder.width) and mask.sum(1).tolist()[1] == 2 and mask.sum(1).max() == 10
    theirs = (T5Model if kind == "t5" else BertModel).from_pretrained(folder).eval()
    run = theirs.get_encoder() if kind == "t5" else theirs
    for row, text in enumerate(TEXTS):
        tokens = encoder.tokenizer(" ".join(text.lower().split()), truncation=True, max_length=10, return_tensors="pt")
        with torch.no_grad():
            expected = run(input_ids=tokens["input_ids"]).last_hidden_state[0]
        assert mask[row].sum() == len(expected) and not state[row, len(expected) :].any()
        torch.testing.assert_close(state[row, : len(expected)], expected, rtol=1e-4, atol=1e-4)


def test_no_more_than_the_tokenizer_allows_and_the_digest_covers_all(tmp_path: Path) -> None:
    folder = write_caption_encoder(tmp_path / "a")
    encoder = HuggingFaceCaptions(str(folder))
    assert encoder.context_length == 12 and not encoder.train().model.training
    same = HuggingFaceCaptions(str(write_caption_encoder(tmp_path / "b"))).sha256
    assert same == encoder.sha256
    (folder / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text() + "\n")
    assert HuggingFaceCaptions(str(folder)).sha256 != same


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder nor in the local cache"):
        HuggingFaceCaptions("someone/t5")
    folder = write_caption_encoder(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(UserError, match="holds no tokenizer"):
        HuggingFaceCaptions(str(folder))
