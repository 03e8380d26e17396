"""Concept erasure as a block: `ModularPipelineBlocks.from_pretrained` of this folder finds it here."""

from erase_sd.pipelines.block import EraseBlock

__all__ = ["EraseBlock"]
