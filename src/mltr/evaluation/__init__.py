"""The quality of a run: scores of a split, `mltr evaluate`, `mltr calibrate`.

`open_run` opens a run with its data. `predictions` stores the scores that every measure reads.
`figures` and `curves` show them for `evaluate`, `gain` for `calibrate`, and `thresholds` fits.
Where and why a run fails is the subject of `diagnosis`.
"""
