"""How images lie in memory where they are scored."""

import torch

from zcpipe.ops import as_images, image_format


def test_channels_last_on_the_cpu_alone():
    assert image_format("cpu") == torch.channels_last
    assert image_format("cuda:1") == image_format(torch.device("cuda")) == torch.contiguous_format


def test_images_change_their_layout_and_nothing_else():
    x = torch.randn(2, 3, 4, 5)
    assert as_images(x).is_contiguous(memory_format=torch.channels_last) and torch.equal(as_images(x), x)


def test_what_is_no_image_stays_as_it_is():
    tokens = torch.randn(2, 3, 4)
    assert as_images(tokens) is tokens


def test_images_of_one_channel_lie_as_images_of_many(monkeypatch):
    """torch takes such images for channels_last ones where their strides say so, whatever `is_contiguous` says."""
    monkeypatch.setattr("zcpipe.ops.layout.image_format", lambda device: torch.contiguous_format)
    x = torch.randn(2, 6, 5, 1).permute(0, 3, 1, 2)
    assert x.is_contiguous() and x.stride() != as_images(x).stride() == torch.randn(2, 1, 6, 5).stride()
    assert torch.equal(as_images(x), x)
