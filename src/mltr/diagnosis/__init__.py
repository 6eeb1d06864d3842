"""Analysis of a run: where it fails, which of its labels are likely wrong, and what to label next.

`diagnose`, `explain`, `audit`, `report` and `next_labels` are the commands. `bottlenecks` measures
the paper's three problems and `problems` describes them in words; `overlay` draws heat maps;
`label_issues` finds wrong labels and `corrections` writes the lists and tables to correct them;
`choose` finds photos to label.
"""
