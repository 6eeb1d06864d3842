"""Where a run fails, and which of its labels are likely wrong.

`diagnose`, `explain`, `audit` and `report` are the commands. `bottlenecks` measures the paper's
three problems and `problems` puts them into words; `reliability` measures what probabilities are
worth; `overlay` draws where the evidence lies; `label_issues` finds wrong labels and `corrections`
writes what to mend.
"""
