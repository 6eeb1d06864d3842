"""Estimates of what a training run needs, and results beside published figures.

`plan` and `results` are the commands `mltr plan` and `mltr results`. `estimate` combines `workload`
(memory and operations of a step, on fake tensors), `devices` (a table of GPUs) and `speed`
(measured on this machine). `published` is the only table of published figures.
"""
