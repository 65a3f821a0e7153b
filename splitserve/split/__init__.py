"""Model surgery: every single-tensor cut of an ONNX graph, segments on disk, and their proof."""

from splitserve.split.cuts import CutCandidate, choose_cuts, find_cuts, mark_fused
from splitserve.split.extract import extract, split_model
from splitserve.split.graph import GraphView, load_graph
from splitserve.split.recipe import Recipe, embed_recipe, read_recipe, recipe_of
from splitserve.split.verify import CutError, compare_cuts

__all__ = [
    "CutCandidate",
    "CutError",
    "GraphView",
    "Recipe",
    "choose_cuts",
    "compare_cuts",
    "embed_recipe",
    "extract",
    "find_cuts",
    "load_graph",
    "mark_fused",
    "read_recipe",
    "recipe_of",
    "split_model",
]
