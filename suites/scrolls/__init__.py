"""SCROLLS and SQuALITY: which tasks there are, how their files are read, how they are asked.

    tasks.py      the table: metric, answer length, wording
    examples.py   files on this machine -> Examples with all their references
    prompts.py    an example -> a prompt of at most so many tokens

The suite itself is `suites.workloads.scrolls`; the metrics are in `suites.scoring`.
"""
