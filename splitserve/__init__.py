"""Edge-cloud split inference: what the device and the cloud share, and the offline tools."""

__version__ = "0.1.0"
