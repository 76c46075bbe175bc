"""Floating-point operations of transformers in closed form, for one sample and one forward pass.

One multiply-accumulate counts as two operations (FLOP). Many papers print multiply-accumulates and call them FLOPs:
DiT-XL/2 at 256 pixels has 118.6 G of those (2212.09748, table 4), which are 237 GFLOP here. Counted are matrix products
and convolutions, as torch's FlopCounterMode does; norms, activations and softmax are below 1 %.

For tokens n, keys k, width d and feed-forward width m a block costs 2 n (4 d^2 + 2 d m) for its matrices and 4 n k d
for the products of queries, keys and values (2001.08361, table 1, with attention over all keys).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def linear(rows: float, inputs: float, outputs: float) -> float:
    """Return the FLOP of a matrix (inputs, outputs) applied to ``rows`` rows."""
    return 2 * rows * inputs * outputs


def attention_products(queries: float, keys: float, width: float) -> float:
    """Return the FLOP of query times key and weight times value, over all heads of a total width."""
    return 4 * queries * keys * width


def block(tokens: float, width: float, hidden: float, matrices: int = 2) -> float:
    """Return the FLOP of one block: self-attention and feed-forward.

    Args:
        tokens: n, all of which attend to all.
        width: d, channels.
        hidden: m, width of the feed-forward part.
        matrices: Matrices of the feed-forward part: 2, or 3 if it is gated.
    """
    projections = linear(tokens, width, 4 * width)
    return projections + attention_products(tokens, tokens, width) + matrices * linear(tokens, width, hidden)


@dataclass(frozen=True)
class TowerShape:
    """Shape of a transformer tower of CLIP.

    Args:
        layers: Number of blocks.
        width: d, channels.
        hidden: m, width of the feed-forward part.
        embed_dim: Size of the shared embedding, into which one state is projected.
    """

    layers: int
    width: int
    hidden: float
    embed_dim: int


def patch_count(height: int, width: int, patch: int) -> int:
    """Return the number of whole patches of an image or latent of height x width."""
    return (height // patch) * (width // patch)


def image_tower(
    shape: TowerShape, image_size: int, patch: int, dropout: float = 0.0, whole_blocks: bool = False
) -> float:
    """Return the FLOP of a vision transformer with a class token for one image.

    The last block computes the output of its attention and the feed-forward part for the class token only.

    Args:
        shape: Shape of the tower.
        image_size: H = W in pixels.
        patch: Pixels per side of a patch.
        dropout: Share of the patches that are dropped after their embedding (FLIP, 2212.00794), in [0, 1).
        whole_blocks: The last block computes all tokens, as open_clip does.
    """
    patches = patch_count(image_size, image_size, patch)
    tokens = 1 + (max(1, int(patches * (1 - dropout))) if dropout else patches)
    embedding = linear(patches, 3 * patch * patch, shape.width)
    blocks = shape.layers * block(tokens, shape.width, shape.hidden)
    if not whole_blocks:
        unread = tokens - 1
        blocks -= linear(unread, shape.width, shape.width) + attention_products(unread, tokens, shape.width)
        blocks -= 2 * linear(unread, shape.width, shape.hidden)
    return embedding + blocks + linear(1, shape.width, shape.embed_dim)


def text_tower(shape: TowerShape, tokens: float) -> float:
    """Return the FLOP of a text transformer for one caption; causal attention counts in full, as kernels compute it.

    Args:
        shape: Shape of the tower.
        tokens: Tokens of the caption: the context length if padding is computed, else the mean number of real ones.
    """
    return shape.layers * block(tokens, shape.width, shape.hidden) + linear(1, shape.width, shape.embed_dim)


def tokens_of_blocks(depth: int, tokens: int, routed: tuple[int, int, float] | None = None,
                     masked: tuple[int, float] | None = None) -> list[int]:  # fmt: skip
    """Return how many tokens each block of a denoiser sees.

    Args:
        depth: Number of blocks.
        tokens: Tokens of the whole latent.
        routed: Block after which tokens are taken out, block after which they are back, and their share (TREAD,
            2501.04765). Negative numbers count from the last block, -1.
        masked: Number of first blocks that see all tokens, and the share that is then dropped (2407.15811).
    """
    counts = [tokens] * depth
    if routed is not None:
        first, last, share = routed
        for number in range(first % depth + 1, last % depth + 1):
            counts[number] = max(1, counts[number] - round(share * counts[number]))
    if masked is not None:
        full, share = masked
        for number in range(full, depth):
            counts[number] = max(1, counts[number] - round(share * counts[number]))
    return counts


@dataclass(frozen=True)
class DenoiserShape:
    """Shape of a diffusion transformer.

    Args:
        depth: Number of blocks.
        width: d, channels.
        hidden: m, width of the feed-forward part.
        channels: C of the latents.
        patch: Latent positions per side of a token.
        context: D of the caption states; 0 without captions.
        outputs: Channels that are predicted; 2 C for DiT, which also learns a variance.
    """

    depth: int
    width: int
    hidden: float
    channels: int
    patch: int = 2
    context: int = 0
    outputs: int | None = None

    def ends(self, tokens: int) -> float:
        """Return the FLOP of the patch embedding and the output layer with its modulation."""
        area = self.patch**2
        output = linear(tokens, self.width, (self.outputs or self.channels) * area) + linear(
            1, self.width, 2 * self.width
        )
        return linear(tokens, self.channels * area, self.width) + output

    def timestep(self) -> float:
        """Return the FLOP of the embedding of the timestep, an MLP on 256 sines."""
        return linear(1, 256, self.width) + linear(1, self.width, self.width)


def dit(shape: DenoiserShape, counts: Sequence[int]) -> float:
    """Return the FLOP of DiT with adaLN-Zero (2212.09748): each block computes six modulations from the timestep.

    Args:
        shape: Shape of the transformer.
        counts: Tokens of each block, see ``tokens_of_blocks``; the first number is that of the whole latent.
    """
    blocks = sum(block(count, shape.width, shape.hidden) for count in counts)
    return blocks + len(counts) * linear(1, shape.width, 6 * shape.width) + shape.ends(counts[0]) + shape.timestep()


def pixart(shape: DenoiserShape, counts: Sequence[int], caption: float) -> float:
    """Return the FLOP of PixArt (2310.00426): cross-attention to the caption, one modulation for all blocks.

    Args:
        shape: Shape of the transformer.
        counts: Tokens of each block, see ``tokens_of_blocks``.
        caption: Tokens of the caption.
    """
    width = shape.width
    cross = sum(
        linear(count, width, 2 * width) + linear(caption, width, 2 * width) + attention_products(count, caption, width)
        for count in counts
    )
    captions = linear(caption, shape.context, width) + linear(caption, width, width)
    blocks = sum(block(count, width, shape.hidden) for count in counts) + cross
    return blocks + captions + linear(1, width, 6 * width) + shape.ends(counts[0]) + shape.timestep()


def prx(shape: DenoiserShape, counts: Sequence[int], caption: float) -> float:
    """Return the FLOP of PRX: image tokens attend to image and caption; a gated feed-forward part; adaLN per block.

    Args:
        shape: Shape of the transformer.
        counts: Tokens of each block, see ``tokens_of_blocks``.
        caption: Tokens of the caption, which each block turns into keys and values.
    """
    width = shape.width
    blocks = sum(
        block(count, width, shape.hidden, matrices=3)
        + linear(caption, width, 2 * width)
        + attention_products(count, caption, width)
        + linear(1, width, 6 * width)
        for count in counts
    )
    return blocks + linear(caption, shape.context, width) + shape.ends(counts[0]) + shape.timestep()


def mmdit(shape: DenoiserShape, counts: Sequence[int], caption: float) -> float:
    """Return the FLOP of MMDiT (2403.03206): image and caption have their own matrices and attend to each other.

    In the last block the caption only gives keys and values. The pooled caption is embedded like the timestep.

    Args:
        shape: Shape of the transformer.
        counts: Tokens of each block, see ``tokens_of_blocks``.
        caption: Tokens of the caption, all of which each block sees.
    """
    width, total = shape.width, 0.0
    for number, count in enumerate(counts):
        last = number == len(counts) - 1
        joint = count + caption
        total += linear(joint, width, 3 * width) + attention_products(joint, joint, width)
        streams = count if last else joint
        total += linear(streams, width, width) + 2 * linear(streams, width, shape.hidden)
        total += linear(1, width, (6 + (2 if last else 6)) * width)
    pooled = linear(1, shape.context, width) + linear(1, width, width)
    return total + pooled + linear(caption, shape.context, width) + shape.ends(counts[0]) + shape.timestep()


def mlp(rows: float, sizes: Sequence[int]) -> float:
    """Return the FLOP of an MLP with these layer sizes, such as the projection of representation alignment."""
    return sum(linear(rows, inputs, outputs) for inputs, outputs in pairwise(sizes))


@dataclass(frozen=True)
class ContrastiveLossCost:
    """Cost of the contrastive loss on one rank, per step.

    Args:
        flops: FLOP of the logits and their two gradients.
        received_bytes: Bytes of features that the rank receives.
        logit_bytes: Bytes of one matrix of logits, if it is kept whole.
    """

    flops: float
    received_bytes: float
    logit_bytes: float


def contrastive_loss(batch: int, ranks: int, embed_dim: int, bytes_per_value: int = 4, tile: int | None = None,
                     gathered: bool = True) -> ContrastiveLossCost:  # fmt: skip
    """Return the cost of a softmax or sigmoid loss over all pairs of a batch.

    Args:
        batch: Pairs of all ranks together.
        ranks: Number of ranks.
        embed_dim: D, size of the embedding.
        bytes_per_value: Bytes per feature and logit.
        tile: Rows of logits that exist at a time; None keeps all of the rank's rows.
        gathered: True if each rank computes all B^2 logits of the gathered batch; False if only those of its own images
            with all texts and of its own texts with all images (ring, or local loss).
    """
    local = batch // ranks
    rows = batch if gathered else 2 * local
    return ContrastiveLossCost(
        flops=3 * linear(rows, embed_dim, batch),
        received_bytes=2 * (batch - local) * embed_dim * bytes_per_value,
        logit_bytes=min(rows, tile or rows) * batch * bytes_per_value,
    )
