"""The trained Llama of 15 M parameters and nine stories that quality is measured with.

``data/llm`` beside the checkout; see its README. The tokenizer is in the format of llama2.c.
"""

import struct
from pathlib import Path
from typing import Final

import torch
from torch import nn

from gpu_optimizer.quantization.filling import fill
from gpu_optimizer.quantization.model_folders import folder_weights, model_without_values

N_TOKENS: Final = 256
"""What the model was trained to read at once."""
_N_VOCABULARY: Final = 32000
_BEGIN: Final = 1
_FIRST_BYTE: Final = 3


def story_tokens(folder: Path) -> list[int]:
    """Tokens of all stories, each behind a token for its beginning."""
    text = (folder / "tinystories_valid_9stories.txt").read_text(encoding="utf-8")
    stories = [story.strip() for story in text.split("<|endoftext|>")]
    encode = _Encoder((folder / "tokenizer.bin").read_bytes())
    return [token for story in stories if story for token in (_BEGIN, *encode(story))]


def story_model(folder: Path) -> nn.Module:
    """The model, in fp32 on the CPU."""
    path = folder / "stories15M_hf"
    model, _ = model_without_values(path)
    with folder_weights(path) as weights:
        return fill(model, weights, torch.device("cpu"), torch.float32)


class _Encoder:
    """Byte pairs merged by score, as llama2.c's ``run.c`` does it."""

    def __init__(self, data: bytes) -> None:
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        at = 4
        for _ in range(_N_VOCABULARY):
            score, length = struct.unpack_from("<fi", data, at)
            self.pieces.append(data[at + 8 : at + 8 + length])
            self.scores.append(score)
            at += 8 + length
        self.numbers = {piece: number for number, piece in reversed([*enumerate(self.pieces)])}

    def __call__(self, text: str) -> list[int]:
        tokens = [self.numbers[b" "]]
        for character in text:
            piece = character.encode()
            known = self.numbers.get(piece)
            tokens += [known] if known is not None else [byte + _FIRST_BYTE for byte in piece]
        while True:
            best = self._best_pair(tokens)
            if best is None:
                return tokens
            at, merged = best
            tokens[at : at + 2] = [merged]

    def _best_pair(self, tokens: list[int]) -> tuple[int, int] | None:
        found = [
            (self.scores[merged], -at, merged)
            for at in range(len(tokens) - 1)
            if (merged := self.numbers.get(self.pieces[tokens[at]] + self.pieces[tokens[at + 1]]))
            is not None
        ]
        if not found:
            return None
        _, at, merged = max(found)
        return -at, merged
