"""The model runner: programs per bucket, packing of a step, and the port that the engine calls."""
