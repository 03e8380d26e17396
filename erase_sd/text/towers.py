"""One text encoder with its tokenizer, read the way its architecture does."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase_sd.models.tensor_files import stream_tensors
from erase_sd.models.towers import Tower
from erase_sd.text.lines import Lines, Writer
from erase_sd.text.tokens import Segment

# A language model's decoder, whatever wraps it and however files call that.
_DECODER = re.compile(r"(?:^|\.)((?:embed_tokens|norm)\.weight|layers\.\d+\..+)$")
_OTHER = re.compile(r"visual|vision|multi_modal")


def decoder_name(name: str) -> str | None:
    """Name of a language model's tensor inside its decoder; None if it lies elsewhere.

    >>> decoder_name("model.language_model.layers.0.mlp.up_proj.weight")
    'layers.0.mlp.up_proj.weight'
    """
    found = _DECODER.search(name)
    return found[1] if found and not _OTHER.search(name) else None


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
        self.spec, self.model = spec, model
        self.writer = Writer(tokenizer, spec) if spec.kind == "llm" else None
        self.tokenizer = self.writer.tokenizer if self.writer else tokenizer
        eos, own = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        self.pad: int = (eos if own is None else own) if pad is None else pad
        config = model.config.get_text_config()
        self.width: int = getattr(config, "d_model", 0) or config.hidden_size
        self.width *= max(1, len(spec.taps))
        states: int = config.num_hidden_layers + 1
        for layer in (spec.layer, *spec.also, *spec.taps):
            if not -states <= layer < states:
                raise ValueError(f"expected a text encoder with layer {layer}, got {states - 1}")
        room: int = getattr(config, "max_position_embeddings", 512)
        longest = self.tokenizer.model_max_length
        if not isinstance(longest, (int, float)) or not longest >= 3:
            raise ValueError(
                f"expected a tokenizer's model_max_length of 3 or more, got {longest!r}"
            )
        self.length: int = spec.length or int(min(longest, room))
        self.pooled_width = {"": 0, "pooler_output": self.width}.get(
            spec.pooled, getattr(config, "projection_dim", 0)
        )

    @classmethod
    def from_folder(cls, folder: Path, spec: Tower, variant: str) -> LoadedTower:
        """Load `tokenizer{suffix}/` and `text_encoder{suffix}/` in float32."""
        # Seconds of importing, which reading a fingerprint does without.
        import transformers as tf

        where = folder / f"text_encoder{spec.suffix}"
        if not where.is_dir():
            raise ValueError(f"{folder} has no {where.name}/, which this architecture reads")
        Tokenizer = tf.CLIPTokenizer if spec.kind == "clip" else tf.AutoTokenizer
        tokenizer = Tokenizer.from_pretrained(
            folder / f"tokenizer{spec.suffix}", local_files_only=True, trust_remote_code=False
        )
        middle = f".{variant}" if variant and any(where.glob(f"*.{variant}*.safetensors*")) else ""
        file = where / f"model{middle}.safetensors"
        Clip = tf.CLIPTextModelWithProjection if spec.pooled == "text_embeds" else tf.CLIPTextModel
        if spec.kind == "clip" and file.is_file():
            config = tf.CLIPTextConfig.from_pretrained(where, local_files_only=True)
            return cls(spec, tokenizer, assemble(Clip, config, stream_tensors(file)))
        Model = {
            "clip": Clip,
            "t5": tf.T5EncoderModel,
            "umt5": tf.UMT5EncoderModel,
            "llm": tf.AutoModel,
        }[spec.kind]
        model, about = Model.from_pretrained(
            where,
            # Language models of billions of weights run as they are stored, in pipelines too.
            dtype="auto" if spec.kind == "llm" else torch.float32,
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
        """Its float tensors sorted by name, without `text_model.`.

        Of a language model those of its decoder alone: files hold it under many a name, with more
        beside it.
        """
        state = self.model.state_dict().items()
        llm = self.spec.kind == "llm"
        named = (
            (decoder_name(n) if llm else n.removeprefix("text_model."), v)
            for n, v in state
            if v.is_floating_point()
        )
        return sorted(((n, v) for n, v in named if n), key=lambda pair: pair[0])

    def token_ids(self, prompts: Sequence[str]) -> list[tuple[int, ...]]:
        """What the encoder reads of each prompt: its token ids, less what is cut off."""
        ids = self.tokenizer(list(prompts), truncation=False, add_special_tokens=False).input_ids
        room = None if self.writer else self.length - (2 if self.spec.kind == "clip" else 1)
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
                gives them the states they have in a full line; T5 is computed in full.
        """
        if self.spec.lowercase:
            prompts = [p.lower().strip() for p in prompts]
        lines = self.writer.write(prompts, length=length) if self.writer else None
        lines = lines or self._lines(prompts, length if self.spec.causal else None)
        states, pooled = self.read(lines.ids, lines.mask)
        told = [self._segment(lines, s.float().cpu()) for s in states]
        return told, None if pooled is None else pooled.float().cpu(), lines.cut

    def _states(self, out: Any) -> Tensor:
        """`(n, L, d)` float32: the hidden states that the pipeline takes."""
        if self.spec.taps:
            return torch.cat([out.hidden_states[k].float().cpu() for k in self.spec.taps], dim=-1)
        if self.spec.layer == -1 and self.spec.kind != "llm":
            return out.last_hidden_state.float().cpu()
        return out.hidden_states[self.spec.layer].float().cpu()

    def _lines(self, prompts: Sequence[str], length: int | None) -> Lines:
        """Prompts between BOS, of CLIP, and EOS."""
        batch = self.tokenizer(list(prompts), truncation=False, add_special_tokens=False).input_ids
        head = [self.tokenizer.bos_token_id] if self.spec.kind == "clip" else []
        room, cells = self.length - len(head) - 1, self.length
        if length:
            cells = min(cells, max(length, 2 + max(map(len, batch), default=0)))
        ids = torch.full((len(batch), cells), self.pad)
        mask = torch.zeros(len(batch), cells, dtype=torch.long)
        for row, own in enumerate(batch):
            line = [*head, *own[:room], self.tokenizer.eos_token_id]
            ids[row, : len(line)] = torch.tensor(line)
            mask[row, : len(line)] = 1
        lengths = torch.tensor([min(len(b), room) for b in batch])
        first = torch.full_like(lengths, len(head))
        cut = sum(len(b) > room for b in batch)
        return Lines(ids, mask, first, lengths, first + lengths, cut)

    def _segment(self, lines: Lines, states: Tensor) -> Segment:
        """The states that the denoiser is given, and where in them a prompt stands."""
        position = torch.arange(states.shape[1])[None]
        last = lines.last[:, None]
        read = {
            "read": torch.ones_like(lines.mask, dtype=torch.bool),
            "first": position <= last + 1,
            "ignored": lines.mask.bool(),
        }[self.spec.padding]
        written = read & (position >= lines.first[:, None])
        if not self.spec.causal and self.spec.padding == "read":
            written = written & (position <= last)  # T5 writes no prompt into its padding
        gone = self.spec.dropped
        kept = torch.arange(gone, states.shape[1])
        if self.spec.window and self.writer:
            gone = self.writer.instruction - 2  # all of the instruction but its ends
            kept = torch.cat([torch.zeros(1, dtype=torch.long), kept[gone + 1 :]])
        return Segment(
            states[:, kept],
            lines.first - gone,
            lines.lengths,
            lines.end - gone,
            written[:, kept],
            read[:, kept],
        )

    def read(self, ids: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """What the encoder makes of tokens; a host's own encoder overrides this.

        Args:
            ids: `(n, L)` token ids.
            mask: `(n, L)` 1 where a token is no padding.

        Returns:
            `(n, L, d)` states of the architecture's layer and of each other that hosts may feed,
            and `(n, p)` pooled features if the spec names them.

        Raises:
            ValueError: If the encoder has no such token.
        """
        table = self.model.get_input_embeddings().weight
        if ids.numel() and int(ids.max()) >= len(table):
            raise ValueError(
                f"expected tokens below {len(table)}, which the text encoder knows, got "
                f"{int(ids.max())}: the tokenizer is another model's"
            )
        device = next(self.model.parameters()).device
        options: dict[str, Any] = {}
        if self.spec.masked:
            options["attention_mask"] = mask.to(device)
        if self.spec.layer != -1 or self.spec.also or self.spec.kind == "llm":
            options["output_hidden_states"] = True
        if self.spec.kind == "llm":
            options["use_cache"] = False
            if hasattr(self.model, "lm_head"):  # whose words nobody reads
                options["logits_to_keep"] = 1
        out = self.model(ids.to(device), **options)
        states = [self._states(out)]
        if self.spec.also:  # transformers 5.6 dropped a level of one of its two classes
            norm = getattr(self.model, "text_model", self.model).final_layer_norm
            states += [norm(out.hidden_states[layer]) for layer in self.spec.also]
        return states, out[self.spec.pooled] if self.spec.pooled else None
