"""What a worker holds beside its model: `python -m harness.frontier_probe DEVICE THREADS DTYPE`.

    cpu    {"held_bytes": private writable memory of Python and all libraries, "free_bytes": null}
    cuda   {"held_bytes": 0, "free_bytes": device memory beside this process's own context and libraries}

Told after one execution of a tiny network: a third of what libraries take they take at first use. On a CPU
the memory limit counts what is held already (`machine_limits.limit_memory`). A fresh process because the
parent is larger than a worker, and must never create a CUDA context.
"""

from __future__ import annotations

import gc
import json
import sys

from .machine_limits import status_bytes


def main(device: str, threads: str, dtype: str) -> int:
    """Print the sizes as JSON; a device that is not there is one sentence on stderr and exit code 12."""
    import torch

    import suites
    from suites.suite import Context
    from suites.tokenizer import ByteTokenizer

    from .execute import execute
    from .loading import check_device, load_model
    from .measure import Measurement  # noqa: F401  all that a worker imports counts
    from .plan import Settings
    from .worker import EXIT_ENVIRONMENT

    try:
        check_device(device)
    except ValueError as error:
        print(error, file=sys.stderr)
        return EXIT_ENVIRONMENT
    torch.set_num_threads(int(threads))
    settings, tokenizer = Settings("tiny", device=device, threads=int(threads), dtype=dtype), ByteTokenizer()
    cases = suites.load("decode:new_tokens=1", Context(tokenizer, None, 0, None)).cases(
        {"context": 16, "batch": 1}
    )
    execute(load_model("transformer", settings), list(cases), tokenizer, device)
    gc.collect()
    if device == "cpu":
        print(json.dumps({"held_bytes": status_bytes("VmData"), "free_bytes": None}))
    else:
        torch.cuda.empty_cache()
        free_bytes, _ = torch.cuda.mem_get_info(device)
        print(json.dumps({"held_bytes": 0, "free_bytes": free_bytes}))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
