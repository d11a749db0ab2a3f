"""Compute buffers of llama.cpp: its graph allocator, replayed on graphs of representative blocks."""

from __future__ import annotations

from willitrun_estimator.compute.model import ComputeModel

__all__ = ["ComputeModel"]
