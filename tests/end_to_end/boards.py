"""A board of the user's own with one lane, for builds whose lanes are not the matter."""

from __future__ import annotations

BOARD = """schema = 1
title = "My board"
device = { isa = "x86_64", cpu = "any", cores = 2, ram_mb = 1024 }
[[lanes]]
name = "fast"
format = "onnx"
runtime = "onnxruntime"
version = ">=1.20"
precision = "dynamic-int8"
verified_by = "onnxruntime==1.31.1"
"""
