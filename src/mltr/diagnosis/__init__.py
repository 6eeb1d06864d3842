"""Analysis of a run: where it fails, which of its labels are likely wrong, and what to label next.

`diagnose`, `explain`, `audit`, `report` and `next_labels` are the commands. `bottlenecks` measures
the paper's three problems, `figures` collects the results and compares runs, `problems` describes
them in words, `display` shows them and `page` writes the report. `evidence` explains a prediction
and `overlay` draws it as a heat map;
`label_issues` finds wrong labels and `corrections` writes the lists and tables to correct them;
`choose` finds photos to label.
"""

METHODS = ("evidence", "rollout")  #: of `mltr explain`
