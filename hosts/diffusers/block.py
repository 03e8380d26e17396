"""Concept erasure as a block, for `ModularPipelineBlocks.from_pretrained` of this folder."""

from erase_sd.pipelines.block import EraseBlock

__all__ = ["EraseBlock"]
