"""Compute buffers of llama.cpp: its graph allocator, replayed on the model's graph."""

from __future__ import annotations

from willitrun_estimator.compute.model import ComputeModel

__all__ = ["ComputeModel"]
