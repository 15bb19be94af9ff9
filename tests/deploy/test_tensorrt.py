"""Which ONNX files TensorRT reads, by its published list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from doublehead.common.errors import DoubleheadError
from doublehead.deploy.tensorrt import LARGEST_K, OPERATORS, require_readable

onnx = pytest.importorskip("onnx")


def written(path: Path, nodes: Sequence[Any], count: int = 5000) -> Path:
    """A model of one input and one output of some numbers."""
    helper, kind = onnx.helper, onnx.TensorProto
    value = [helper.make_tensor_value_info(name, kind.FLOAT, [count]) for name in "xy"]
    k = [helper.make_tensor("k", kind.INT64, [1], [count])]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], k)
    domains = [helper.make_opsetid("", 18), helper.make_opsetid("others", 1)]
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=10), path)
    return path


def test_what_the_list_has_is_let_through(tmp_path: Path) -> None:
    require_readable(written(tmp_path / "a.onnx", [onnx.helper.make_node("Relu", ["x"], ["y"])]), "a.onnx")
    top = onnx.helper.make_node("TopK", ["x", "k"], ["y", "places"])
    require_readable(written(tmp_path / "a.onnx", [top], LARGEST_K), "a.onnx")


@pytest.mark.parametrize(
    ("operator", "domain", "name"),
    [("Unique", "", "Unique"), ("SequenceEmpty", "", "SequenceEmpty"), ("Relu", "others", "others::Relu")],
)
def test_an_operator_outside_the_list_is_named(tmp_path: Path, operator: str, domain: str, name: str) -> None:
    nodes = [onnx.helper.make_node(operator, ["x"], ["y"], domain=domain)]
    with pytest.raises(DoubleheadError, match=rf"a\.onnx was not written: TensorRT .* has no operator {name};"):
        require_readable(written(tmp_path / "a.onnx", nodes), "a.onnx")


def test_more_values_than_topk_gives(tmp_path: Path) -> None:
    nodes = [onnx.helper.make_node("TopK", ["x", "k"], ["y", "places"])]
    with pytest.raises(DoubleheadError, match="3840 values at most, not 5000; lower"):
        require_readable(written(tmp_path / "a.onnx", nodes), "a.onnx")


def test_the_list_holds_operators_of_onnx_and_its_importers_own() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}
    own = {"ImageScaler", "ParametricSoftplus", "ScaledTanh"}  # of ONNX before its first release
    assert OPERATORS - own <= known
