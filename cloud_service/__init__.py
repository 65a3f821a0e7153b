"""The cloud service: decodes features, runs the tail, answers."""
