"""The FID network: the size of the published file, and the quirks that make it another network than a textbook one."""

import pytest
import torch

from leam_mm.evaluators.inception import BlockE, InceptionNetwork, average_pool, max_pool


@pytest.fixture(scope="module")
def network() -> InceptionNetwork:
    return InceptionNetwork().eval()


def test_state_has_the_size_of_the_published_file(network: InceptionNetwork) -> None:
    state = network.state_dict()
    # Counted in the torch-fidelity layout of pt_inception-2015-12-05.
    assert len(state) == 566
    assert sum(tensor.numel() for tensor in state.values()) == 23_885_486
    assert state["fc.weight"].shape == (1008, 2048)
    assert state["Mixed_6b.branch7x7dbl_2.conv.weight"].shape == (128, 128, 7, 1)
    assert state["Mixed_7c.branch3x3_2a.conv.weight"].shape == (384, 384, 1, 3)


def test_last_block_takes_the_maximum(network: InceptionNetwork) -> None:
    assert network.Mixed_7b.pool is average_pool
    assert network.Mixed_7c.pool is max_pool
    x = torch.rand(1, 8, 4, 4)
    block = BlockE(8, max_pool).eval()
    block.pool = average_pool
    average = block(x)
    block.pool = max_pool
    assert not torch.equal(average[:, -192:], block(x)[:, -192:])
    assert torch.equal(average[:, :-192], block(x)[:, :-192])


def test_average_leaves_the_padding_out() -> None:
    torch.testing.assert_close(average_pool(torch.ones(1, 2, 5, 5)), torch.ones(1, 2, 5, 5))


def test_batch_norm_eps_and_shape(network: InceptionNetwork) -> None:
    assert all(m.eps == 1e-3 for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 80, 80)).shape == (1, 2048)
