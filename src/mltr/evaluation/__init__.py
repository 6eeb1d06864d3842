"""The quality of a run: scores of a split, `mltr evaluate`, `mltr calibrate`.

`open_run` opens a run with its data, `predictions` stores the scores that every measure reads.
`diagnosis` covers why a run fails.
"""
