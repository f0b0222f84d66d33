"""How many tokens a row computes in a step: one, several ahead, or a draft that a step checks.

Pure policy on schedules; the runner computes what is decided here.
Others use `DecodePlanner` and `SpeculationMode`.
May import `engine_worker.core.choice`, `engine_worker.core.scheduling` and `engine_worker.text`.
"""
