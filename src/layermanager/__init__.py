"""Make the filesystem layers on this node's disk be exactly the desired ones."""

__version__ = "0.1.0"
