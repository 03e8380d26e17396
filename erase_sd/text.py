"""Prompts to feature rows: text encoders, token rules, truncation."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from erase_sd.files import stream_tensors
from erase_sd.moments import SecondMoment
from erase_sd.sites import POOLED, TOKENS, Architecture, Tower, by_name, identify

logger = logging.getLogger("erase_sd")

_BATCH_ELEMENTS = 1 << 18  # token features in one batch

TOKEN_RULES: dict[str, str] = {
    "all-but-bos": "every position but the first: words, EOS and padding (of T5: words and EOS)",
    "words": "the prompt's own tokens",
    "words+eos": "the prompt's own tokens and the EOS that closes them",
    "last-subject": "the prompt's last own token",
    "all": "all positions, the constant BOS included",
}


@dataclass(frozen=True, eq=False)
class Segment:
    """One token sequence of some prompts.

    Attributes:
        states: `(n, L, d)` float32 token states.
        lengths: `(n,)` own tokens of each prompt; EOS follows them.
        start: Position of the first own token: 1 behind a BOS, 0 without one.
    """

    states: Tensor
    lengths: Tensor
    start: int = 1

    def mask(self, rule: str) -> Tensor:
        """`(n, L)` bool: which positions a token rule picks."""
        if rule not in TOKEN_RULES:
            raise ValueError(f"expected a token rule of {', '.join(TOKEN_RULES)}; got {rule!r}")
        position = torch.arange(self.states.shape[1])[None]
        end = self.lengths[:, None] + self.start  # where EOS stands
        if rule == "all":
            return (position >= 0).expand(len(end), -1)
        if rule == "all-but-bos" and self.start:
            return (position >= 1).expand(len(end), -1)
        if rule == "words":
            return (position >= self.start) & (position < end)
        if rule in ("words+eos", "all-but-bos"):  # T5 writes no prompt into its padding
            return (position >= self.start) & (position <= end)
        # An empty prompt has no subject; its EOS is the nearest thing (the rule `mask.sum() - 2` of
        # other code gives BOS, which every prompt shares).
        return position == (end - 1).clamp(min=self.start)

    @property
    def closing(self) -> Tensor:
        """`(n, d)` the EOS states: what the encoder makes of the whole prompt."""
        return self.states[torch.arange(len(self.lengths)), self.lengths + self.start]


@dataclass(frozen=True, eq=False)
class PromptStates:
    """What the denoiser sees of some prompts.

    Attributes:
        prompts: The `n` prompts.
        segments: Token sequences, one unless encoders of unlike length are chained.
        pooled: `(n, p)` float32 pooled features, or None.
        truncated: How many prompts lost their end.
    """

    prompts: tuple[str, ...]
    segments: tuple[Segment, ...]
    pooled: Tensor | None = None
    truncated: int = 0

    @property
    def states(self) -> Tensor:
        """`(n, L, d)` the tokens as the denoiser gets them; narrower segments are padded with zeros."""
        return torch.cat([_widen(s.states, self.width) for s in self.segments], dim=1)

    @property
    def width(self) -> int:
        """Features of a token."""
        return max(s.states.shape[2] for s in self.segments)

    def mask(self, rule: str) -> Tensor:
        """`(n, L)` bool: which tokens a rule picks."""
        return torch.cat([s.mask(rule) for s in self.segments], dim=1)

    def rows(self, rule: str, stream: str = TOKENS) -> Tensor:
        """`(m, d)` features of a stream, all prompts together; the rule picks tokens."""
        if stream == POOLED:
            if self.pooled is None:
                raise ValueError("this text encoder has no pooled features")
            return self.pooled
        return self.states[self.mask(rule)]

    @property
    def meanings(self) -> Tensor:
        """`(n, p or d)` one vector for each prompt: the pooled one, or the EOS state."""
        return self.pooled if self.pooled is not None else self.segments[0].closing


def _widen(states: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(states, (0, width - states.shape[-1]))


def assemble(Model: Any, config: Any, tensors: Iterable[tuple[str, Tensor]]) -> Any:
    """A CLIP text model around given tensors, float32, in eval mode.

    Built without initialising a weight and filled tensor by tensor, so the peak of memory is the model.

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
            # The largest table stays as it is: looked-up rows are widened when positions are added to them.
            state[full] = value if full.endswith("token_embedding.weight") else value.float()
    missing = sorted(set(wanted.values()) - set(state))
    if missing:
        raise ValueError(f"the text encoder lacks {len(missing)} tensors, e.g. {missing[0]}")
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the text encoder is misshapen: {str(error).splitlines()[-1].strip()}") from error
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
        self.pooled_width = {"": 0, "pooler_output": self.width}.get(spec.pooled, getattr(config, "projection_dim", 0))

    @classmethod
    def from_folder(cls, folder: Path, spec: Tower, variant: str) -> LoadedTower:
        """Load `tokenizer{suffix}/` and `text_encoder{suffix}/` in float32."""
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
        tokenizer = Tokenizer.from_pretrained(folder / f"tokenizer{spec.suffix}", local_files_only=True)
        middle = f".{variant}" if variant and any(where.glob(f"*.{variant}*.safetensors*")) else ""
        file = where / f"model{middle}.safetensors"
        if spec.kind == "clip" and file.is_file():
            Model = CLIPTextModelWithProjection if spec.pooled == "text_embeds" else CLIPTextModel
            config = CLIPTextConfig.from_pretrained(where, local_files_only=True)
            return cls(spec, tokenizer, assemble(Model, config, stream_tensors(file)))
        Model = T5EncoderModel if spec.kind == "t5" else CLIPTextModel
        model = Model.from_pretrained(
            where,
            dtype=torch.float32,
            variant=middle[1:] or None,
            use_safetensors=True,
            local_files_only=True,
        )
        return cls(spec, tokenizer, model.eval())

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], *, length: int | None = None) -> tuple[Segment, Tensor | None, int]:
        """Token states, pooled features if the spec names them, and how many prompts were cut.

        Args:
            prompts: `n` prompts.
            length: Compute this many positions, more if the prompts need them. A causal encoder (CLIP) gives
                them the states they have in a full line; T5 is computed in full.
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
        device = next(self.model.parameters()).device
        options: dict[str, Any] = {"attention_mask": mask.to(device)} if self.spec.masked else {}
        if self.spec.layer != -1:
            options["output_hidden_states"] = True
        out = self.model(ids.to(device), **options)
        states = out.last_hidden_state if self.spec.layer == -1 else out.hidden_states[self.spec.layer]
        lengths = torch.tensor([min(len(b), room) for b in batch])
        pooled = out[self.spec.pooled].float().cpu() if self.spec.pooled else None
        return Segment(states.float().cpu(), lengths, len(head)), pooled, sum(len(b) > room for b in batch)


class TextEncoder:
    """All text encoders of a pipeline, as its denoiser sees them.

    Attributes:
        architecture: Whose text features these are.
        towers: The encoders.
        width: Features of a token, `d`.
        widths: The same for every stream the encoders feed.
        source: Where it came from, for messages and provenance.
    """

    def __init__(self, architecture: Architecture, towers: Sequence[LoadedTower], *, source: str = "") -> None:
        self.architecture = architecture
        self.towers = list(towers)
        self.source = source
        segments: dict[int, int] = {}
        for tower in self.towers:
            if tower.spec.segment is not None:
                segments[tower.spec.segment] = segments.get(tower.spec.segment, 0) + tower.width
        self.width = max(segments.values())
        self.widths = {TOKENS: self.width}
        if pooled := sum(tower.pooled_width for tower in self.towers):
            self.widths[POOLED] = pooled
        self._fingerprint: str | None = None

    @classmethod
    def from_folder(
        cls, folder: str | Path, architecture: Architecture | None = None, *, variant: str = "", device: str = "cpu"
    ) -> TextEncoder:
        """Load only the tokenizers and text encoders of a diffusers folder, in float32.

        Args:
            folder: With `tokenizer/`, `text_encoder/` and, where the architecture has them, `…_2/`, `…_3/`.
            architecture: Default: that of Stable Diffusion 1 and 2.
            variant: Weights variant, such as "fp16".
            device: Where to run them.

        Raises:
            ValueError: If they cannot be loaded.
        """
        architecture = architecture or by_name("sd")
        quiet = logging.getLogger("transformers.modeling_utils")
        level = quiet.level
        quiet.setLevel(logging.ERROR)
        try:
            towers = [LoadedTower.from_folder(Path(folder), t, variant) for t in architecture.towers]
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"cannot load the text encoder of {folder}: {reason}") from error
        finally:
            quiet.setLevel(level)
        for tower in towers:
            tower.model.to(device)
        return cls(architecture, towers, source=str(folder))

    @classmethod
    def of(cls, pipe: Any) -> TextEncoder:
        """The text encoders of a live diffusers pipeline."""
        denoiser = getattr(pipe, "unet", None) or pipe.transformer
        config = dict(denoiser.config)
        config.setdefault("_class_name", type(denoiser).__name__)
        architecture = identify(config)
        towers = [
            LoadedTower(t, getattr(pipe, f"tokenizer{t.suffix}"), getattr(pipe, f"text_encoder{t.suffix}"))
            for t in architecture.towers
        ]
        return cls(architecture, towers, source=getattr(pipe, "name_or_path", ""))

    @property
    def tokenizer(self) -> Any:
        """The first tower's tokenizer, whose vocabulary stands for the encoder's."""
        return self.towers[0].tokenizer

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the weights' names, shapes and values rounded to float16 (as `tensor_hash`)."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for tower in self.towers:
                for name, value in sorted(tower.model.state_dict().items()):
                    if value.is_floating_point():
                        digest.update(f"{name.removeprefix('text_model.')}{tuple(value.shape)}".encode())
                        for chunk in value.detach().flatten().split(1 << 22):  # not the whole table twice over
                            digest.update(chunk.half().cpu().numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def encode(self, prompts: Sequence[str], *, length: int | None = None) -> PromptStates:
        """What the denoiser sees of some prompts; longer ones lose their end, as in the pipeline.

        Args:
            prompts: `n` prompts.
            length: See `LoadedTower.encode`; None computes what the pipeline would.
        """
        parts: dict[int, list[Segment]] = {}
        pooled, cut = [], 0
        for tower in self.towers:
            segment, vector, truncated = tower.encode(prompts, length=length)
            cut = max(cut, truncated)
            if tower.spec.segment is not None:
                parts.setdefault(tower.spec.segment, []).append(segment)
            if vector is not None:
                pooled.append(vector)
        segments = tuple(
            Segment(torch.cat([s.states for s in group], dim=2), group[0].lengths, group[0].start)
            for _, group in sorted(parts.items())
        )
        return PromptStates(tuple(prompts), segments, torch.cat(pooled, dim=1) if pooled else None, cut)

    def stream(
        self, prompts: Sequence[str], *, length: int | None = None, progress: str | None = None
    ) -> Iterator[PromptStates]:
        """Encode in batches, so that memory does not grow with the list; warns of cut prompts once."""
        # A few megabytes a layer, whatever the encoder: enough for full speed, little beside its weights.
        positions = max(min(length or t.length, t.length) if t.spec.kind == "clip" else t.length for t in self.towers)
        batch = max(1, min(64, _BATCH_ELEMENTS // (max(positions, 8) * self.width)))
        starts: Any = range(0, len(prompts), batch)
        if progress and len(prompts) > 4 * batch:
            starts = tqdm(starts, desc=progress, unit="batch")
        cut = 0
        for start in starts:
            states = self.encode(prompts[start : start + batch], length=length)
            cut += states.truncated
            yield states
        if cut:
            length = min(t.length for t in self.towers)
            logger.warning("%d of %d prompts are longer than %d tokens and were cut", cut, len(prompts), length)

    def moments(
        self, prompts: Sequence[str], rule: str, *, length: int | None = None, progress: str | None = None
    ) -> dict[str, SecondMoment]:
        """Second moment of every stream's features over all prompts; the rule picks tokens."""
        total = {stream: SecondMoment.zeros(width) for stream, width in self.widths.items()}
        for states in self.stream(prompts, length=length, progress=progress):
            for stream in total:
                total[stream] = total[stream] + SecondMoment.of(states.rows(rule, stream))
        return total

    def moment(self, prompts: Sequence[str], rule: str, *, progress: str | None = None) -> SecondMoment:
        """Second moment of the token states that a rule picks, over all prompts."""
        return self.moments(prompts, rule, progress=progress)[TOKENS]

    def subjects(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """`(n s, d)` float64 of each stream: the prompts' last own tokens in each of `s` segments; pooled vectors."""
        rows = {stream: [torch.zeros(0, width)] for stream, width in self.widths.items()}
        # The subject stands before the padding, and a causal encoder's states do not look ahead.
        for states in self.stream(prompts, length=1):
            for stream, found in rows.items():
                found.append(states.rows("last-subject", stream))
        return {stream: torch.cat(found).double() for stream, found in rows.items()}
