"""Pictures: how they are prepared, and how much of them is in memory."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from erase_sd.vision import Pictures, Samples, load_data
from erase_sd.vision.samples import Form
from tests.vision.helpers import grey


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar100", 0.5071, 0.2673),
        ("cifar20", 0.5071, 0.2673),
        ("cifar10", 0.485, 0.229),
        ("mine", 0.5, 0.5),
        ("oxford-pets", 0.48145466, 0.26862954),
        ("imagenette", 0.485, 0.229),
    ],
)
def test_every_data_set_has_its_own_constants(name, mean, std):
    x = Form().pictures(np.stack([grey(0, 2)]), name)
    assert float(x[0, 0, 0, 0]) == pytest.approx(-mean / std)


class TestImageProcessors:
    """Images are prepared as the model's own processor prepares them."""

    pictures = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), np.uint8) for i in range(3)]

    def test_scaling_cropping_and_constants_are_its_own(self):
        """CLIP's: the shorter side scaled by bicubic, the middle cut out; by PIL here."""
        from transformers import CLIPImageProcessor

        mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
        processor = CLIPImageProcessor(
            size={"shortest_edge": 20}, crop_size=20, image_mean=mean, image_std=std
        )
        made = Form(processor=processor).pictures(list(self.pictures), "cifar10", lambda x: x)
        assert made.channels == 3
        got = made[torch.tensor([0, 2])]
        small = Image.fromarray(self.pictures[2]).resize((30, 20), Image.Resampling.BICUBIC)
        want = np.asarray(small.crop((5, 0, 25, 20))) / 255
        np.testing.assert_allclose(got[1].permute(1, 2, 0).numpy(), (want - mean) / std, atol=1e-5)
        square = Form(20).pictures(list(self.pictures), "cifar10", lambda x: x)
        assert not torch.allclose(square[torch.tensor([2])], got[1:])  # without it: all squeezed in

    def test_with_a_size_of_ones_own_its_constants_stay(self):
        from transformers import ViTImageProcessor

        processor = ViTImageProcessor(image_mean=[0.0] * 3, image_std=[0.1] * 3)
        x = Form(2, processor).pictures(np.stack([grey(255, 2)]), "cifar10")
        assert x.shape == (1, 3, 2, 2) and float(x[0, 0, 0, 0]) == pytest.approx(10)

    def test_grey_images_become_three_channels(self):
        from transformers import ViTImageProcessor

        processor = ViTImageProcessor(size={"height": 4, "width": 4})
        made = Form(processor=processor).pictures([np.zeros((8, 8), np.uint8)], "x", lambda x: x)
        assert made[torch.tensor([0])].shape == (1, 3, 4, 4)

    def test_digits_take_none(self):
        with pytest.raises(ValueError, match="expected no size and no image processor"):
            load_data("digits", size=16)


class TestPictures:
    def make(self, count=7):
        return Pictures(list(range(count)), lambda i: grey(10 * i), 4)

    def test_a_batch_is_decoded_when_it_is_asked_for(self):
        asked = []
        pictures = Pictures(list(range(1000)), lambda i: asked.append(i) or grey(i % 256), 4)
        batch = pictures[torch.tensor([3, 5])]
        assert asked == [3, 5] and batch.shape == (2, 3, 4, 4)
        torch.testing.assert_close(batch[0, 0, 0, 0], torch.tensor(3 / 255 * 2 - 1))
        assert len(pictures.take(torch.arange(1000) > 990)) == 9 and asked == [3, 5]

    def test_they_answer_as_a_tensor_does(self):
        pictures = self.make()
        whole = torch.cat(list(pictures.split(3)))
        assert torch.equal(whole[torch.tensor([6, 1])], pictures[torch.tensor([6, 1])])
        both = Samples(pictures, torch.arange(7)).joined(Samples(pictures, torch.arange(7)))
        assert torch.equal(both[torch.tensor([8])].x[torch.tensor([0])], whole[1:2])
        with pytest.raises(ValueError, match="inputs of one kind"):
            Samples(pictures, torch.arange(7)).joined(Samples(whole, torch.arange(7)))
        with pytest.raises(IndexError, match="below 7"):
            pictures[torch.tensor([7])]

    def test_those_that_are_prepared_otherwise_do_not_join(self):
        with pytest.raises(ValueError, match="prepared alike"):
            self.make().joined(Pictures([1], lambda i: grey(i), 4))

    def test_sizes_that_differ_are_told(self):
        pictures = Pictures([4, 8], lambda i: grey(0, i))
        with pytest.raises(ValueError, match="differ in size; give --size"):
            list(pictures.split(2))

    def test_large_images_stay_bytes(self):
        """800 images of 224 x 224 as float32 would be 480 MB; the process stays far below it.

        And so does a network that reads them: what it keeps of one image, here 19 MB, it keeps of
        13 at once, not of 40.
        """
        script = (
            "import resource, numpy as np, torch\n"
            "from torch import nn\n"
            "from erase_sd.vision.samples import Form, Samples\n"
            "from erase_sd.vision.train import gradient\n"
            "def most(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
            "before = most()\n"
            "x = Form(224).pictures(np.zeros((800, 32, 32, 3), np.uint8), 'mine')\n"
            "few = Samples(x.take(torch.arange(40)), torch.zeros(40, dtype=torch.long))\n"
            "body = [nn.Conv2d(3, 32, 1), nn.Sigmoid(), nn.Sigmoid()]\n"
            "head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 2)]\n"
            "gradient(nn.Sequential(*body, *head), few)\n"
            "assert most() - before < 600, most() - before\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=500
        )
        assert done.returncode == 0, done.stderr
