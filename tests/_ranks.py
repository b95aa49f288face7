"""Several ranks of a process group (gloo) on this machine, for tests. A hang fails."""

import multiprocessing
import os
import socket
import tempfile
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

# A server that has imported everything forks the ranks, so a test pays for no import.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["_ranks", "_fits", "lightning.pytorch", "lstm_freeze.callbacks"])
LIMIT = 120


class RankFailed(Exception):
    """What went wrong on each rank that failed."""


def run(world, function, *arguments, limit=LIMIT):
    """The results of function(*arguments) on each of `world` ranks, by rank.

    Raises RankFailed with the traceback of each rank that failed, or that had not ended in time.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_rank, args=(rank, world, folder, function, arguments, limit))
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + limit
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        failed = {rank: f"no end within {limit} s" for rank in late}
        for rank in set(range(world)) - {*late}:
            if not Path(folder, f"result{rank}").exists():
                error = Path(folder, f"error{rank}")
                failed[rank] = error.read_text() if error.exists() else "killed"
        if failed:
            raise RankFailed("\n".join(f"rank {r}: {e}" for r, e in sorted(failed.items())))
        return [torch.load(Path(folder, f"result{r}"), weights_only=False) for r in range(world)]


def _rank(rank, world, folder, function, arguments, limit):
    # As a launcher would say it: Lightning then starts no processes of its own.
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    torch.set_num_threads(1)
    try:
        # A file brings the ranks together, so no two tests can want the same port.
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=limit),
        )
        result = function(*arguments)
        torch.save(result, Path(folder, f"part{rank}"))
        Path(folder, f"part{rank}").rename(Path(folder, f"result{rank}"))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"error{rank}").write_text(traceback.format_exc())
        # Not by way of exit handlers: they might wait for the others.
        os._exit(1)
    os._exit(0)


def free_port():
    """A port of this machine that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ranks_agree(tensors):
    """Whether every rank holds the same bits; asked on all ranks at once."""
    flat = torch.cat([t.detach().reshape(-1).view(torch.uint8) for t in tensors])
    gathered = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, flat)
    return all(torch.equal(flat, other) for other in gathered)
