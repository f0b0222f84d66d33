"""Models in GGUF files, as if they were Hugging Face folders: config and tensors.

`metadata.py` reads keys, `family.py` is what a family is, `families.py` knows what llama.cpp calls
each and what it did to its tensors (`changes.py` undoes it), `blocks.py` turns blocks of quantised
numbers into numbers, `checkpoint.py` is the port.
Others use `find_gguf`, `derive_config` and `read_metadata` of `checkpoint.py`.
May import `engine_worker.compute.models`, `engine_worker.compute.weights.tensor_info`,
`engine_worker.compute.weights.stored_file` and `engine_worker.errors`.
"""
