"""Model surgery: every cut of an ONNX graph worth having, segments on disk, and their proof."""

from splitserve.split.choose import choose_cuts
from splitserve.split.cuts import CutCandidate, find_cuts, mark_fused
from splitserve.split.extract import extract, split_model
from splitserve.split.frontier import best_cut, find_frontier
from splitserve.split.graph import GraphView, load_graph
from splitserve.split.recipe import Recipe, embed_recipe, read_recipe, recipe_of
from splitserve.split.verify import CutError, compare_cuts

__all__ = [
    "CutCandidate",
    "CutError",
    "GraphView",
    "Recipe",
    "best_cut",
    "choose_cuts",
    "compare_cuts",
    "embed_recipe",
    "extract",
    "find_cuts",
    "find_frontier",
    "load_graph",
    "mark_fused",
    "read_recipe",
    "recipe_of",
    "split_model",
]
