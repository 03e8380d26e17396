"""One text encoder with its tokenizer, read the way its architecture does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.models.architectures import Tower
from erase_sd.models.tensor_files import stream_tensors
from erase_sd.text.tokens import Segment


def assemble(Model: Any, config: Any, tensors: Iterable[tuple[str, Tensor]]) -> Any:
    """A CLIP text model around given tensors, float32, in eval mode.

    Built without initialising a weight and filled tensor by tensor, so the peak of memory is the
    model.

    Args:
        Model: `CLIPTextModel` or `CLIPTextModelWithProjection`.
        config: Its configuration.
        tensors: Names, with or without `text_model.`, and values of any float dtype.

    Raises:
        ValueError: If tensors are missing or misshapen.
    """
    with torch.device("meta"):
        model = Model(config)
    # transformers 5.6 dropped the prefix from one of the two classes; files have it, or not.
    wanted = {name.removeprefix("text_model."): name for name in model.state_dict()}
    state = {}
    for name, value in tensors:
        if full := wanted.get(name.removeprefix("text_model.")):
            # The largest table stays as it is: looked-up rows are widened when positions are added
            # to them.
            state[full] = value if full.endswith("token_embedding.weight") else value.float()
    missing = sorted(set(wanted.values()) - set(state))
    if missing:
        raise ValueError(f"the text encoder lacks {len(missing)} tensors, e.g. {missing[0]}")
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"the text encoder is misshapen: {str(error).splitlines()[-1].strip()}"
        ) from error
    for module in model.modules():  # position ids are no weights and were left on the meta device
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.is_meta:
                module.register_buffer(name, torch.arange(buffer.shape[-1])[None], persistent=False)
    return model.requires_grad_(False).eval()


class LoadedTower:
    """A text encoder with its tokenizer, read the way its architecture does."""

    def __init__(self, spec: Tower, tokenizer: Any, model: Any, *, pad: int | None = None) -> None:
        self.spec, self.tokenizer, self.model = spec, tokenizer, model
        eos = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.pad: int = eos if pad is None else pad
        config = model.config
        self.width: int = config.d_model if spec.kind == "t5" else config.hidden_size
        room: int = getattr(config, "max_position_embeddings", 512)
        self.length: int = spec.length or min(tokenizer.model_max_length, room)
        self.pooled_width = {"": 0, "pooler_output": self.width}.get(
            spec.pooled, getattr(config, "projection_dim", 0)
        )

    @classmethod
    def from_folder(cls, folder: Path, spec: Tower, variant: str) -> LoadedTower:
        """Load `tokenizer{suffix}/` and `text_encoder{suffix}/` in float32."""
        # Seconds of importing, which reading a fingerprint does without.
        from transformers import (
            AutoTokenizer,
            CLIPTextConfig,
            CLIPTextModel,
            CLIPTextModelWithProjection,
            CLIPTokenizer,
            T5EncoderModel,
        )

        where = folder / f"text_encoder{spec.suffix}"
        if not where.is_dir():
            raise ValueError(f"{folder} has no {where.name}/, which this architecture reads")
        Tokenizer = AutoTokenizer if spec.kind == "t5" else CLIPTokenizer
        tokenizer = Tokenizer.from_pretrained(
            folder / f"tokenizer{spec.suffix}", local_files_only=True, trust_remote_code=False
        )
        middle = f".{variant}" if variant and any(where.glob(f"*.{variant}*.safetensors*")) else ""
        file = where / f"model{middle}.safetensors"
        if spec.kind == "clip" and file.is_file():
            Model = CLIPTextModelWithProjection if spec.pooled == "text_embeds" else CLIPTextModel
            config = CLIPTextConfig.from_pretrained(where, local_files_only=True)
            return cls(spec, tokenizer, assemble(Model, config, stream_tensors(file)))
        Model = T5EncoderModel if spec.kind == "t5" else CLIPTextModel
        model, about = Model.from_pretrained(
            where,
            dtype=torch.float32,
            variant=middle[1:] or None,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        if missing := sorted(about["missing_keys"]):  # the library would fill them at random
            raise ValueError(f"{where} lacks {len(missing)} tensors, e.g. {missing[0]}")
        return cls(spec, tokenizer, model.eval())

    @property
    def tensors(self) -> list[tuple[str, Tensor]]:
        """Its float tensors sorted by name, without `text_model.`."""
        state = self.model.state_dict().items()
        named = [(n.removeprefix("text_model."), v) for n, v in state if v.is_floating_point()]
        return sorted(named, key=lambda pair: pair[0])

    def token_ids(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """What the encoder reads of each prompt: its token ids, less what is cut off."""
        ids = self.tokenizer(list(prompts), truncation=False, add_special_tokens=False).input_ids
        room = self.length - (1 if self.spec.kind == "t5" else 2)
        return [tuple(own[:room]) for own in ids]

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], *, length: int | None = None
    ) -> tuple[list[Segment], Tensor | None, int]:
        """Token states, pooled features if the spec names them, and how many prompts were cut.

        The first segment is what the architecture reads; the others are those of the layers that
        hosts may feed in its place.

        Args:
            prompts: `n` prompts.
            length: Compute this many positions, more if the prompts need them. A causal encoder
                (CLIP) gives them the states they have in a full line; T5 is computed in full.
        """
        batch = self.tokenizer(list(prompts), truncation=False, add_special_tokens=False).input_ids
        eos = self.tokenizer.eos_token_id
        head = [] if self.spec.kind == "t5" else [self.tokenizer.bos_token_id]
        room = self.length - len(head) - 1
        line_length = self.length
        if length and self.spec.kind == "clip":
            line_length = min(self.length, max(length, 2 + max(map(len, batch), default=0)))
        ids = torch.full((len(batch), line_length), self.pad)
        mask = torch.zeros(len(batch), line_length, dtype=torch.long)
        for row, own in enumerate(batch):
            line = [*head, *own[:room], eos]
            ids[row, : len(line)] = torch.tensor(line)
            mask[row, : len(line)] = 1
        states, pooled = self.read(ids, mask)
        lengths = torch.tensor([min(len(b), room) for b in batch])
        return (
            [Segment(s.float().cpu(), lengths, len(head)) for s in states],
            None if pooled is None else pooled.float().cpu(),
            sum(len(b) > room for b in batch),
        )

    def read(self, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """What the encoder makes of tokens; a host's own encoder overrides this.

        Args:
            ids: `(n, L)` token ids.
            mask: `(n, L)` 1 where a token is no padding.

        Returns:
            `(n, L, d)` states of the architecture's layer and of each other that hosts may feed,
            and `(n, p)` pooled features if the spec names them.
        """
        device = next(self.model.parameters()).device
        options: dict[str, Any] = {"attention_mask": mask.to(device)} if self.spec.masked else {}
        if self.spec.layer != -1 or self.spec.also:
            options["output_hidden_states"] = True
        out = self.model(ids.to(device), **options)
        states = [
            out.last_hidden_state if self.spec.layer == -1 else out.hidden_states[self.spec.layer]
        ]
        if self.spec.also:  # transformers 5.6 dropped a level of one of its two classes
            norm = getattr(self.model, "text_model", self.model).final_layer_norm
            states += [norm(out.hidden_states[layer]) for layer in self.spec.also]
        return states, out[self.spec.pooled] if self.spec.pooled else None
