"""A small transformer that reads a window of text and names the character that follows it."""

import torch
from torch import Tensor, nn

WIDTH, HEADS, LAYERS = 64, 4, 2


class Transformer(nn.Module):
    """Two layers of a pre-norm encoder, 64 wide, with four heads; what it says is read off the last character.

    Args:
        length: characters of a window.
        classes: different characters.
    """

    def __init__(self, length: int, classes: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(classes, WIDTH)
        self.places = nn.Parameter(0.02 * torch.randn(length, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        for weight in self.layers.parameters():
            if weight.ndim > 1:  # copies of one layer would start alike
                nn.init.xavier_uniform_(weight)
        self.following = nn.Linear(WIDTH, classes)

    def forward(self, codes: Tensor) -> Tensor:
        """Windows as numbers of characters, `[N, 1, side, side]` floats, to logits `[N, classes]`."""
        return self.following(self.layers(self.characters(codes.flatten(1).long()) + self.places)[:, -1])


def transformer(channels: int, size: int, classes: int) -> nn.Module:
    """The network for windows of `size * size` characters; 114,656 parameters for 96 of them in windows of 64."""
    if channels != 1:
        raise ValueError("transformer reads text, dataset=text and pixels=codes")
    return Transformer(size * size, classes)
