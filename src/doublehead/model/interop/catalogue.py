"""Trained models that others published, by name: where they are, what they are, and the AP that their publishers give.

Figures, addresses and digests are those of torchvision's weights, of MMDetection's `metafile.yml` and of detectron2's
model zoo. The first two name their files by SHA-256, the last one by MD5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doublehead.config import ModelConfig

LICENCES = {"torchvision": "BSD-3-Clause", "mmdetection": "Apache-2.0", "detectron2": "CC BY-SA 3.0"}
"""Of torchvision and MMDetection with their weights; of the models in detectron2's zoo."""


@dataclass(frozen=True)
class Published:
    """A file of weights on the publisher's server.

    Args:
        url: its address.
        ap: box AP on COCO val2017, as published.
        format: its program and the format among the program's FORMATS, as `program:NAME`.
        settings: values of ModelConfig that differ from those of the format, by their keys.
        classes: number of classes without the background.
        algorithm: of the digest that ends the file's name.
    """

    url: str
    ap: float
    format: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 80
    algorithm: str = "sha256"

    @property
    def file_name(self) -> str:
        """The file's name on the server, and in the cache folder if somebody fetched it by hand."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def digest(self) -> str:
        """How the file's hex digest begins."""
        return self.file_name.rpartition(".")[0].replace("_", "-").rpartition("-")[2]

    @property
    def licence(self) -> str:
        """That of the weights."""
        return LICENCES[self.format.partition(":")[0]]

    @property
    def config(self) -> ModelConfig:
        """What the weights make of it, without reading them."""
        from doublehead.common.tables import imported  # here: the names above are read without torch

        return imported(f"doublehead.model.interop.{self.format}").config(self.settings)  # type: ignore[attr-defined]


def _torchvision(file: str, ap: float, name: str, **settings: Any) -> Published:
    return Published(f"https://download.pytorch.org/models/{file}.pth", ap, f"torchvision:{name}", settings, 90)


def _mmdetection(file: str, ap: float, name: str = "FASTER_RCNN", family: str = "faster_rcnn", depth: int = 50) -> Any:
    run = file.partition("_coco")[0] + "_coco"
    url = f"https://download.openmmlab.com/mmdetection/v2.0/{family}/{run}/{file}.pth"
    return Published(url, ap, f"mmdetection:{name}", {"backbone.name": f"resnet{depth}"})


def _detectron2(path: str, ap: float, name: str = "FASTER_RCNN", depth: int = 50) -> Published:
    url = f"https://dl.fbaipublicfiles.com/detectron2/{path}.pkl"
    return Published(url, ap, f"detectron2:{name}", {"backbone.name": f"resnet{depth}"}, algorithm="md5")


def _lsj(path: str, ap: float, depth: int = 50) -> Published:
    return _detectron2(f"new_baselines/mask_rcnn_R_{depth}_FPN_{path}", ap, "CONV_FC", depth)


def _cascade(run: str, ap: float, depth: int = 50) -> Published:
    return _mmdetection(f"cascade_rcnn_r{depth}_fpn_{run}", ap, "CASCADE_RCNN", "cascade_rcnn", depth)


_DOUBLE_HEAD = ("DOUBLE_HEAD", "double_heads")
_COCO = "COCO-Detection/faster_rcnn_R"

PUBLISHED: dict[str, Published] = {
    "mmdet-double-head-r50-coco": _mmdetection("dh_faster_rcnn_r50_fpn_1x_coco_20200130-586b67df", 40.0, *_DOUBLE_HEAD),
    "torchvision-faster-rcnn-r50-coco": _torchvision("fasterrcnn_resnet50_fpn_coco-258fb6c6", 37.0, "FASTER_RCNN"),
    "torchvision-faster-rcnn-r50-v2-coco": _torchvision(
        "fasterrcnn_resnet50_fpn_v2_coco-dd69338a", 46.7, "FASTER_RCNN_V2"
    ),
    "torchvision-faster-rcnn-mobilenet-coco": _torchvision(
        "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7", 32.8, "FASTER_RCNN_MOBILENET"
    ),
    "torchvision-faster-rcnn-mobilenet-320-coco": _torchvision(
        "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9",
        22.8,
        "FASTER_RCNN_MOBILENET",
        **{
            "input.short_side": 320,
            "input.long_side": 640,
            "rpn.before_nms_inference": 150,
            "rpn.proposals_inference": 150,
        },
    ),
    "mmdet-faster-rcnn-r50-1x-coco": _mmdetection("faster_rcnn_r50_fpn_1x_coco_20200130-047c8118", 37.4),
    "mmdet-faster-rcnn-r50-2x-coco": _mmdetection(
        "faster_rcnn_r50_fpn_2x_coco_bbox_mAP-0.384_20200504_210434-a5d8aa15", 38.4
    ),
    "mmdet-faster-rcnn-r50-3x-coco": _mmdetection("faster_rcnn_r50_fpn_mstrain_3x_coco_20210524_110822-e10bd31c", 40.3),
    "mmdet-faster-rcnn-r101-1x-coco": _mmdetection("faster_rcnn_r101_fpn_1x_coco_20200130-f513f705", 39.4, depth=101),
    "mmdet-faster-rcnn-r101-2x-coco": _mmdetection(
        "faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c", 39.8, depth=101
    ),
    "mmdet-faster-rcnn-r101-3x-coco": _mmdetection(
        "faster_rcnn_r101_fpn_mstrain_3x_coco_20210524_110822-4d4d2ca8", 41.8, depth=101
    ),
    "mmdet-cascade-rcnn-r50-1x-coco": _cascade("1x_coco_20200316-3dc56deb", 40.3),
    "mmdet-cascade-rcnn-r50-20e-coco": _cascade("20e_coco_bbox_mAP-0.41_20200504_175131-e9872a90", 41.0),
    "mmdet-cascade-rcnn-r101-1x-coco": _cascade("1x_coco_20200317-0b6a2fbf", 42.0, 101),
    "mmdet-cascade-rcnn-r101-20e-coco": _cascade("20e_coco_bbox_mAP-0.425_20200504_231812-5057dcc5", 42.5, 101),
    "detectron2-faster-rcnn-r50-1x-coco": _detectron2(f"{_COCO}_50_FPN_1x/137257794/model_final_b275ba", 37.9),
    "detectron2-faster-rcnn-r50-3x-coco": _detectron2(f"{_COCO}_50_FPN_3x/137849458/model_final_280758", 40.2),
    "detectron2-faster-rcnn-r101-3x-coco": _detectron2(
        f"{_COCO}_101_FPN_3x/137851257/model_final_f6e8b1", 42.0, depth=101
    ),
    "detectron2-cascade-mask-rcnn-r50-1x-coco": _detectron2(
        "Misc/cascade_mask_rcnn_R_50_FPN_1x/138602847/model_final_e9d89b", 42.1, "CASCADE_RCNN"
    ),
    "detectron2-cascade-mask-rcnn-r50-3x-coco": _detectron2(
        "Misc/cascade_mask_rcnn_R_50_FPN_3x/144998488/model_final_480dd8", 44.3, "CASCADE_RCNN"
    ),
    "detectron2-mask-rcnn-r50-lsj-100ep-coco": _lsj("100ep_LSJ/42047764/model_final_bb69de", 44.6),
    "detectron2-mask-rcnn-r50-lsj-200ep-coco": _lsj("200ep_LSJ/42047638/model_final_89a8d3", 46.3),
    "detectron2-mask-rcnn-r50-lsj-400ep-coco": _lsj("400ep_LSJ/42019571/model_final_14d201", 47.4),
    "detectron2-mask-rcnn-r101-lsj-100ep-coco": _lsj("100ep_LSJ/42025812/model_final_4f7b58", 46.4, 101),
    "detectron2-mask-rcnn-r101-lsj-400ep-coco": _lsj("400ep_LSJ/42073830/model_final_f96b26", 48.9, 101),
}
