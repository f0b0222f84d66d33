"""Quantised checkpoints, one file a method: each shows the tensors that its numbers stand for.

A module of a quantised checkpoint holds integers, scales and what else its method needs; here it
shows up as the one `weight` that it stands for, made when it is read. May import `tensor_info` and
`safetensors_files` of `engine_worker.compute.weights`, and what that may; numpy only, no torch.
"""
