"""How good a run is: scores of a split, `mltr evaluate`, `mltr calibrate`.

`open_run` opens a run with its data, `predictions` keeps the scores that every measure reads. Why a
run fails belongs to `diagnosis`.
"""
