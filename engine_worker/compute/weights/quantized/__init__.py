"""Quantised checkpoints, one file a method: each shows the tensors that its numbers stand for.

A module of a quantised checkpoint holds integers, scales and what else its method needs; here it
shows up as the one `weight` that it stands for, made when it is read. numpy only, no torch.
Others use `find_quantization` and `dequantized` of `methods.py`.
May import `engine_worker.compute.models`, `engine_worker.compute.weights.tensor_info`,
`engine_worker.compute.weights.safetensors_files` and `engine_worker.errors`.
"""
