import pytest


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(tmp_path_factory, monkeypatch):
    """The Hub's cache is empty and nothing is fetched, whatever lies on this machine."""
    monkeypatch.setattr(
        "huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub"))
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
