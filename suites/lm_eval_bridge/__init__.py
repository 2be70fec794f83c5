"""lm-eval's tasks, answered through a cache.

    CacheLM        an `lm_eval` LM: requests become Cases, whoever runs these gives it the answers
    loading        tasks by name: ours on local rows, a folder of the user's, lm-eval's own
    local_tasks/   YAML of the seven tasks whose rows `kvmark data` can put on this machine

The library is imported when a task is run, never before: it is an extra (`pip install 'kvmark[lm-eval]'`).
"""
