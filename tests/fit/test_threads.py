import torch

from erase_sd.fit.solve import few_threads


def test_threads_come_back_whatever_happens():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with few_threads(192):
            assert torch.get_num_threads() == 1
        with few_threads(4096):
            assert torch.get_num_threads() == 2
        try:
            with few_threads(192):
                raise ValueError
        except ValueError:
            pass
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
