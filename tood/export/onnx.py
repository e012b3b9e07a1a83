"""An exported detector in ONNX. Importing this needs nothing of ONNX; writing does.

Two operators have counterparts in ONNX that its exporter does not know of: NMS, which keeps classes apart by itself (moved
apart in its float32, boxes of high classes would be rounded), and torchvision's deformable convolution.
M candidates, K classes.
"""

from pathlib import Path

import torch
from torch import Tensor

from tood.export.check import ExportError
from tood.export.program import OUTPUTS, suppress

OPSET = 20  # DeformConv came with 19


@torch.library.custom_op("tood::suppress_by_class", mutates_args=())
def suppress_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, limit: int, classes: int) -> Tensor:
    """`tood.export.program.suppress`, as one operator that the exporter can put ONNX's in place of."""
    return suppress(boxes, scores, labels, iou, limit, classes)


@suppress_by_class.register_fake
def _(boxes, scores, labels, iou, limit, classes):
    return torch.empty_like(scores, dtype=torch.bool)


def write_onnx(program: torch.export.ExportedProgram, file: Path, properties: dict[str, str]) -> None:
    """`properties` become the model's. Raises ExportError where an operator has no counterpart in ONNX."""
    table = {
        torch.ops.tood.suppress_by_class.default: _suppress_in_onnx,
        torch.ops.torchvision.deform_conv2d.default: _deform_conv_in_onnx,
    }
    try:
        written = torch.onnx.export(
            program,
            input_names=["image"],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            custom_translation_table=table,
            verbose=False,
        )
        written.model.metadata_props.update(properties)
        written.save(str(file), external_data=False)
    except torch.onnx.errors.OnnxExporterError as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ExportError(f"ONNX cannot express this detector ({reason}); use --format torch") from error


def _suppress_in_onnx(boxes, scores, labels, iou: float, limit: int, classes: int):
    """NonMaxSuppression wants boxes [1, M, 4] and scores [1, K, M]: a class sees its own candidates alone, those above 0.

    Its corners may come in any order, so that x before y is as good as y before x. At most `limit` of a class are kept.
    """
    op = _operators()
    every_class = op.Constant(value_ints=list(range(classes)))
    own = op.Equal(op.Unsqueeze(labels, op.Constant(value_ints=[0])), op.Unsqueeze(every_class, op.Constant(value_ints=[1])))
    of_class = op.Where(own, op.Unsqueeze(scores, op.Constant(value_ints=[0])), op.Constant(value_float=0.0))
    axis = op.Constant(value_ints=[0])
    kept = op.NonMaxSuppression(  # [S, 3] of (image, class, candidate)
        op.Unsqueeze(boxes, axis),
        op.Unsqueeze(of_class, axis),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou]),
        op.Constant(value_floats=[0.0]),
    )
    candidate = op.Gather(kept, op.Constant(value_int=2), axis=1)
    marks = op.Expand(op.Constant(value_float=1.0), op.Shape(candidate))
    nothing = op.Mul(scores, op.Constant(value_float=0.0))
    return op.Greater(op.ScatterElements(nothing, candidate, marks, axis=0), op.Constant(value_float=0.5))


def _deform_conv_in_onnx(
    x,
    weight,
    offset,
    mask,
    bias,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    offset_groups: int,
    use_mask: bool,
):
    """The same taps in the same order, (dy, dx) each; torchvision passes an empty mask where it has none."""
    return _operators().DeformConv(
        x,
        weight,
        offset,
        bias,
        mask if use_mask else None,
        dilations=[dilation_h, dilation_w],
        group=groups,
        offset_group=offset_groups,
        pads=[pad_h, pad_w, pad_h, pad_w],
        strides=[stride_h, stride_w],
    )


def _operators():
    from onnxscript.onnx_opset import opset20

    return opset20
