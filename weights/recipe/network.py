"""The network while it is trained: upstream's modules run in bfloat16, and the losses."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from whisper.model import ModelDimensions, MultiHeadAttention, Whisper

from .tokens import GRID, WINDOW_FRAMES
from .windows import IGNORE, WindowSource

DIMENSIONS = ModelDimensions(
    n_mels=80,
    n_audio_ctx=1500,
    n_audio_state=128,
    n_audio_head=2,
    n_audio_layer=2,
    n_vocab=51865,
    n_text_ctx=448,
    n_text_state=128,
    n_text_head=2,
    n_text_layer=2,
)


@dataclass(frozen=True)
class LossWeights:
    """How much each loss counts beside the cross-entropy of the tokens, which counts 1.

    Attributes
    ----------
    attention : float
        Cross-attention falls onto the time at which the predicted token is heard.
    spread : float
        ... and evenly over it: part of `attention`.
    frames : float
        Linear heads name the token and the phoneme at each encoder frame.
    """

    attention: float
    spread: float
    frames: float


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Apply a linear layer in bfloat16."""
    bias = None if module.bias is None else module.bias.bfloat16()
    return F.linear(x, module.weight.bfloat16(), bias)


def convolve(module: nn.Conv1d, x: Tensor) -> Tensor:
    """Apply a convolution and GELU in bfloat16."""
    assert module.bias is not None
    y = F.conv1d(x, module.weight.bfloat16(), module.bias.bfloat16(), module.stride, module.padding)
    return F.gelu(y)


def normalise(module: nn.LayerNorm, x: Tensor) -> Tensor:
    """Apply a layer norm in bfloat16."""
    return F.layer_norm(x, module.normalized_shape, module.weight.bfloat16(), module.bias.bfloat16(), module.eps)


def feed_forward(module: nn.Sequential, x: Tensor) -> Tensor:
    """Apply a block's MLP in bfloat16."""
    widen, narrow = module[0], module[2]
    assert isinstance(widen, nn.Linear)
    assert isinstance(narrow, nn.Linear)
    return linear(narrow, F.gelu(linear(widen, x)))


def project(module: MultiHeadAttention, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each (batch, n_head, n, 64)."""
    q, k, v = linear(module.query, x), linear(module.key, context), linear(module.value, context)
    q, k, v = (z.reshape(*z.shape[:2], module.n_head, -1).transpose(1, 2) for z in (q, k, v))
    return q, k, v


def join_heads(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """Apply the output projection to (batch, n_head, n, 64)."""
    return linear(module.out, x.transpose(1, 2).flatten(2))


def attend(module: MultiHeadAttention, x: Tensor, context: Tensor) -> Tensor:
    """Attend to all of the context."""
    q, k, v = project(module, x, context)
    weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)
    return join_heads(module, weights @ v)


def attend_causally(module: MultiHeadAttention, x: Tensor) -> Tensor:
    """Attend to what comes before."""
    q, k, v = project(module, x, x)
    return join_heads(module, F.scaled_dot_product_attention(q, k, v, is_causal=True))


def attend_with_weights(module: MultiHeadAttention, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Attend to all of the context and return the weights too: float32 (batch, n_head, n, n_context)."""
    q, k, v = project(module, x, context)
    weights = ((q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5).float().softmax(-1)
    return join_heads(module, weights.bfloat16() @ v), weights


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return Whisper's sinusoids for the given positions, (n, width)."""
    rates = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2).float())
    angles = positions.float()[:, None] * rates
    return torch.cat([torch.sin(angles), torch.cos(angles)], 1)


class Network(nn.Module):
    """Upstream's Whisper with a token table of the used tokens only, and heads for the training-only losses.

    All other tokens have zero rows in the exported table. Their logits are exactly 0, so together they are
    one more logit: log(n_unused). A timestamp's row is a free vector plus a map of its time's sinusoids.

    Parameters
    ----------
    source : WindowSource
        Gives the vocabulary and the phonemes.
    """

    def __init__(self, source: WindowSource) -> None:
        super().__init__()
        width = DIMENSIONS.n_text_state
        vocabulary = source.vocabulary
        self.n_text = vocabulary.n_text
        self.n_unused = DIMENSIONS.n_vocab - len(vocabulary)
        self.used = torch.from_numpy(vocabulary.tokens)
        self.whisper = Whisper(DIMENSIONS)
        del self.whisper.decoder.token_embedding
        timestamps = torch.zeros(len(vocabulary) - self.n_text, width)
        self.rows = nn.Parameter(torch.cat([torch.randn(self.n_text, width) * 0.08, timestamps]))
        self.times: Tensor
        self.register_buffer("times", sinusoids(torch.arange(0, WINDOW_FRAMES + 1, GRID), width))
        self.time_map = nn.Parameter(torch.randn(width, width) * 0.01 + torch.eye(width) * 0.08)
        with torch.no_grad():
            positions = sinusoids(torch.arange(DIMENSIONS.n_text_ctx), width)
            self.whisper.decoder.positional_embedding.copy_(positions * 0.1)
        self.frame_token_head = nn.Linear(width, self.n_text + 1)
        self.frame_phoneme_head = nn.Linear(width, len(source.corpus.phonemes))

    def token_table(self) -> Tensor:
        """Return the rows of the used tokens, (n_used, width)."""
        timestamps = self.rows[self.n_text :] + self.times @ self.time_map
        return torch.cat([self.rows[: self.n_text], timestamps])

    def forward(self, batch: dict[str, Tensor], weights: LossWeights) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a batch and its parts by name."""
        audio_features, before_last = self._encode(batch["mel"], batch["offsets"])
        table = self.token_table()
        hidden, attention = self._decode(batch["inputs"], audio_features, table)
        token_loss, accuracy = self._token_loss(hidden, table, batch["targets"])
        attention_loss = self._attention_loss(attention, batch["spans"], batch["targets"], weights.spread)
        token_scores = linear(self.frame_token_head, audio_features).float().flatten(0, 1)
        frame_token_loss = F.cross_entropy(token_scores, batch["frame_tokens"].flatten())
        phoneme_scores = linear(self.frame_phoneme_head, before_last).float().flatten(0, 1)
        frame_phoneme_loss = F.cross_entropy(phoneme_scores, batch["frame_phonemes"].flatten(), ignore_index=IGNORE)
        loss = token_loss + weights.attention * attention_loss
        loss = loss + weights.frames * (frame_token_loss + frame_phoneme_loss)
        return loss, {
            "tokens": token_loss.item(),
            "accuracy": accuracy,
            "attention": attention_loss.item(),
            "frame tokens": frame_token_loss.item(),
            "frame phonemes": frame_phoneme_loss.item(),
        }

    def _encode(self, mel: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the audio features and the output of the block before the last: (batch, n_frames, width)."""
        encoder = self.whisper.encoder
        x = convolve(encoder.conv2, convolve(encoder.conv1, mel.bfloat16())).transpose(1, 2)
        positions = offsets[:, None] + torch.arange(x.shape[1])
        x = x + encoder.positional_embedding.bfloat16()[positions]
        before_last = x
        for i, block in enumerate(encoder.blocks):
            normal = normalise(block.attn_ln, x)
            x = x + attend(block.attn, normal, normal)
            x = x + feed_forward(block.mlp, normalise(block.mlp_ln, x))
            if i == len(encoder.blocks) - 2:
                before_last = x
        return normalise(encoder.ln_post, x), before_last

    def _decode(self, inputs: Tensor, audio_features: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Return the hidden states and the cross-attention of the last half of the blocks.

        That half holds Whisper's default alignment heads. Attention is (batch, heads, n_tokens, n_frames).
        """
        decoder = self.whisper.decoder
        x = (F.embedding(inputs, table) + decoder.positional_embedding[: inputs.shape[1]]).bfloat16()
        attention = []
        for i, block in enumerate(decoder.blocks):
            x = x + attend_causally(block.attn, normalise(block.attn_ln, x))
            normal = normalise(block.cross_attn_ln, x)
            if i >= len(decoder.blocks) // 2:
                attended, weights = attend_with_weights(block.cross_attn, normal, audio_features)
                attention.append(weights)
            else:
                attended = attend(block.cross_attn, normal, audio_features)
            x = x + attended
            x = x + feed_forward(block.mlp, normalise(block.mlp_ln, x))
        return normalise(decoder.ln, x), torch.cat(attention, 1)

    def _token_loss(self, hidden: Tensor, table: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Return the cross-entropy over the used tokens and the unused ones as one, and the accuracy."""
        flat = targets.flatten()
        learnt = flat >= 0
        wanted = flat[learnt]
        logits = (hidden.flatten(0, 1)[learnt] @ table.T.bfloat16()).float()
        unused = logits.new_full((len(logits), 1), math.log(self.n_unused))
        loss = F.cross_entropy(torch.cat([logits, unused], 1), wanted)
        return loss, (logits.argmax(1) == wanted).float().mean().item()

    def _attention_loss(self, attention: Tensor, spans: Tensor, targets: Tensor, spread: float) -> Tensor:
        """Return how far cross-attention is from the time of the predicted token.

        The first term asks for all of the attention inside of the span; the second one for an even share of
        each frame, since `transcribe()` aligns words with frames, and a word's frames must all be the word's.
        """
        frames = torch.arange(attention.shape[-1])
        inside = (frames >= spans[..., :1]) & (frames <= spans[..., 1:])  # (batch, n_tokens, n_frames)
        heard = (spans[..., 1] > 0) & (targets >= 0) & inside.any(-1)
        mass = (attention * inside[:, None]).sum(-1).clamp_min(1e-4)
        loss = -mass.log().mean(1)[heard].mean()
        n_inside = inside.sum(-1).clamp_min(1)[:, None]
        unevenness = -((attention + 1e-5).log() * inside[:, None]).sum(-1) / n_inside - n_inside.log()
        return loss + spread * unevenness.mean(1)[heard].mean()

    @torch.no_grad()
    def export(self, path: Path) -> None:
        """Write a checkpoint in OpenAI's format, float16."""
        state = {name: tensor.clone() for name, tensor in self.whisper.state_dict().items()}
        table = torch.zeros(DIMENSIONS.n_vocab, DIMENSIONS.n_text_state)
        table[self.used] = self.token_table()
        state["decoder.token_embedding.weight"] = table
        half = {name: tensor.half().contiguous() for name, tensor in state.items()}
        torch.save({"dims": dataclasses.asdict(DIMENSIONS), "model_state_dict": half}, path)
