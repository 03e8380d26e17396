"""Prompts to feature rows: text encoders, token rules, truncation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erase_sd.moments import SecondMoment

logger = logging.getLogger("erase_sd")

TOKEN_RULES: dict[str, str] = {
    "all-but-bos": "every position but the first: words, EOS and padding",
    "words": "the prompt's own tokens",
    "words+eos": "the prompt's own tokens and the EOS that closes them",
    "last-subject": "the prompt's last own token",
    "all": "all positions, the constant BOS included",
}


@dataclass(frozen=True, eq=False)
class PromptStates:
    """What the U-Net sees of some prompts.

    Attributes:
        prompts: The `n` prompts.
        states: `(n, L, d)` float32 token states.
        lengths: `(n,)` own tokens of each prompt; EOS stands at `lengths + 1`.
        truncated: How many prompts lost their end.
    """

    prompts: tuple[str, ...]
    states: Tensor
    lengths: Tensor
    truncated: int = 0

    def mask(self, rule: str) -> Tensor:
        """`(n, L)` bool: which positions a token rule picks."""
        if rule not in TOKEN_RULES:
            raise ValueError(f"expected a token rule of {', '.join(TOKEN_RULES)}; got {rule!r}")
        position = torch.arange(self.states.shape[1])[None]
        last = self.lengths[:, None]
        if rule == "all":
            return (position >= 0).expand(len(last), -1)
        if rule == "all-but-bos":
            return (position >= 1).expand(len(last), -1)
        if rule == "words":
            return (position >= 1) & (position <= last)
        if rule == "words+eos":
            return (position >= 1) & (position <= last + 1)
        # An empty prompt has no subject; its EOS is the nearest thing (the rule `mask.sum() - 2` of
        # other code gives BOS, which every prompt shares).
        return position == last.clamp(min=1)

    def rows(self, rule: str) -> Tensor:
        """`(m, d)` the states a token rule picks, all prompts together."""
        return self.states[self.mask(rule)]

    @property
    def subjects(self) -> Tensor:
        """`(n, d)` each prompt's last own token."""
        return self.rows("last-subject")


class TextEncoder:
    """A text encoder and its tokenizer as a Stable Diffusion pipeline uses them.

    Attributes:
        width: Feature dimension `d`.
        source: Where it came from, for messages and provenance.
    """

    def __init__(self, tokenizer: Any, model: Any, *, source: str = "") -> None:
        self.tokenizer = tokenizer
        self.model = model
        self.source = source
        self.width: int = model.config.hidden_size
        self.length: int = min(tokenizer.model_max_length, model.config.max_position_embeddings)
        self._fingerprint: str | None = None

    @classmethod
    def from_folder(cls, folder: str | Path, *, variant: str = "", device: str = "cpu") -> TextEncoder:
        """Load only `tokenizer/` and `text_encoder/` of a diffusers folder, in float32."""
        from transformers import CLIPTextModel, CLIPTokenizer

        folder = Path(folder)
        quiet = logging.getLogger("transformers.modeling_utils")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
            model = CLIPTextModel.from_pretrained(
                folder / "text_encoder",
                dtype=torch.float32,
                variant=variant if (folder / "text_encoder" / f"model.{variant}.safetensors").is_file() else None,
                use_safetensors=True,
                local_files_only=True,
            )
        except Exception as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cannot load the text encoder of {folder}: {reason}") from error
        finally:
            quiet.setLevel(level)
        return cls(tokenizer, model.eval().to(device), source=str(folder))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights' names, shapes and values rounded to float16 (as `tensor_hash`)."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, value in sorted(self.model.state_dict().items()):
                if value.is_floating_point():
                    digest.update(f"{name.removeprefix('text_model.')}{tuple(value.shape)}".encode())
                    digest.update(value.detach().half().cpu().contiguous().numpy().tobytes())
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> PromptStates:
        """Token states of some prompts; longer ones lose their end, as in the pipeline."""
        batch = self.tokenizer(list(prompts), truncation=False, add_special_tokens=False).input_ids
        room = self.length - 2
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(batch), self.length), pad if pad is not None else eos)
        for row, own in enumerate(batch):
            own = own[:room]
            ids[row, : len(own) + 2] = torch.tensor([bos, *own, eos])
        device = next(self.model.parameters()).device
        states = self.model(ids.to(device)).last_hidden_state.float().cpu()
        return PromptStates(
            tuple(prompts),
            states,
            torch.tensor([min(len(b), room) for b in batch]),
            sum(len(b) > room for b in batch),
        )

    def stream(self, prompts: Sequence[str], *, batch: int = 64, progress: str | None = None) -> Iterator[PromptStates]:
        """Encode in batches, so that memory does not grow with the list; warns of cut prompts once."""
        starts: Any = range(0, len(prompts), batch)
        if progress and len(prompts) > 4 * batch:
            starts = tqdm(starts, desc=progress, unit="batch")
        cut = 0
        for start in starts:
            states = self.encode(prompts[start : start + batch])
            cut += states.truncated
            yield states
        if cut:
            logger.warning("%d of %d prompts are longer than %d tokens and were cut", cut, len(prompts), self.length)

    def moment(self, prompts: Sequence[str], rule: str, *, progress: str | None = None) -> SecondMoment:
        """Second moment of the states that a token rule picks, over all prompts."""
        total = SecondMoment.zeros(self.width)
        for states in self.stream(prompts, progress=progress):
            total = total + SecondMoment.of(states.rows(rule))
        return total

    def subjects(self, prompts: Sequence[str]) -> Tensor:
        """`(n, d)` float64 last-subject states of all prompts."""
        if not prompts:
            return torch.zeros(0, self.width, dtype=torch.float64)
        return torch.cat([s.subjects for s in self.stream(prompts)]).double()
