"""Write EfficientNet-Lite2 with its ImageNet weights: the script of Lite0 with another table.

Usage: python export.py OUTPUT.onnx
"""

import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "efficientnet_lite0" / "export.py"

if __name__ == "__main__":
    sys.argv[1:1] = ["--variant", "lite2"]
    runpy.run_path(str(SCRIPT), run_name="__main__")
