"""Blocks computed by C++ kernels behind `jax.ffi`: library, packing of weights, and the calls.

`src/` holds the kernels, which setup.py compiles into one shared library when the package is built;
where it is missing, `library.load` says why and XLA computes instead. See docs/kernels.md.
May import `engine_worker.compute.models`, the port in `engine_worker.compute.backends`,
`engine_worker.errors` and `protocol`.
"""
