"""Drives running processes from outside: demo, measurements, the emulated link."""
