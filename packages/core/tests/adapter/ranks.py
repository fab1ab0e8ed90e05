"""Ranks of `test_ranks` and `test_distributed`: all is imported once, then each is forked."""

import sys
from pathlib import Path

import ddp_worker
import ranks_worker
import torch.multiprocessing as mp

if __name__ == "__main__":
    for worker, ranks in ((ranks_worker, 3), (ddp_worker, 2)):
        folder = Path(sys.argv[1], worker.__name__)
        folder.mkdir()
        mp.start_processes(worker.run, (folder,), nprocs=ranks, start_method="fork")
