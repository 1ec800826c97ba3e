"""Runs the model: what a node asks for vectors that no cache holds.

Here lives all that touches weights: finding a model (`source`), reading its folder (`folder`), its
identity (`fingerprint`, `canaries`), its conversion to ONNX (`onnx_bert`, `onnx_torch`, kept by
`onnx_files`) and to integers (`quantize`, `cpu`), a folder with the result (`export`), running it
(`tokens`, `backends`, `pooling`, on the one thread of `device`), who is served when (`lanes`; by
them texts are read in `reader`, and computed in `schedule` and `batcher`) and who would wait too
long (`waiting`), and the gRPC service around it (`answering`, `service`, `metrics`, `main`).
`upstream` asks somebody else's embedder instead.

Caching, tenants and prompts live in `embedkeep.node`; texts arrive here ready to be embedded.
A node speaks to this package over gRPC only. Called by `embedkeep.cli`, by benchmarks and tests.

Importing this package loads neither onnxruntime nor torch; a backend's module does, when chosen.
"""

import os

# ONNX Runtime notes what runs it, and where, in the user's cache folder, to be sent to its maker.
# It must be told before it is imported, and only this package imports it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
