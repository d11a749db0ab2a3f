"""The agent and its command: cli, render, launch, fleet."""

__version__ = "0.1.0"
