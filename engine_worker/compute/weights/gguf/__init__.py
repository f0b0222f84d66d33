"""Models in GGUF files, as if they were Hugging Face folders: config and tensors.

`metadata.py` reads keys, `family.py` is what a family is, `families.py` knows what llama.cpp calls
each and what it did to its tensors (`changes.py` undoes it), `blocks.py` turns blocks of quantised
numbers into numbers, `checkpoint.py` is the port.
May import `protocol.runtime.gguf_header`, `weights.tensor_info` and `engine_worker.errors`.
"""
