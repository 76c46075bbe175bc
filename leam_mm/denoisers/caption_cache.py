"""Cache of what a denoiser computes from captions and positions, which stay the same for all steps of a sampler."""

from typing import Any

from einops import rearrange
from torch import Tensor

from leam_mm.denoisers.caption_packing import TrimmedCaptions

MAX_BYTES = 2**30  # of keys and values of one batch of captions; more are computed at each step


class CaptionKeysValues:
    """Keys and values of a batch of captions in each attention layer of PRX, computed on first use.

    diffusers' blocks only hand the embedded captions on to the attention, so this object can take their place.

    Args:
        text: (B, L, E), the embedded captions.
        max_bytes: Largest size of the cache.
    """

    def __init__(self, text: Tensor, max_bytes: int = MAX_BYTES) -> None:
        """See the class for the arguments."""
        self.text, self.max_bytes = text, max_bytes
        self._cached: dict[Any, tuple[Tensor, Tensor]] = {}
        self._bytes = 0

    def of(self, attention: Any) -> tuple[Tensor, Tensor]:
        """Return key and value, each (B, K, L, d), of one layer."""
        if attention in self._cached:
            return self._cached[attention]
        computed = caption_key_value(attention, self.text)
        size = sum(part.numel() * part.element_size() for part in computed)
        if self._bytes + size <= self.max_bytes:
            self._bytes += size
            self._cached[attention] = computed
        return computed


def caption_key_value(attention: Any, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return key and value, each (B, K, L, d), of embedded captions (B, L, E) in a layer of PRX."""
    key, value = rearrange(attention.txt_kv_proj(text), "b l (part k d) -> part b k l d", part=2, k=attention.heads)
    return attention.norm_added_k(key), value


class SamplingCache:
    """Captions by the identity of their tensors, and rotations by the size of the token grid.

    The cache holds the caption tensors themselves, so that no other tensor can get their identity.
    """

    def __init__(self) -> None:
        """Start empty."""
        self.rotary: dict[tuple[int, int], Tensor] = {}
        """Rotation of the tokens of a grid (h, w)."""
        self._captions: list[tuple[Tensor, Tensor, TrimmedCaptions, CaptionKeysValues]] = []

    def find(self, state: Tensor, mask: Tensor) -> tuple[TrimmedCaptions, CaptionKeysValues] | None:
        """Return what was computed from these very tensors, not from equal ones."""
        for cached_state, cached_mask, captions, keys_values in self._captions:
            if cached_state is state and cached_mask is mask:
                return captions, keys_values
        return None

    def add(self, state: Tensor, mask: Tensor, captions: TrimmedCaptions, text: Tensor) -> CaptionKeysValues:
        """Cache trimmed captions and their embedding (B, L, E)."""
        keys_values = CaptionKeysValues(text)
        self._captions.append((state, mask, captions, keys_values))
        return keys_values
