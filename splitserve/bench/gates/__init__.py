"""The acceptance gates of the leakage audit, as measurements that anybody can repeat."""
