"""What pipelines put around a prompt before a language model reads it.

The texts are part of a model's input format, as its tokenizer is: with others the same words have
other states.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chat:
    """A prompt as a user's message, put in the words of the tokenizer's own chat template.

    Attributes:
        system: The system's message before it; "" for none.
        parts: Whether messages are lists of parts, as templates of models that see want them.
        reply: Whether the beginning of the assistant's reply follows.
        thinking: What the template is told of thinking; None tells it nothing.
    """

    system: str = ""
    parts: bool = False
    reply: bool = True
    thinking: bool | None = None

    def messages(self, prompt: str) -> list[dict[str, object]]:
        """The conversation."""
        said = [("system", self.system)] if self.system else []
        return [
            {"role": role, "content": [{"type": "text", "text": text}] if self.parts else text}
            for role, text in [*said, ("user", prompt)]
        ]

    @property
    def options(self) -> dict[str, bool]:
        """What `apply_chat_template` is told besides."""
        told = {} if self.thinking is None else {"enable_thinking": self.thinking}
        return {"add_generation_prompt": self.reply, **told}


QWEN_IMAGE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)

FLUX2 = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing "
    "on object relationships, object\nattribution and actions without speculation."
)

LUMINA2 = (
    "You are an assistant designed to generate superior images with the superior degree of "
    "image-text alignment based on textual prompts or user prompts. <Prompt Start> {}"
)

SANA = "\n".join(
    (
        "Given a user prompt, generate an 'Enhanced prompt' that provides detailed visual "
        "descriptions suitable for image generation. Evaluate the level of detail in the user "
        "prompt:",
        "- If the prompt is simple, focus on adding specifics about colors, shapes, sizes, "
        "textures, and spatial relationships to create vivid and concrete scenes.",
        "- If the prompt is already detailed, refine and enhance the existing details slightly "
        "without overcomplicating.",
        "Here are examples of how to transform or refine prompts:",
        "- User Prompt: A cat sleeping -> Enhanced: A small, fluffy white cat curled up in a round "
        "shape, sleeping peacefully on a warm sunny windowsill, surrounded by pots of blooming red "
        "flowers.",
        "- User Prompt: A busy city street -> Enhanced: A bustling city street scene at dusk, "
        "featuring glowing street lamps, a diverse crowd of people in colorful clothing, and a "
        "double-decker bus passing by towering glass skyscrapers.",
        "Please generate only the enhanced description for the prompt below and avoid including "
        "any additional commentary or evaluations:",
        "User Prompt: {}",
    )
)
