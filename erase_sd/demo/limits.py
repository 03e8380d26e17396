"""Every number that bounds what visitors can ask of the page, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from erase_sd.artifact.erasure import Erasure
from erase_sd.prompts import read_prompts, set_names


@dataclass(frozen=True)
class Limits:
    """What visitors may ask for.

    Attributes:
        prompt_length: Characters of a prompt.
        prompts: Prompts that are typed.
        expanded: Prompts after sets have been put in.
        concepts: Concepts that are erased at once.
        steps: Denoising steps of a picture.
        upload_bytes: Size of an uploaded file.
        uploads: Uploaded files that a visitor may have on the server.
        uploads_per_hour: Files that a visitor may upload in an hour.
        body_bytes: Size of any other request.
        bodies_bytes: Size of all requests that are being received.
        folder_bytes: Size of all that visitors have uploaded and made.
        visitors: Visitors whose work is remembered.
        tabs: Pages that a visitor may have open.
        streams: Answers without an end that a visitor may listen to.
        idle_seconds: After this long without a page open, a visitor's work is deleted.
        stay_seconds: After this long without a request it is deleted in any case.
        unheard: Jobs of a visitor whose outcome no page has listened to.
        jobs: Jobs of a visitor that may wait.
        waiting: Jobs of everybody that may wait; one address may have half of them.
        slice_seconds: After this long a job lets others go first.
        job_seconds: Time that a job may compute.
        job_bytes: Memory that a job may take beyond what the server has.
        connections: Connections at once.
        connections_per_address: Those of one address that is not this machine.
        header_seconds: Time for a request's header to arrive.
        body_seconds: Time for its body.
        stall_seconds: Time that a client may stop reading an answer.

    >>> Limits(prompts=2).prompt_list("cat, kitten", what="forget")
    ['cat', 'kitten']
    """

    prompt_length: int = 300
    prompts: int = 32
    expanded: int = 150
    concepts: int = 8
    steps: int = 20
    upload_bytes: int = 2_000_000
    uploads: int = 8
    uploads_per_hour: int = 60
    body_bytes: int = 200_000
    bodies_bytes: int = 64_000_000
    folder_bytes: int = 2_000_000_000
    visitors: int = 1000
    tabs: int = 8
    streams: int = 24
    idle_seconds: float = 3600
    stay_seconds: float = 6 * 3600
    unheard: int = 64
    jobs: int = 4
    waiting: int = 64
    slice_seconds: float = 10
    job_seconds: float = 600
    job_bytes: int = 8_000_000_000
    connections: int = 512
    connections_per_address: int = 64
    header_seconds: float = 10
    body_seconds: float = 20
    stall_seconds: float = 30

    def prompt_list(self, text: str, *, what: str) -> list[str]:
        """Prompts of a text box: one a line, or separated by commas.

        Args:
            text: What was typed.
            what: What the prompts are for, as a verb.

        Raises:
            ValueError: If there are too many, or one is too long, or one names a file.
        """
        typed = [p.strip() for line in text.splitlines() for p in line.split(",") if p.strip()]
        if len(typed) > self.prompts:
            raise ValueError(f"at most {self.prompts} prompts to {what}, got {len(typed)}")
        for prompt in typed:
            if len(prompt) > self.prompt_length:
                raise ValueError(
                    f"a prompt may have {self.prompt_length} characters, "
                    f"one to {what} has {len(prompt)}"
                )
            # A visitor may name what is in the package, and no file of this machine.
            foreign = prompt.startswith("set:") and prompt[4:] not in set_names()
            if foreign or prompt.startswith("file:"):
                raise ValueError(f"{prompt!r}: here are prompts and the sets {_sets()}")
        found = read_prompts(typed, what=what)
        if len(found) > self.expanded:
            raise ValueError(
                f"at most {self.expanded} prompts with all sets to {what}, got {len(found)}"
            )
        return found

    def check(self, erasure: Erasure) -> None:
        """Refuse a file that would cost more than what can be made here.

        Raises:
            ValueError: With what is too much.
        """
        if not 0 < len(erasure.concepts) <= self.concepts:
            raise ValueError(
                f"expected 1 to {self.concepts} concepts in the file, got {len(erasure.concepts)}"
            )
        for part in erasure.concepts:
            prompts = [part.name, *part.forget, *part.retain]
            if not part.forget or not all(isinstance(p, str) for p in prompts):
                raise ValueError("the file names no forget prompts")
            if len(prompts) > 2 * self.expanded or max(map(len, prompts)) > self.prompt_length:
                raise ValueError(
                    f"{part.name[:40]!r} has more or longer prompts than are taken here"
                )
            if not 0 <= part.strength <= 10:
                raise ValueError(f"expected a strength between 0 and 10, got {part.strength}")


def _sets() -> str:
    return ", ".join(set_names())
