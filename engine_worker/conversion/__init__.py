"""PyTorch's `.pt` and `.bin` files to safetensors, without running anything in them.

`restricted_pickle.py` reads the pickle inside, `torch_archive.py` the zip around it, `name_map.py`
renames tensors.
Others use `convert` and `read_map`, which `convert.py` at the root makes a command of.
May import `engine_worker.compute.models`, `engine_worker.compute.weights` and
`engine_worker.errors`.
"""
