"""ONNX operators that TensorRT supports, as listed by its ONNX parser (onnx-tensorrt, docs/operators.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doublehead.common.errors import DoubleheadError, require

RELEASE = "10.15"
"""Version of TensorRT that the list describes."""

_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh Attention AveragePool BatchNormalization BlackmanWindow
Cast CastLike Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv
DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor Gather GatherElements
GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization
GRU HammingWindow HannWindow HardSigmoid HardSwish Hardmax Identity If ImageScaler InstanceNormalization IsInf IsNaN
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LRN LSTM LpNormalization LpPool MatMul Max MaxPool
Mean MeanVarianceNormalization Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow
PRelu QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RMSNormalization RNN RoiAlign RotaryEmbedding Round STFT ScaledTanh Scan Scatter ScatterElements
ScatterND Selu Shape Shrink Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze
Sub Sum Tan Tanh TensorScatter ThresholdedRelu Tile TopK Transpose Trilu Unsqueeze Upsample Where Xor
"""

OPERATORS = frozenset(_NAMES.split())
"""Supported operators."""

LARGEST_K = 3840
"""Maximum k of TopK."""

STANDARD = ("", "ai.onnx")
"""Names of ONNX's own domain."""


def require_readable(path: Path, name: str) -> None:
    """Reject an ONNX file with operators that TensorRT does not support.

    Args:
        path: the file.
        name: its name in errors.

    Raises:
        DoubleheadError: names the operator, or the k of TopK.
    """
    model = require("onnxscript", "export").ir.load(path)
    for node in (*model.graph.all_nodes(), *(n for f in model.functions.values() for n in f.all_nodes())):
        if node.domain not in STANDARD or node.op_type not in OPERATORS:
            operator = node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"
            raise DoubleheadError(
                f"{name} was not written: TensorRT {RELEASE} has no operator {operator}; leave out --target tensorrt, "
                "or export a model with another backbone, such as a ResNet"
            )
        if node.op_type == "TopK" and _values(node) > LARGEST_K:
            raise DoubleheadError(
                f"{name} was not written: TensorRT's TopK gives {LARGEST_K} values at most, not {_values(node)}; lower "
                "model.rpn.before_nms_inference, model.rpn.proposals_inference or --owners"
            )


def _values(node: Any) -> int:
    """The k of a TopK, known because shapes are static."""
    return max(node.outputs[0].shape)
