"""How the cores share the tasks of an operation."""

from max.algorithm import sync_parallelize
from max.runtime.asyncrt import parallelism_level
from std.atomic import Atomic
from std.sys import num_physical_cores


@always_inline
def n_cores() -> Int:
    """Return how many cores work together: MAX may have fewer threads than there are cores."""
    return min(num_physical_cores(), parallelism_level(None))


def share[FuncType: def(Int) raises -> None](work: FuncType, n_tasks: Int) raises:
    """Run tasks on all cores, each taking the next when it is ready.

    `sync_parallelize` deals tasks out beforehand, and then waits for the core that is slowest or has the most to do.
    """
    var next = Atomic[Int64](0)

    def take_turns(core: Int) raises {mut next, imm}:
        var task = Int(next.fetch_add(1))
        while task < n_tasks:
            work(task)
            task = Int(next.fetch_add(1))

    sync_parallelize(take_turns, min(n_tasks, n_cores()))
