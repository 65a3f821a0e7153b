"""The edge agent: runs the head, streams features, answers on its own when the cloud is away."""
