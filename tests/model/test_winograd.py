import pytest
import torch
from torch import nn

from doublehead.model import winograd
from doublehead.model.winograd import Winograd, use_winograd


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tiles", [1, 5, 10**6])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 4, 4), (3, 7, 7), (1, 13, 22), (2, 5, 40), (0, 7, 7)])
def test_is_the_convolution(
    shape: tuple[int, int, int], tiles: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the sides: tiles pass the right and lower edges, and strips of them share inputs."""
    monkeypatch.setattr(winograd, "TILES", tiles)
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 3, 3, padding=1, bias=bias).double()
    images, height, width = shape
    x = torch.randn(images, 6, height, width, dtype=torch.float64)
    for given in (x, x.to(memory_format=torch.channels_last)):
        with torch.no_grad():
            found = Winograd(conv)(given)
        torch.testing.assert_close(found, conv(given), rtol=1e-11, atol=1e-11)


def test_float32_rounds_to_five_digits() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(256, 256, 3, padding=1)
    nn.init.normal_(conv.weight, std=1 / 48)
    x = torch.randn(1, 256, 20, 24).relu()
    exact = conv.double()(x.double())
    with torch.no_grad():
        error = (Winograd(conv.float())(x) - exact).abs().max()
    assert error < 1e-4 * exact.std()


def test_takes_the_place_of_those_it_computes_and_no_others() -> None:
    def conv(channels: int = 128, **settings: object) -> nn.Conv2d:
        return nn.Conv2d(channels, 128, **{"kernel_size": 3, "padding": 1} | settings)  # type: ignore[arg-type]

    others = [
        conv(64),
        conv(stride=2),
        conv(padding=0),
        conv(dilation=2),
        conv(groups=2),
        conv(kernel_size=1, padding=0),
    ]
    others.append(conv(padding_mode="reflect"))
    module = nn.Sequential(conv(), nn.Sequential(conv(bias=False)), *others)
    keys = {key: value.clone() for key, value in module.state_dict().items()}
    use_winograd(module)
    assert [type(layer) is Winograd for layer in module.modules() if isinstance(layer, nn.Conv2d)] == (
        [True, True] + [False] * len(others)
    )
    assert module.state_dict().keys() == keys.keys()
    assert all(torch.equal(value, keys[key]) for key, value in module.state_dict().items())


def test_exported_it_is_an_ordinary_convolution() -> None:
    program = torch.export.export(Winograd(nn.Conv2d(4, 4, 3, padding=1)), (torch.randn(1, 4, 9, 9),))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.conv2d.default
    ]
