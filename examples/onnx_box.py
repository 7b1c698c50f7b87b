"""A black box for marshtest, with ONNX Runtime: python onnx_box.py MODEL.onnx INPUTS.npz OUTPUTS.npy.

Nothing of marshtest or PyTorch is needed. A service behind HTTP, JAX or TensorFlow would look the same.
"""

import sys

import numpy as np
import onnxruntime

model, inputs, outputs = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
x = np.load(inputs)["x"]  # [M, ...] float32, scaled as the model expects
name = session.get_inputs()[0].name
parts = [session.run(None, {name: x[start : start + 1024]})[0] for start in range(0, len(x), 1024)]
np.save(outputs, np.concatenate(parts))  # [M, C] logits; probabilities or M losses would do as well
