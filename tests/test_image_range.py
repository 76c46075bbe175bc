import torch

from leam_mm.data.image_range import signed


def test_bytes_become_signed_numbers_of_the_wanted_precision() -> None:
    image = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    assert signed(image).tolist() == [[-1.0, torch.tensor(51.0).div(127.5).sub(1).item(), 1.0]]
    assert signed(image, torch.float64).dtype == torch.float64 and image.dtype == torch.uint8
