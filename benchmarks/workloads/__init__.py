"""What is measured, one file a workload.

A workload is a module with TITLE, a sentence for the table, and `run(bench)`, which times cases with `bench.compare` or
keeps rows with `bench.keep`; `table(rows)` where the usual table does not fit. To add one: write the file and name it
in NAMES.
"""

NAMES = (
    "step",
    "first_call",
    "kernel_step",
    "solution",
    "pairs",
    "gram",
    "noise",
    "w2",
    "threads",
    "scaling",
    "memory",
)
