"""Calibration: the codec's tables and rates, found from inputs without labels."""

from splitserve.agreement import Judge, best_class, estimate, make_judge
from splitserve.calibrate.cut import frame_bytes
from splitserve.calibrate.fit import Weights, channel_axis, fit_tables, plain_tables
from splitserve.calibrate.inputs import Inputs, model_input, read_inputs
from splitserve.calibrate.whole import Task, calibrate_artifact

__all__ = [
    "Inputs",
    "Judge",
    "Task",
    "Weights",
    "best_class",
    "calibrate_artifact",
    "channel_axis",
    "estimate",
    "fit_tables",
    "frame_bytes",
    "make_judge",
    "model_input",
    "plain_tables",
    "read_inputs",
]
