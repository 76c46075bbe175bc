"""What the steps of a sampler share: captions and places stay, and what a network makes of them is made only once."""

from typing import Any

from einops import rearrange
from torch import Tensor

from leam_mm.denoisers.caption_packing import TrimmedCaptions

MOST_BYTES = 2**30  # of keys and values of one batch of captions; what is beyond is made at each step


class CaptionHeads:
    """Keys and values of a batch of captions in each attention layer of PRX, made when a layer first asks.

    It stands in the place of the embedded captions, where diffusers' blocks only hand them on.

    Args:
        text: (B, L, E), the embedded captions.
        most_bytes: So much is kept at most.
    """

    def __init__(self, text: Tensor, most_bytes: int = MOST_BYTES) -> None:
        """See the class for the arguments."""
        self.text, self.most_bytes = text, most_bytes
        self._made: dict[Any, tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def of(self, attention: Any) -> tuple[Tensor, Tensor]:
        """Key and value, each (B, K, L, d), of one layer."""
        if attention in self._made:
            return self._made[attention]
        heads = caption_heads(attention, self.text)
        size = sum(part.numel() * part.element_size() for part in heads)
        if self._bytes + size <= self.most_bytes:
            self._bytes += size
            self._made[attention] = heads
        return heads


def caption_heads(attention: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value, each (B, K, L, d), that a layer of PRX makes of embedded captions (B, L, E)."""
    key, value = rearrange(attention.txt_kv_proj(text), "b l (part k d) -> part b k l d", part=2, k=attention.heads)
    return attention.norm_added_k(key), value


class StepMemory:
    """What a network has made since a sampler began: of captions, by the tensors that they came in, and of places.

    The tensors themselves are kept too, so that no other can take the place of one in memory.
    """

    def __init__(self) -> None:
        """Nothing is read yet."""
        self.rotary: dict[tuple[int, int], Tensor] = {}
        """Rotation of the tokens of a grid (h, w)."""
        self._read: list[tuple[Tensor, Tensor, TrimmedCaptions, CaptionHeads]] = []

    def find(self, state: Tensor, mask: Tensor) -> tuple[TrimmedCaptions, CaptionHeads] | None:
        """What was made of these very tensors, not of equal ones."""
        for known_state, known_mask, captions, heads in self._read:
            if known_state is state and known_mask is mask:
                return captions, heads
        return None

    def keep(self, state: Tensor, mask: Tensor, captions: TrimmedCaptions, text: Tensor) -> CaptionHeads:
        """Remember captions, cut and embedded (B, L, E)."""
        heads = CaptionHeads(text)
        self._read.append((state, mask, captions, heads))
        return heads
