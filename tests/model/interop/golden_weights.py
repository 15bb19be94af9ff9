"""Weights of narrow detectors as other programs save them."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "golden"


def weights_of(program: str) -> dict[str, Tensor]:
    """`authors` or `mmdetection`: five classes, channels 8 to 32."""
    tensors = load_file(GOLDEN / f"{program}.safetensors")
    return {k.removeprefix("state_dict."): v for k, v in tensors.items() if k.startswith("state_dict.")}
