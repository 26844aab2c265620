"""The axis of samples, by a walk to the inputs."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from onnxpress.measure.evidence import evidence_for
from onnxpress.passes.rewriting.convolutions.sample_axis import SampleAxis, sample_axis

CASES = {
    "float[N,3,8,8] x => y=Relu(x)": SampleAxis("N", True),
    "float[2,3,8,8] x => y=Relu(x)": SampleAxis(2, True),
    "float[N,3,H,8] x => y=Relu(x)": SampleAxis("N", False),
    "float[N,3,8,8] x, float[N,3,8,8] z => y=Add(x,z)": SampleAxis("N", True),
    "float[N,3,8,8] x, float[M,3,8,8] z => y=Add(x,z)": None,
    "float[N,3,8,8] x, float[1,3,8,8] z => y=Add(x,z)": None,
    "float[N,3,8,8] x => y=Transpose<perm=[0,2,3,1]>(x)": SampleAxis("N", True),
    "float[N,3,8,8] x => y=Transpose<perm=[1,0,2,3]>(x)": None,
    "float[N,3,8,8] x => y=ReduceMean<axes=[0,2]>(x)": None,
    "float[N,3,8,8] x => y=ReduceMean<axes=[-2,-1]>(x)": SampleAxis("N", True),
    "float[N,3,8,8] x => y=ReduceMean<axes=[-4]>(x)": None,
    "float[N,3,8,8] x => y=Concat<axis=0>(x,x)": None,
    "float[N,3,8,8] x => a=ReduceMean<axes=[2,3]>(x) b=Concat<axis=1>(a,a) y=Sigmoid(b)": SampleAxis("N", True),
    "float[N,3,8,8] x => y=Softmax<axis=0>(x)": None,
    "float[N,3,8,8] x => y=Softmax(x)": SampleAxis("N", True),
    "float[N,3,8,8] x => p=Constant<value_ints=[0,1,0,0,0,0,0,0]>() y=Pad(x,p)": SampleAxis("N", True),
    "float[N,3,8,8] x => p=Constant<value_ints=[1,0,0,0,0,0,0,0]>() y=Pad(x,p)": None,
    "float[N,4,8,8] x => c,y=Split<axis=1>(x)": SampleAxis("N", True),
    "float[4,4,8,8] x => c,y=Split<axis=0>(x)": None,
}


@pytest.mark.parametrize("text", CASES)
def test_the_first_axis(text: str) -> None:
    inputs, body = text.split(" => ")
    lines = body.replace(" ", "\n")
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => (float[A,B,C,D] y) {{ {lines} }}'
    )
    evidence = evidence_for(ir.from_proto(model), None)
    assert sample_axis(evidence.model.graph.outputs[0], evidence.trace) == CASES[text]
    assert sample_axis(None, evidence.trace) is None
