"""Structured fuzzing of everything that reads what somebody else wrote: files, metadata, databases, nodes' inputs."""
