"""Turn a torch.export program into an ONNX file: python to_onnx.py MODEL.pt2 MODEL.onnx."""

import sys

import torch

torch.onnx.export(torch.export.load(sys.argv[1])).save(sys.argv[2])
