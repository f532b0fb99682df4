"""Phases of one operation: all cores go through them together, without an operation's end and start in between."""

from max.algorithm import sync_parallelize
from std.atomic import Atomic
from std.ffi import external_call

from .sharing import n_cores
from .vectors import LINE

comptime APART = LINE // 8  # counters, so that each has a cache line of its own
comptime PATIENCE = 1000  # looks at a counter before the core is offered to others
comptime Counters = Pointer[mut=True, Int64, UntrackedOrigin[mut=True]]


@fieldwise_init
struct Phases(TrivialRegisterPassable):
    """Hands out the tasks of each phase, and tells when they are done.

    A core takes the next task when it is ready, so nobody waits for a core that never came: where another process has
    it, the others do its share.
    """

    var _counters: Counters  # of each phase, how many tasks were taken and how many are done

    @always_inline
    def is_over(self, phase: Int, n_tasks: Int) -> Bool:
        """Tell whether there is nothing left to take in a phase."""
        return Atomic[Int64].load(self._counters.unsafe_offset(2 * phase * APART)) >= Int64(n_tasks)

    @always_inline
    def run[FuncType: def(Int) -> None](self, phase: Int, work: FuncType, n_tasks: Int):
        """Take part in a phase, and return when all of its tasks are done; phases come in order, none twice.

        What one phase writes the next may read. A core may come when a phase is over, and finds no task then.
        """
        var taken = self._counters.unsafe_offset(2 * phase * APART)
        var done = self._counters.unsafe_offset((2 * phase + 1) * APART)
        var n_own = Int64(0)
        var task = Int(Atomic[Int64].fetch_add(taken, 1))
        while task < n_tasks:
            work(task)
            n_own += 1
            task = Int(Atomic[Int64].fetch_add(taken, 1))
        if n_own > 0:
            _ = Atomic[Int64].fetch_add(done, n_own)
        var n_looks = 0
        while Atomic[Int64].load(done) < Int64(n_tasks):
            n_looks += 1
            if n_looks > PATIENCE:
                _ = external_call["sched_yield", Int32]()


def in_phases[FuncType: def(Int, Phases) raises -> None](take_part: FuncType, n_phases: Int) raises:
    """Let each core run `take_part`, which goes through all phases; it is given the core's number."""
    var counters = List[Int64](length=2 * n_phases * APART, fill=0)
    var phases = Phases(Counters(unsafe_from_address=Int(counters.unsafe_ptr())))

    def run(core: Int) raises {imm}:
        take_part(core, phases)

    sync_parallelize(run, n_cores())
    _ = counters^
