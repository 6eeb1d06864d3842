"""What training takes, before it is begun, and what came of it beside the published figures.

`plan` and `reproduction` are the commands `mltr plan` and `mltr results`. `estimate` puts a plan
together from `workload` (a step's memory, without content), `devices` (a table of GPUs) and `probe`
(this machine, measured); `published` is the one table of published figures.
"""
