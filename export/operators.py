"""Whether TensorRT's ONNX parser takes a graph's operators: known from a list, so no GPU and no TensorRT is needed.

    python -m export.operators --profile musetalk-v15

Prints the operators of the graphs that a GPU serves, and how often each is there. Exit code 1, and the operators named,
if the parser does not take them all.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.arena import graphs
from export.errors import EngineFailed, ExportError
from export.repository import SERVED, TENSORRT, served_graphs

# Of "Supported ONNX Operators", docs/operators.md of onnx/onnx-tensorrt, what TensorRT 8.5 took; and of its
# docs/Changelog.md what came with 8.6 to 10.5. Opsets from 9. uint8 exists at a network's inputs and outputs only, next
# to a Cast. Sequences (SplitToSequence, SequenceAt) it does not take, so graphs are written folded.
_UP_TO_8_5 = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast Ceil Celu Clip Concat
Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal
Erf Exp Expand EyeLike Flatten Floor Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool
Greater GreaterOrEqual GridSample GRU HardSigmoid HardSwish Identity If ImageScaler InstanceNormalization IsNaN
LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool LRN LSTM MatMul Max MaxPool Mean
MeanVarianceNormalization Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or Pad ParametricSoftplus Pow PRelu
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize
ReverseSequence RNN RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign Sin
Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
Transpose Trilu Unsqueeze Upsample Where Xor
"""
_SINCE = """
CastLike GroupNormalization LayerNormalization IsInf Hardmax DeformConv BlackmanWindow HammingWindow HannWindow STFT
"""
PARSER_OPERATORS = frozenset(_UP_TO_8_5.split() + _SINCE.split())

STANDARD = ("", "ai.onnx")  # operators of other domains are plugins to the parser


def operators(graph: Path) -> Counter[str]:
    """The operators of an ONNX file, of subgraphs too, counted; one of another domain as domain::operator."""
    model = onnx.load(graph, load_external_data=False)
    nodes = (node for graph in graphs(model.graph) for node in graph.node)
    return Counter(node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}" for node in nodes)


def unknown_operators(graph: Path) -> list[str]:
    """Those that TensorRT's parser does not take."""
    return sorted(set(operators(graph)) - PARSER_OPERATORS)


def require_operators(files: Mapping[str, Path]) -> None:
    """Raises EngineFailed if a served model's graph, by name, has an operator that TensorRT's parser does not take."""
    for model in SERVED:
        if unknown := unknown_operators(files[model.name]):
            raise EngineFailed(model.name, f"its parser takes no {', '.join(unknown)}")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m export.operators", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="musetalk-v15")
    parser.add_argument("--models-dir", type=Path, default=Path("models"))
    args = parser.parse_args(words)
    console = Console()
    try:
        files = served_graphs(args.models_dir, args.profile, TENSORRT)
        table = Table("graph", "operators", title=f"operators of {args.profile} on a GPU")
        for model in SERVED:
            found = sorted(operators(files[model.name]).items())
            table.add_row(model.name, ", ".join(f"{name} {count}" for name, count in found))
        console.print(table)
        require_operators(files)
    except ExportError as error:
        console.print(f"[red]refused:[/red] {escape(str(error))}")
        raise SystemExit(1) from error
    console.print("TensorRT's parser takes them all")


if __name__ == "__main__":
    main()
