"""Tensor names of published single files, told apart from those of diffusers.

Written down here and not taken from `erase_sd`, so that what reads such files is tested against a
second telling of them.
"""

from __future__ import annotations

from erase_sd.models.openclip_names import OPENCLIP_PARTS, SPARE_LAYER

_RESNET = (("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
           ("norm2", "out_layers.0"), ("conv2", "out_layers.3"),
           ("conv_shortcut", "skip_connection"))  # fmt: skip


_VAE_ATTENTION = (
    ("group_norm", "norm"),
    ("to_q", "q"),
    ("to_k", "k"),
    ("to_v", "v"),
    ("to_out.0", "proj_out"),
)


def unet_to_ldm(name: str, blocks: int) -> str:
    """A U-Net tensor's name in a single file, of a U-Net with so many blocks each way."""
    for mine, theirs in (("time_embedding.linear_1", "time_embed.0"),
                         ("time_embedding.linear_2", "time_embed.2"),
                         ("add_embedding.linear_1", "label_emb.0.0"),
                         ("add_embedding.linear_2", "label_emb.0.2"),
                         ("conv_in", "input_blocks.0.0"),
                         ("conv_norm_out", "out.0"), ("conv_out", "out.2")):  # fmt: skip
        if name.startswith(mine + "."):
            return name.replace(mine, theirs)
    part = name.split(".")
    if part[0] == "mid_block":
        i = {"resnets": 2 * int(part[2]), "attentions": 1}[part[1]]
        return f"middle_block.{i}." + _inside(".".join(part[3:]), part[1])
    b, layer = int(part[1]), int(part[3])
    rest = ".".join(part[4:])
    if part[0] == "down_blocks":
        if part[2] == "downsamplers":
            return f"input_blocks.{3 * (b + 1)}.0.op.{part[-1]}"
        return f"input_blocks.{1 + 3 * b + layer}.{int(part[2] == 'attentions')}." + _inside(
            rest, part[2]
        )
    if part[2] == "upsamplers":
        # Behind the block's last attention, or where there is none in its place.
        plain = blocks == 4 and b == 0
        return f"output_blocks.{3 * b + 2}.{1 if plain else 2}.conv.{part[-1]}"
    return f"output_blocks.{3 * b + layer}.{int(part[2] == 'attentions')}." + _inside(rest, part[2])


def _inside(rest: str, kind: str) -> str:
    if kind == "resnets":
        for mine, theirs in _RESNET:
            if rest.startswith(mine + "."):
                return rest.replace(mine, theirs)
    return rest


def vae_shapes_to_ldm(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """An autoencoder's shapes by their names in a single file."""
    new = {}
    for name, shape in shapes.items():
        part = name.split(".")
        if len(part) > 2 and part[1] in ("down_blocks", "up_blocks"):
            up = part[1] == "up_blocks"
            i = 3 - int(part[2]) if up else int(part[2])
            if part[3] == "resnets":
                rest = ".".join(part[5:]).replace("conv_shortcut", "nin_shortcut")
                name = f"{part[0]}.{'up' if up else 'down'}.{i}.block.{part[4]}.{rest}"
            else:
                way, what = ("up.", "upsample") if up else ("down.", "downsample")
                name = f"{part[0]}.{way}{i}.{what}.conv.{part[-1]}"
        elif len(part) > 2 and part[1] == "mid_block":
            if part[2] == "resnets":
                name = f"{part[0]}.mid.block_{int(part[3]) + 1}." + ".".join(part[4:])
            else:
                rest = ".".join(part[4:])
                for mine, theirs in _VAE_ATTENTION:
                    rest = rest.replace(mine, theirs)
                name = f"{part[0]}.mid.attn_1.{rest}"
                if len(shape) == 2:
                    shape = (*shape, 1, 1)
        else:
            name = name.replace("conv_norm_out", "norm_out")
        new[name] = shape
    return new


def openclip_shapes(
    shapes: dict[str, tuple[int, ...]], *, spare: bool
) -> dict[str, tuple[int, ...]]:
    """A text tower's shapes by OpenCLIP's names; `spare` adds a layer that nobody reads."""
    new: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if name == "text_projection.weight":
            new["text_projection"] = shape[::-1]
            continue
        own = name.removeprefix("text_model.")
        for theirs, mine in OPENCLIP_PARTS:
            own = own.replace(mine, theirs)
        if ".self_attn.q_proj." in own:
            own = own.replace(".self_attn.q_proj.", ".attn.in_proj_")
            shape = (3 * shape[0], *shape[1:])
        elif ".self_attn." in own:
            continue  # k and v: fused with q
        new[own] = shape
    if spare:
        last = max(int(n.split(".")[2]) for n in new if n.startswith("transformer."))
        extra = {n: s for n, s in new.items() if n.startswith(f"transformer.resblocks.{last}.")}
        new |= {n.replace(f".{last}.", f".{SPARE_LAYER}.", 1): s for n, s in extra.items()}
        new["text_projection"] = (new["token_embedding.weight"][1],) * 2
    return new
