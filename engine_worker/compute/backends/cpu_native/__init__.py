"""Blocks computed by C++ kernels behind `jax.ffi`: library, packing of weights, and the calls.

`src/` holds the kernels, which setup.py compiles into one shared library when the package is built;
where it is missing, `library.load` says why and XLA computes instead. See docs/kernels.md.
Others use `CpuNativeBackend`, through `choice.py`.
May import `engine_worker.compute.models`, `engine_worker.compute.backends` (the port, and `xla`
for what has no kernel) and `engine_worker.errors`.
"""
