"""PyTorch's `.pt` and `.bin` files to safetensors, without running anything in them.

`restricted_pickle.py` reads the pickle inside, `torch_archive.py` the zip around it, `name_map.py`
renames tensors, `convert.py` at the root is the command. May import `engine_worker.compute.models`
and `engine_worker.compute.weights`.
"""
