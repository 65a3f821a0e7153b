"""End to end: every way to run a model over emulated links, predicted and measured."""
