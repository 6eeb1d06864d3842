"""Analysis of a run: where it fails, and which of its labels are likely wrong.

`diagnose`, `explain`, `audit` and `report` are the commands. `bottlenecks` measures the paper's
three problems and `problems` describes them in words; `overlay` draws heat maps; `label_issues`
finds wrong labels and `corrections` writes the lists and tables to correct them.
"""
