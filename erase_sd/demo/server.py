"""What all visitors share: the models in memory, the visitors, the queue, the reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from erase_sd.demo.limits import Limits
from erase_sd.demo.model_session import ModelSession
from erase_sd.demo.turns import Turns
from erase_sd.demo.visitor import Visitors

MODELS = 2  # models in memory at once


@dataclass
class Server:
    """The state of the demo.

    Attributes:
        models: Names of the models that may be chosen.
        folder: Temporary folder of this process; visitors' files lie in it.
        any_model: Whether a visitor may name another folder or Hub id.
        device: Where models run.
        reports: Folder of evaluation reports, or None.
        limits: What visitors may ask for.
        visitors: Who visits.
        turns: Whose job is next.
    """

    models: tuple[str, ...]
    folder: Path
    any_model: bool = False
    device: str = "cpu"
    reports: Path | None = None
    limits: Limits = field(default_factory=Limits)
    visitors: Visitors = field(init=False)
    turns: Turns = field(init=False)
    _loaded: dict[str, ModelSession] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.visitors = Visitors(self.folder, self.limits)
        self.turns = Turns(self.limits)

    def model(self, name: str) -> ModelSession:
        """A model, loaded on first use.

        Raises:
            ValueError: If visitors may not have it.
        """
        if name not in self.models and not self.any_model:
            raise ValueError(
                f"this demo has {', '.join(self.models)}; its operator allows no other model"
            )
        if name not in self._loaded:
            while len(self._loaded) >= MODELS:  # the one loaded first makes room
                del self._loaded[next(iter(self._loaded))]
            self._loaded[name] = ModelSession(name, device=self.device, limits=self.limits)
        return self._loaded[name]

    def pages(self) -> dict[str, Path]:
        """Evaluation pages by their relative names; links that lead out of the folder are not."""
        if self.reports is None:
            return {}
        root = self.reports.resolve()
        found = sorted(p for p in root.glob("**/*.html") if p.is_file())
        inside = [p for p in found if p.resolve().is_relative_to(root)]
        return {str(p.relative_to(root)): p for p in inside[:200]}
